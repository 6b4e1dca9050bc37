"""Pixel priors: any diffusers network on images, with its parameterisation and schedule read from its folder."""

from __future__ import annotations

import json
import logging
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..linalg import expand_to
from .base import Endpoints, Prior, pad_to_multiple
from .schedule import DiscreteVP, LinearFlow, Schedule, linear_betas, scaled_linear_betas

__all__ = ["GreyPrior", "PixelPrior", "load_network", "load_pixel_prior", "read_json"]

Parameterisation = Literal["velocity", "epsilon", "sample", "v_prediction"]


class PixelPrior(Prior):
    """A network on pixels seen through the one interface.

    Pictures of any size: padded by reflection to the network's multiple and cropped again, so that the operator
    always sees the user's size.

    Arguments:
        network: called as network(x_t, timestep).sample, like every diffusers model.
        schedule: the path it was trained on.
        parameterisation: what it predicts: `velocity` of a flow, `epsilon`, `sample` (the clean picture) or the
            `v_prediction` alpha eps - sigma x0 of a variance-preserving path.
        size_multiple: height and width the network takes are multiples of this.
        channels: image channels.
        input_dtype: dtype of the pictures the network takes; float32 if not given.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        parameterisation: Parameterisation,
        *,
        size_multiple: int = 1,
        channels: int = 3,
        input_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.input_dtype = input_dtype
        self.network, self.schedule, self.parameterisation = network, schedule, parameterisation
        self.size_multiple, self.channels = size_multiple, channels
        network.requires_grad_(False).eval()

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = (expand_to(a.to(z), z) for a in self.schedule(t))
        out = self._call(z, t)
        if self.parameterisation == "velocity":  # of alpha = 1 - t, sigma = t
            return Endpoints(z - sigma * out, z + alpha * out)
        if self.parameterisation == "v_prediction":
            return Endpoints(alpha * z - sigma * out, sigma * z + alpha * out)
        if self.parameterisation == "epsilon":
            return Endpoints((z - sigma * out) / alpha, out)
        noise = (z - alpha * out) / sigma.clamp_min(torch.finfo(z.dtype).tiny)
        return Endpoints(out, torch.where(sigma > 0, noise, 0))

    def _call(self, z: Tensor, t: Tensor) -> Tensor:
        """The network in its own dtype on the padded picture; the result in the dtype and size of z."""
        timestep = 1000 * t
        if isinstance(self.schedule, DiscreteVP):  # step i of the table is t = (i + 1) / T
            timestep = (t * self.schedule.n_steps - 1).clamp_min(0).round()
        padded, (height, width) = pad_to_multiple(z, self.size_multiple)
        out = self.network(padded.to(self.input_dtype), timestep.expand(len(z))).sample
        return out[:, : self.channels, :height, :width].to(z.dtype)  # further channels are a learned variance


class GreyPrior(Prior):
    """A colour prior seen as a prior of grey pictures (B, 1, H, W).

    The grey picture fills all three channels.  Along the grey axis (1, 1, 1) / sqrt(3) its noise then is sqrt(3)
    times as large as in one channel, so the colour prior is asked at sqrt(3) times the ratio sigma/alpha.

    Arguments:
        prior: a pixel prior of colour pictures.
    """

    channels = 1

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior, self.schedule, self.calls_per_predict = prior, prior.schedule, prior.calls_per_predict
        self.calibration = prior.calibration

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = self.schedule(t)
        inner_t = self.prior.schedule.time(3**0.5 * sigma / alpha)
        inner_alpha, inner_sigma = self.prior.schedule(inner_t)
        scale = torch.where(alpha > sigma, inner_alpha / alpha, inner_sigma / (3**0.5 * sigma))  # equal, one is finite
        clean, noise = self.prior.predict((expand_to(scale.to(z), z) * z).expand(-1, 3, -1, -1), inner_t)
        return Endpoints(clean.mean(dim=1, keepdim=True), 3**0.5 * noise.mean(dim=1, keepdim=True))


def load_pixel_prior(folder: str | Path, dtype: torch.dtype = torch.float32) -> PixelPrior:
    """Load a diffusers pipeline folder (model_index.json, unet/, scheduler/) of a pixel model.

    Arguments:
        folder: the folder that `save_pretrained` wrote; weights as safetensors.
        dtype: of the network; the solver's state keeps its own.

    Raises:
        ValueError: the folder lacks a part, holds a network or scheduler that is not known, weights that do not fit
            the network or a damaged calibration.
    """
    folder = Path(folder)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", folder)
    config = read_json(folder / "unet" / "config.json", folder)
    schedule, parameterisation = _path_of(scheduler)
    network = load_network(_network_class(str(config.get("_class_name"))), folder / "unet", dtype)
    ours = config["_class_name"] == "ResidualUNet"
    multiple = network.size_multiple if ours else 2 ** (len(network.config["down_block_types"]) - 1)
    channels = network.config["channels" if ours else "in_channels"]
    prior = PixelPrior(
        network,
        schedule,
        parameterisation,
        size_multiple=multiple,
        channels=channels,
        input_dtype=torch.promote_types(dtype, torch.float32) if ours else dtype,
    )
    prior.calibration = _read_calibration(folder)
    return prior


def load_network(kind: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A network of a diffusers class from the folder with its config.json and its weights.

    Arguments:
        kind: the class.
        folder: as `save_pretrained` wrote it; weights as safetensors.
        dtype: of the network.

    Raises:
        ValueError: if the weights are missing, damaged or those of another network.
    """
    try:
        with _quiet_diffusers():
            network, loading = kind.from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=False,
                output_loading_info=True,
            )  # fmt: skip
        if other := [*loading["missing_keys"], *loading["unexpected_keys"]]:
            raise ValueError(f"{len(other)} tensors are missing or too many, such as {sorted(other)[0]}")
    except Exception as error:  # of diffusers, torch and safetensors, each with its own for the same few causes
        reason = textwrap.shorten(str(error).replace(str(folder), folder.name), 200, placeholder=" ...").rstrip(".")
        raise ValueError(
            f"{folder} does not hold the weights of the {kind.__name__} that its config.json describes ({reason}); "
            f"save or download the prior again."
        ) from error
    return network.to(memory_format=torch.channels_last)


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without the lines that diffusers logs about a folder before it raises."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_calibration(folder: Path) -> Tensor | None:
    """What `invsolve calibrate` left in the folder of a prior, if anything."""
    try:
        if (path := folder / "calibration.safetensors").is_file():
            from safetensors.torch import load_file

            error = load_file(path)["velocity_error"].double()
        elif (path := folder / "calibration.json").is_file():
            error = torch.tensor(json.loads(path.read_text())["velocity_error"], dtype=torch.float64)
        else:
            return None
        if error.ndim != 1 or len(error) < 2 or not (error.isfinite() & (error >= 0)).all():
            raise ValueError("it must hold two or more numbers that are not negative")
    except Exception as problem:  # safetensors has an error class of its own, and all mean the same
        raise ValueError(f"{path.name} in {folder} is damaged ({problem}); run invsolve calibrate again.") from problem
    return error


