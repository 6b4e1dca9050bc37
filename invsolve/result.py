"""What comes out of a solve: samples, their mean and spread, a status per sample and the bill."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .files.atomic import atomic_folder
from .files.encode import check_folder_name, save_png, spread_picture
from .files.provenance import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Result", "Status"]


class Status(enum.Enum):
    """How a sample ended; the value is the sentence a user reads."""

    ok = ""
    nonfinite = (
        "Non-finite values appeared; lower the solver's step size (or weight), check that sigma is in [-1, 1] units, "
        "or use --dtype float32."
    )


@dataclass(frozen=True)
class Result:
    """Samples of B measurements, S each, in [-1, 1].

    Arguments:
        samples: (B, S, C, H, W); a sample whose status is not ok holds the non-finite values it ended with.
        status: one per measurement and sample, B lists of S.
        chi2: misfit |A(x) - y|^2 / (sigma^2 m) of every sample (B, S), about 1 for a picture that explains the
            data.  From `restore` it is against the rounding to 8 bits where the noise level is zero; from `solve` it
            is NaN there.
        stats: steps, seconds, and per sample the calls of network, network_vjp, encode, decode, decode_vjp; from
            `restore` also outside, the share of values beyond [-2, 2] before they were cut to [-1, 1].
        record: what is needed to repeat the run, as `restore` knows it; empty from `solve`.
        doubts: what speaks against the samples of each measurement, B lists of sentences; empty from `solve`.
    """

    samples: Tensor
    status: tuple[tuple[Status, ...], ...]
    chi2: Tensor
    stats: dict[str, float]
    record: dict[str, Any] = field(default_factory=dict)
    doubts: tuple[tuple[str, ...], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every sample ended well."""
        return all(status is Status.ok for row in self.status for status in row)

    @property
    def images(self) -> Tensor:
        """The first sample of every measurement (B, C, H, W)."""
        return self.samples[:, 0]

    @property
    def mean(self) -> Tensor:
        """Posterior mean estimate (B, C, H, W): the mean of the samples that ended well, NaN if none did."""
        good = self._good()
        weight = good.to(self.samples.dtype) / good.sum(dim=1, keepdim=True)
        return torch.where(_image(good), self.samples, 0).mul(_image(weight)).sum(dim=1)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples that ended well (B, C, H, W); zero for a single sample."""
        good = self._good()
        squares = torch.where(_image(good), (self.samples - self.mean[:, None]).square(), 0).sum(dim=1)
        count = good.sum(dim=1)
        return (squares / (count - 1).clamp_min(1).reshape(-1, 1, 1, 1)).sqrt()

    def _good(self) -> Tensor:
        return torch.tensor([[s is Status.ok for s in row] for row in self.status], device=self.samples.device)

    def save(self, folder: str | Path) -> Path:
        """Write result.safetensors, result.json and PNG pictures of the samples, the mean and the spread.

        The folder appears at once, complete, or not at all.  The pictures say in themselves that invsolve made them,
        and hold no EXIF or other metadata of the measurement.

        Raises:
            ValueError: the folder has the name of a picture.
            FileExistsError: the folder exists and is not an earlier result.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        check_folder_name(folder)
        with atomic_folder(folder) as work:
            save_file(
                {"samples": self.samples.cpu().contiguous(), "chi2": self.chi2.cpu()}, work / "result.safetensors"
            )
            text = {
                "status": [[status.name for status in row] for row in self.status],
                "stats": self.stats,
                "record": self.record,
                "doubts": self.doubts,
            }
            (work / "result.json").write_text(json.dumps(text, indent=2) + "\n")
            mean, std = self.mean, self.std
            for b, row in enumerate(self.status):
                for s, status in enumerate(row):
                    if status is Status.ok:
                        made = provenance("Result.save", f"sample {s + 1} of {len(row)}")
                        save_png(self.samples[b, s], work / f"{b:04d}_sample{s + 1:02d}.png", made)
                if any(status is Status.ok for status in row):
                    for name, picture in (("mean", mean[b]), ("std", spread_picture(std[b]))):
                        save_png(picture, work / f"{b:04d}_{name}.png", provenance("Result.save", name))
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        tensors = load_file(Path(folder) / "result.safetensors")
        text = json.loads((Path(folder) / "result.json").read_text())
        status = tuple(tuple(Status[name] for name in row) for row in text["status"])
        doubts = tuple(map(tuple, text.get("doubts", ())))
        return cls(tensors["samples"], status, tensors["chi2"], text["stats"], text["record"], doubts)

    def plot(self, y: Tensor | None = None, truth: Tensor | None = None) -> Figure:
        """A figure with one row per measurement: data, sample, mean, standard deviation (and the truth if given)."""
        from .figures import overview

        return overview(self.images, self.mean, self.std, y, truth)


def _image(x: Tensor) -> Tensor:
    return x.reshape(*x.shape, 1, 1, 1)


def json_number(value: float) -> float | None:
    """A number as JSON knows it: NaN becomes null."""
    return value if math.isfinite(value) else None
