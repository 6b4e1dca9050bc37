"""Deblurring of photographs whose border is not known: border x kernel x method, as a table.

    python scripts/blur_table.py --out results
    python scripts/blur_table.py --images 1 --size 96 --steps 10 --kernels gaussian even --out results  # a trial

SciPy blurs a larger photograph.  Its middle, with noise and rounded to 8 bits, is what is restored.  `input` is this
measurement, `wiener` is scikit-image's unsupervised Wiener filter after the border was tapered, the other columns are
DiffPIR with a boundary.  The kernels `even` (2 x 4) and `measured` (9 x 9) are files.  `resampled` moves their centre
of mass to the middle pixel by interpolation, which widens them.  PSNR in dB, means over the pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import endings
import numpy as np
import torch
from pictures import HELD_OUT
from scipy import ndimage
from skimage import data, restoration
from torch import Tensor

from invsolve import load_prior, restore
from invsolve.allocator import keep_memory
from invsolve.cli.choices import check_at_least
from invsolve.files.encode import save_png
from invsolve.metrics import psnr
from invsolve.operators import PaddedBlur, kernels
from invsolve.operators.blur import picture_shape

KERNELS = ("gaussian", "motion", "defocus", "even", "measured")
BOUNDARIES = ("unknown", "reflect", "zero", "circular")


def kernel_files(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """The operator without its boundary, and the kernel that SciPy blurs with."""
    motion = np.diag(np.r_[1:10]).astype(float)  # faster and faster: it is not symmetric
    made: dict[str, tuple[str, np.ndarray]] = {
        "gaussian": ("blur(sigma=2", kernels.gaussian(2.0).numpy()),
        "motion": ("blur-motion(length=15", kernels.linear_motion(15.0, 45.0).numpy()),
        "defocus": ("defocus(radius=6.5", kernels.disk(6.5).numpy()),
    }
    for name, taps in (("even", np.ones((2, 4))), ("measured", motion)):
        np.save(folder / f"{name}.npy", taps)
        path = f"{folder / name}.npy"
        made[name] = (f"blur-kernel(kernel={path!r}", kernels.from_file(path).numpy())
    return made


def tapered(y: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A picture (H, W) that fades into its own circular blur at the border, so that it has no jump there."""
    blurred = ndimage.convolve(y, kernel, mode="wrap")
    profiles = []
    for n, line in zip(y.shape, (kernel.sum(axis=1), kernel.sum(axis=0)), strict=True):
        spectrum = np.abs(np.fft.fft(line, n - 1)) ** 2
        own = np.fft.ifft(spectrum).real
        profiles.append(1 - np.append(own, own[0]) / own.max())
    weight = np.outer(*profiles)
    return weight * y + (1 - weight) * blurred


def wiener(y: Tensor, kernel: np.ndarray) -> Tensor:
    """Pictures (B, 3, H, W)."""
    planes = [
        restoration.unsupervised_wiener(tapered(plane, kernel), kernel, clip=False, rng=0)[0]
        for plane in y.flatten(0, 1).double().numpy()
    ]
    return torch.from_numpy(np.stack(planes)).reshape(y.shape).float()


def resampled(kernel: np.ndarray) -> Tensor:
    """The kernel, moved by a part of a pixel so that its centre of mass lies on its middle pixel."""
    rows, columns = kernels.offset(torch.from_numpy(kernel))
    moved = ndimage.shift(np.pad(kernel, 1), (-rows, -columns), order=1)
    return torch.from_numpy(moved / moved.sum())


def measurement(name: str, kernel: np.ndarray, size: int, noise: float) -> tuple[Tensor, Tensor]:
    """A crop (1, 3, size, size) of a photograph, and what a camera would have written of it."""
    photo = getattr(data, name)()[..., :3].astype(float)
    top, left = ((n - size) // 2 for n in photo.shape[:2])
    blurred = np.stack([ndimage.convolve(photo[..., c], kernel, mode="reflect") for c in range(3)], axis=-1)
    seen = blurred + noise * np.random.default_rng(0).standard_normal(blurred.shape)
    crops = (p[top : top + size, left : left + size] for p in (photo, seen.clip(0, 255).round()))
    truth, y = (torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1 for crop in crops)
    return truth, y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument(
        "--steps", type=int, help="instead of those of the solver: DiffPIR needs them after a motion blur"
    )
    parser.add_argument("--noise", type=float, default=5.0, help="in grey levels of 8 bits")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS)
    endings.run(parser, compare)


def compare(args: argparse.Namespace) -> None:
    """Print the table, and write it and the pictures."""
    check_at_least(1, images=args.images, size=args.size, steps=args.steps)
    keep_memory()
    prior = load_prior("natural", torch.float32)
    columns = ["input", "wiener", *BOUNDARIES, "resampled"]
    lines = ["| kernel | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        made = kernel_files(Path(folder))
        for kind in args.kernels:
            row: dict[str, list[float]] = {column: [] for column in columns}
            for photo in HELD_OUT[: args.images]:
                for column, picture, truth in results(*made[kind], photo, kind, prior, args):
                    row[column].append(float(psnr(picture.clamp(-1, 1), truth)))
            means = [f"{np.mean(row[column]):.2f}" if row[column] else "-" for column in columns]
            lines.append(f"| {kind} | " + " | ".join(means) + " |")
            print(lines[-1], flush=True)
    (args.out / "blur.md").write_text("\n".join(lines) + "\n")


def results(operator: str, kernel: np.ndarray, photo: str, kind: str, prior: Any, args: argparse.Namespace) -> Any:
    """Every column with its picture and the truth."""
    truth, y = measurement(photo, kernel, args.size, args.noise)
    options: dict[str, Any] = {"prior": prior, "sigma": args.noise / 127.5, "steps": args.steps, "solver": "diffpir"}
    pictures = {"input": y, "wiener": wiener(y, kernel)}
    for boundary in BOUNDARIES:
        pictures[boundary] = restore(y, operator=f"{operator}, boundary={boundary})", **options).images
    if kind in ("even", "measured"):
        wide = resampled(kernel)
        shape = picture_shape((3, args.size, args.size), wide, "unknown")
        operator_of_it = PaddedBlur(shape, kernel=wide, boundary="unknown")
        pictures["resampled"] = restore(y, operator=operator_of_it, **options).images
    for column, picture in pictures.items():
        save_png(picture[0], args.out / f"{kind}-{photo}-{column}.png")
        yield column, picture, truth


if __name__ == "__main__":
    main()
