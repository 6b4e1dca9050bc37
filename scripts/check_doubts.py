"""How often `restore` doubts a right result, and whether it doubts a wrong one, on the held-out pictures.

    python scripts/check_doubts.py --out results                 # some minutes on a quiet CPU
    python scripts/check_doubts.py --out results --size 96 --cases right "noise 15 taken for 30"

The data are made by SciPy, scikit-image and Pillow, not by the operators of invsolve, and rounded to 8 bits.  Solvers,
steps and noise are the defaults of `restore`.  Left in OUT: `doubts.jsonl` with one line per picture and case, and
`doubts.md`.  Lines that are there are not run again.
"""

from __future__ import annotations

import argparse
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import endings
import numpy as np
from pictures import HELD_OUT, held_out
from PIL import Image
from scipy import ndimage

from invsolve import load_prior, restore
from invsolve.allocator import keep_memory
from invsolve.doubts.judge import DoubtWarning
from invsolve.files.atomic import append_lines, read_lines
from invsolve.metrics import psnr

LEVEL = 2 / 255  # one grey level of 8 bits in [-1, 1] units
Picture = np.ndarray  # (H, W, 3), 0 to 255


class Case(NamedTuple):
    """A way to make data of a picture, and the model that they are restored with."""

    name: str
    right: bool
    make: Callable[[Picture, np.random.Generator], Picture]  # of a picture with PAD more pixels on each side
    operator: str
    sigma: float | str  # in grey levels, or auto
    pad: int = 0


def noisy(level: float, then: Callable[[Picture], Picture] = lambda x: x) -> Callable[..., Picture]:
    """The picture after `then`, with noise of that many grey levels."""
    return lambda x, rng: (lambda y: y + level * rng.standard_normal(y.shape))(then(x))


def gaussian(sigma: float, mode: str) -> Callable[[Picture], Picture]:
    """SciPy's Gaussian blur."""
    return lambda x: ndimage.gaussian_filter(x, (sigma, sigma, 0), mode=mode, truncate=5.0)


def interior(pad: int, inner: Callable[[Picture], Picture]) -> Callable[[Picture], Picture]:
    """The middle of what `inner` makes of a larger picture, as a camera cuts out of the world."""
    return lambda x: inner(x)[pad:-pad, pad:-pad]


def means(factor: int) -> Callable[[Picture], Picture]:
    """Pillow's means of blocks."""
    return lambda x: np.stack(
        [np.asarray(Image.fromarray(plane.astype(np.float32)).reduce(factor)) for plane in np.moveaxis(x, 2, 0)], axis=2
    )


def jpeg(quality: int, then: Callable[[Picture], Picture] = lambda x: x) -> Callable[..., Picture]:
    """Pillow's JPEG of the picture after `then`."""

    def make(x: Picture, _: np.random.Generator) -> Picture:
        file = io.BytesIO()
        Image.fromarray(then(x).round().clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file)).astype(float)

    return make


def grey(x: Picture) -> Picture:
    """The mean of the channels (H, W, 1)."""
    return x.mean(axis=2, keepdims=True)


MISSING, SMALL = "inpaint-random(fraction=0.7)", "downsample(factor=4)"
PAD = 14  # pixels, beyond the reach of the widest blur
BLUR, CIRCULAR = "blur(sigma={})", "blur(sigma={}, boundary='circular')"


def blurred(sigma: float) -> Callable[[Picture], Picture]:
    """The middle of a blurred picture."""
    return interior(PAD, gaussian(sigma, "nearest"))


RIGHT = [
    *(Case(f"noise {n}", True, noisy(n), "identity", n) for n in (5, 15, 25, 50, 80)),
    *(Case(f"noise {n}, grey", True, noisy(n, grey), "identity", n) for n in (5, 25)),
    Case("noise 15, sigma auto", True, noisy(15), "identity", "auto"),
    *(Case(f"70 % missing, noise {n}", True, noisy(n), MISSING, n) for n in (0, 5)),
    Case("strokes, noise 10", True, noisy(10), "inpaint-brush(fraction=0.25)", 10),
    *(Case(f"blur 2, noise {n}", True, noisy(n, blurred(2.0)), BLUR.format(2.0), n, PAD) for n in (0, 3, 10)),
    Case("blur 2, grey, noise 3", True, noisy(3, lambda x: grey(blurred(2.0)(x))), BLUR.format(2.0), 3, PAD),
    *(
        Case(f"circular blur 2, noise {n}", True, noisy(n, gaussian(2.0, "wrap")), CIRCULAR.format(2.0), n)
        for n in (0, 3)
    ),
    *(Case(f"x4, noise {n}", True, noisy(n, means(4)), SMALL, n) for n in (0, 3, 10)),
    *(Case(f"JPEG {q}", True, jpeg(q), f"jpeg(quality={q})", 0) for q in (10, 40)),
]
WRONG = [
    *(Case(f"noise 15 taken for {n}", False, noisy(15), "identity", n) for n in (7.5, 30)),
    *(Case(f"70 % missing, noise 5 taken for {n}", False, noisy(5), MISSING, n) for n in (2.5, 10)),
    *(
        Case(f"blur 2, noise 3 taken for {n}", False, noisy(3, blurred(2.0)), BLUR.format(2.0), n, PAD)
        for n in (1.5, 6)
    ),
    *(Case(f"x4, noise 3 taken for {n}", False, noisy(3, means(4)), SMALL, n) for n in (1.5, 6)),
    *(
        Case(f"blur {true:g} taken for {told:g}, noise {n}", False, noisy(n, blurred(true)), BLUR.format(told), n, PAD)
        for true, told in ((2.0, 2.6), (2.6, 2.0))
        for n in (0, 3)
    ),
    *(
        Case(f"real border taken for circular, noise {n}", False, noisy(n, blurred(2.0)), CIRCULAR.format(2.0), n, PAD)
        for n in (0, 3)
    ),
    *(Case(f"JPEG {q} taken for white noise", False, jpeg(q), "identity", "auto") for q in (10, 40)),
    *(Case(f"JPEG 10 taken for JPEG {q}", False, jpeg(10), f"jpeg(quality={q})", 0) for q in (5, 30)),
    Case("blur 2 and JPEG 40 taken for noise 3", False, jpeg(40, blurred(2.0)), BLUR.format(2.0), 3, PAD),
]
CASES = RIGHT + WRONG
GROUPS = {"right": RIGHT, "wrong": WRONG, "all": CASES}