def _network_class(name: str) -> Any:
    """The class of a network by the name in its config; a closed list, nothing is imported by name."""
    from diffusers import UNet2DModel

    from .network import ResidualUNet

    classes: dict[str, Any] = {"UNet2DModel": UNet2DModel, "ResidualUNet": ResidualUNet}
    if name not in classes:
        raise ValueError(f"The prior's network is a {name!r}; known pixel networks are {', '.join(classes)}.")
    return classes[name]


def _path_of(config: dict[str, Any]) -> tuple[Schedule, Parameterisation]:
    """Schedule and parameterisation that a scheduler config describes."""
    name = str(config.get("_class_name"))
    if name.startswith("FlowMatch"):
        return LinearFlow(), "velocity"
    betas = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}.get(config.get("beta_schedule", ""))
    if betas is None:
        raise ValueError(
            f"The scheduler {name} has beta_schedule {config.get('beta_schedule')!r}; known are flow-matching "
            "schedulers and the beta schedules 'linear' and 'scaled_linear'."
        )
    if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"The scheduler {name} has its own betas (trained_betas or zero-SNR rescaling), not supported."
        )
    kind = config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(f"The scheduler {name} has prediction_type {kind!r}; known are epsilon, sample, v_prediction.")
    n, start, end = (
        config.get(key, value)
        for key, value in {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}.items()
    )
    if not (isinstance(n, int) and n >= 1 and all(isinstance(b, int | float) and 0 < b < 1 for b in (start, end))):
        raise ValueError(
            f"The scheduler {name} has num_train_timesteps {n!r}, beta_start {start!r} and beta_end {end!r}; expected "
            f"are a whole number of at least 1 and two between 0 and 1: save or download the prior again."
        )
    return DiscreteVP(betas(n, start, end)), kind


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """The names and values in a JSON file of a pipeline folder.

    Raises:
        ValueError: if it is missing or holds something else.
    """
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a diffusers pipeline folder: {path.relative_to(folder)} is missing; it needs unet/ and "
            "scheduler/ as written by save_pretrained."
        )
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__} where names and values are expected")
    except ValueError as error:
        raise ValueError(
            f"{path.relative_to(folder)} in {folder} is damaged ({error}); save or download the prior again."
        ) from error
    return content
