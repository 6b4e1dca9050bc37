"""The chi2 that a solver itself leaves on data of its own: the table behind the doubts of `restore`.

    python scripts/expected_chi2.py --out results                       # all that is not there yet, an hour on a CPU
    python scripts/expected_chi2.py --out results --solvers diffpir ddrm --kinds deblurring
    python scripts/expected_chi2.py --out results --write               # invsolve/expected_chi2.json of what is there

Every solver runs with its default fields, grid and steps, and the one step of `restore` for denoising.  A kind of
operator is measured on the middles of the four tuning pictures, each under an operator of its own; the data are
simulated by that operator, clipped and rounded to 8 bits, and the solver is told the noise without the rounding.  A
line of `results.jsonl` holds one solver, kind and noise level with one ratio per picture: the misfit over what the
noise, the rounding and the clipping leave.  Lines that are there are not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import endings
import torch
from pictures import tuning
from torch import Tensor

from invsolve import SOLVERS, GaussianNoise, ImageRng, NoNoise, Prior, Problem, build_operator, build_solver, load_prior
from invsolve.allocator import keep_memory
from invsolve.doubts.expected import EIGHT_BITS, TABLE, kind_of, misfit_ratio
from invsolve.files.atomic import append_lines, read_lines
from invsolve.priors.identity import prior_sha256
from invsolve.problem import simulate
from invsolve.rng import derive_seed
from invsolve.solve import solve

PRIOR = "natural"
SIGMAS = (0.0, 0.02, 0.08, 0.3)  # in [-1, 1] units; at 0 the rounding is the noise
BLURS = "blur(sigma=2.0{})", "blur-motion(length=9.0, angle=30.0{})", "blur-uniform(size=5{})", "blur(sigma=1.0{})"
KINDS = {  # the k-th operator with the k-th of four pictures, and the fifth with the first again
    "denoising": ["identity"] * 4,
    "inpainting": [
        "inpaint-random(fraction=0.7)",
        "inpaint-brush(fraction=0.25)",
        "inpaint-random(fraction=0.4)",
        "inpaint-brush(fraction=0.1)",
    ],
    "deblurring": [
        *(blur.format("") for blur in BLURS),
        *(blur.format(", boundary='circular'") for blur in BLURS),
    ],
    "super-resolution": [
        "downsample(factor=4)",
        "downsample-bicubic(factor=2)",
        "downsample(factor=2)",
        "downsample-bicubic(factor=4)",
    ],
    "JPEG": ["jpeg(quality=10)", "jpeg(quality=30)", "jpeg(quality=50)", "jpeg(quality=75)"],
}
ONE_STEP = "denoising", "ddrm"  # what `restore` takes for one denoised picture
Row = dict[str, Any]


def rounded(y: Tensor) -> Tensor:
    """The data as an 8-bit picture holds them, in [-1, 1]."""
    return ((y.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def measure(solver: str, steps: int | None, kind: str, sigma: float, x: Tensor, prior: Prior) -> list[float]:
    """The ratios of one solver, kind and noise level, one per operator and picture of x (4, 3, H, W).

    Raises:
        TypeError, ValueError: the solver cannot do this.
    """
    ratios = []
    for k, spec in enumerate(KINDS[kind]):
        operator = build_operator(spec, tuple(x.shape[1:]))
        if kind_of(operator) != kind:
            raise ValueError(f"{spec} counts as {kind_of(operator)}, not as {kind}.")
        noise = GaussianNoise(sigma) if sigma > 0 else NoNoise()
        y = rounded(simulate(operator, noise, x[[k % len(x)]], ImageRng([derive_seed(0, "expected chi2", k)])))
        y = y if operator.data_mask is None else y * operator.data_mask.to(y)
        problem = Problem(operator, noise, y)
        result = solve(problem, prior, build_solver(solver), steps=steps, seed=k)
        ratios.append(round(float(misfit_ratio(problem, result.samples[:, 0].clamp(-1, 1), EIGHT_BITS)), 5))
    return ratios


def cases(args: argparse.Namespace) -> Iterator[tuple[str, int | None, str, float]]:
    """What is asked for: solver, steps (None: its own), kind and noise level; the one step of denoising first."""
    solvers = [name for name in args.solvers or SOLVERS if not SOLVERS[name].needs_fit]
    for name in solvers:
        for kind in args.kinds or KINDS:
            for sigma in SIGMAS if kind != "JPEG" else SIGMAS[:1]:
                if (kind, name) == ONE_STEP and sigma > 0:
                    yield name, 1, kind, sigma
                yield name, None, kind, sigma


def write_table(rows: list[Row]) -> None:
    """The table of the package: for every solver, kind and noise level the lowest and the highest ratio."""
    entries: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
    for row in rows:
        band = [float(f"{end(row['ratios']):.3g}") for end in (min, max)]
        steps = entries.setdefault(row["solver"], {}).setdefault(row["kind"], {})
        steps.setdefault(str(row["steps"]), {})[str(row["sigma"])] = band
    about = {"prior": PRIOR, "weights": prior_sha256(PRIOR), "size": rows[0]["size"], "made_by": Path(__file__).name}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items()))
    TABLE.write_text(f'{{\n "about": {json.dumps(about)},\n "solvers": {{\n{lines}\n }}\n}}\n')


def run(args: argparse.Namespace) -> None:
    """Measure what the command line asks for, or write the table."""
    keep_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.jsonl"

    def keyed(line: str) -> tuple[tuple[Any, ...], Row]:
        row = json.loads(line)
        return tuple(row[key] for key in ("solver", "steps", "kind", "sigma", "size")), row

    if args.write:
        rows = (
            [row for row in dict(read_lines(path, keyed)).values() if row["size"] == args.size] if path.exists() else []
        )
        if not rows:
            raise ValueError(f"{path} has no rows of size {args.size}; run this command without --write first.")
        write_table(rows)
        return
    x, prior = tuning(args.size), load_prior(PRIOR, "float32")
    for solver, steps, kind, sigma in cases(args):
        key = {"solver": solver, "steps": steps or SOLVERS[solver].steps, "kind": kind, "sigma": sigma}
        key["size"] = args.size
        if path.exists() and tuple(key.values()) in dict(read_lines(path, keyed)):
            continue
        try:
            row = key | {"ratios": measure(solver, steps, kind, sigma, x, prior)}
        except (TypeError, ValueError) as reason:  # an operator that it does not take
            print(f"{solver}, {kind}: {reason}", flush=True)
            continue
        append_lines(path, [json.dumps(row)])
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), help="only these")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), help="only these")
    parser.add_argument("--size", type=int, default=32, help="side of the pictures, the middles of 256 x 256")
    parser.add_argument("--write", action="store_true", help="measure nothing, write the table")
    endings.run(parser, run)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