def run_case(case: Case, name: str, picture: Picture, size: int, prior: Any, solver: str | None) -> dict[str, Any]:
    """One picture through one case."""
    margin = (len(picture) - size) // 2 - case.pad
    x = picture[margin : len(picture) - margin, margin : len(picture) - margin]
    truth = x[case.pad : len(x) - case.pad, case.pad : len(x) - case.pad]
    y = case.make(x, np.random.default_rng(0)).round().clip(0, 255).astype(np.uint8)
    truth = grey(truth) if y.shape[2] == 1 else truth
    sigma = case.sigma if isinstance(case.sigma, str) else case.sigma * LEVEL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtWarning)
        result = restore(y, operator=case.operator, sigma=sigma, prior=prior, solver=solver)
    target = 2 * np.moveaxis(truth, 2, 0)[None] / 255 - 1
    gain = float(psnr(result.images.double(), result.images.new_tensor(target).double())[0])
    return {
        "case": case.name,
        "picture": name,
        "size": size,
        "solver": result.record["solver"]["name"],
        "right": case.right,
        "chi2": float(result.chi2[0, 0]),
        "expected": result.record["expected_chi2"][0],
        "psnr": gain,
        "doubts": list(result.doubts[0]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line per case."""
    lines = ["| data | model | solver | chi2 | no doubt | PSNR | doubted |", "|---|---|---|---|---|---|---|"]
    for case in CASES:
        found = [row for row in rows if row["case"] == case.name]
        if not found:
            continue
        chi2 = ", ".join(f"{row['chi2']:.3g}" for row in found)
        bands = [row["expected"] for row in found if row["expected"] is not None]
        band = " to ".join(f"{sum(end) / len(bands):.3g}" for end in zip(*bands, strict=True)) if bands else "-"
        mean = sum(row["psnr"] for row in found) / len(found)
        doubted = f"{sum(bool(row['doubts']) for row in found)} of {len(found)}"
        model = "right" if case.right else "wrong"
        lines.append(f"| {case.name} | {model} | {found[0]['solver']} | {chi2} | {band} | {mean:.2f} | {doubted} |")
    for right in (True, False):
        chosen = [row for row in rows if row["right"] == right]
        count = sum(bool(row["doubts"]) for row in chosen)
        lines += ["", f"{'Right' if right else 'Wrong'} models: {count} of {len(chosen)} results are doubted."]
    return "\n".join(lines) + "\n"


def check(args: argparse.Namespace) -> None:
    """Run the cases that are not there yet."""
    for name in args.cases:
        if name not in (*GROUPS, *(case.name for case in CASES)):
            raise ValueError(f"There is no case {name!r}; choose {', '.join(GROUPS)}, or a name of the table.")
    chosen = [case for case in CASES if any(case.name == name or case in GROUPS.get(name, []) for name in args.cases)]
    keep_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "doubts.jsonl"

    def rows() -> list[dict[str, Any]]:
        return [row for row in read_lines(path, json.loads) if row["size"] == args.size and row["asked"] == args.solver]

    done = {(row["case"], row["picture"]) for row in rows()}
    prior = load_prior("natural", "float32")
    pixels = ((held_out() + 1) * 127.5).permute(0, 2, 3, 1).double().numpy()
    for case in chosen:
        for name, picture in zip(HELD_OUT[: args.images], pixels, strict=False):
            if (case.name, name) not in done:
                row = run_case(case, name, picture, args.size, prior, args.solver) | {"asked": args.solver}
                append_lines(path, [json.dumps(row)])
    text = table(rows())
    (args.out / "doubts.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures, the middles of 256 x 256")
    parser.add_argument("--images", type=int, default=len(HELD_OUT), help="number of pictures")
    parser.add_argument("--cases", nargs="+", default=["all"], help="right, wrong, all, or names of the table")
    parser.add_argument("--solver", help="instead of the default of each operator")
    endings.run(parser, check)


if __name__ == "__main__":
    main()
