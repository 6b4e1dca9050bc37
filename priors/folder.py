"""Priors from folders that diffusers wrote: kind, parameterisation and schedule are read from the configs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import has_fast_bfloat16, parse_dtype
from .backbone import Backbone
from .backbones import OURS, find_backbone, trained_size
from .base import Prior
from .files import (
    check_counts,
    check_weights,
    read_json,
    read_number,
    reading,
    refuse_code,
    weights_variant,
)
from .latent import AUTOENCODERS, LatentPrior
from .memory import Memory, plan_memory, stored_parameters
from .predictor import NetworkPrior, Parameterisation
from .prompts import Prompts
from .schedule import VE, DiscreteVP, LinearFlow, Schedule, cosine_betas, linear_betas, scaled_linear_betas
from .text import encode_texts, has_encoders
from .tiles import TiledPrior

__all__ = ["default_dtype", "load_folder", "load_network", "path_of"]

UNKNOWN_SIZE = 64  # of latents, for the memory plan where a config does not tell it
VARIANCE_PRESERVING = tuple(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
        *("DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
        *("UniPCMultistep", "DEISMultistep", "SASolver", "DDIMParallel", "DDPMParallel"),
    )
)
BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "squaredcos_cap_v2": cosine_betas}


def load_folder(
    folder: str | Path,
    dtype: torch.dtype | str = "auto",
    *,
    prompts: Prompts | None = None,
    autoencoder: str | Path | None = None,
    memory: str = "fast",
    device: torch.device | None = None,
) -> Prior:
    """Load the folder of a diffusers pipeline or model.

    A pipeline has the network in unet/ or transformer/, scheduler/scheduler_config.json, and vae/ if it is a latent
    model; a single model has config.json, its weights and scheduler_config.json side by side.  Text encoders are read
    only for prompts that are not in the cache, and freed before the network is loaded.  Pictures larger than those of
    the training are predicted in overlapping windows, where the config says that size.  Every part is of a class on
    our own lists, of the scheduler only the numbers are read, and no code of the folder is run.

    Arguments:
        folder: as `save_pretrained` wrote it; weights as safetensors.
        dtype: of the network, or its name; "auto" is that of `default_dtype`.  The autoencoder stays in float32, since
            half precision overflows in decoders.
        prompts: what to ask a conditional network with; by default nothing.
        autoencoder: folder of another autoencoder of the same latents, such as a tiny one.
        memory: a mode of `memory.py`: fast, balanced, low, or auto for the first that fits.
        device: where to compute; the CPU if not given.

    Raises:
        ValueError: the folder lacks a part or holds code, or a part is damaged, not known, or does not fit the others.
    """
    folder, device = Path(folder), device or torch.device("cpu")
    dtype = parse_dtype(dtype) or default_dtype(folder, device)
    scheduler = read_json(_first_of(folder, "scheduler/scheduler_config.json", "scheduler_config.json"), folder)
    part = _network_of(folder)
    config = read_json(part / "config.json", folder)
    refuse_code(folder)
    schedule, parameterisation = path_of(scheduler)
    kind, backbone_kind = find_backbone(config)
    prompts = prompts or Prompts()
    texts = prompts.needed(backbone_kind, has_encoders(folder))
    encoded = encode_texts(folder, backbone_kind, texts, dtype, prompts)
    coder = _load_autoencoder(folder, autoencoder, backbone_kind)
    factor = 1 if coder is None else LatentPrior.factor_of(coder)
    size = trained_size(config)
    plan = _memory(memory, part, coder, dtype, (factor * (size or UNKNOWN_SIZE)) ** 2, device)
    backbone = _load_backbone(kind, backbone_kind, part, dtype, plan, factor)
    prior: Prior = NetworkPrior(
        backbone,
        schedule,
        parameterisation,
        prompts=prompts.guidances(backbone, encoded),
        data_std=read_number(scheduler, "sigma_data", 0.5),
        sigma_min=read_number(scheduler, "sigma_min", 0.002),
    )
    prior.calibration = _read_calibration(folder)
    if size is not None:
        prior = TiledPrior(prior, size=size, overlap=size // 4)
    if coder is not None:
        prior = _latent(coder, prior, backbone, plan, folder)
    place(prior, backbone, coder, plan)
    return prior


def _memory(mode: str, part: Path, coder: Any, dtype: torch.dtype, pixels: int, device: torch.device) -> Memory:
    """Where the weights lie, for a mode of `memory.py`."""
    return plan_memory(
        mode,
        network=stored_parameters(part) if mode != "fast" else 0,
        autoencoder=0 if coder is None else sum(p.numel() for p in coder.parameters()),
        recomputes=coder is not None and coder._supports_gradient_checkpointing,
        itemsize=dtype.itemsize,
        pixels=pixels,
        device=device,
    )


def _latent(coder: Any, prior: Prior, backbone: Backbone, plan: Memory, folder: Path) -> LatentPrior:
    """The prior of latents with its autoencoder; a ValueError if they belong to different models."""
    latent = LatentPrior(coder, prior, tile=plan.tile)
    if backbone.channels != latent.latent_channels:
        raise ValueError(
            f"{folder} holds a network of {backbone.channels} channels and an autoencoder with "
            f"{latent.latent_channels}; they belong to different models."
        )
    if plan.checkpoint and coder._supports_gradient_checkpointing:
        coder.enable_gradient_checkpointing()
    return latent


def default_dtype(folder: Path, device: torch.device) -> torch.dtype:
    """The dtype in which a network loses no quality that matters, and is fastest.

    That is bfloat16 for a network of our own class, such as those of the bundled priors, on a CPU with instructions for
    it, else float32.  Ours takes pictures in float32 all the same, which networks of diffusers do not.  A folder that
    cannot be read is left to `load_folder`.
    """
    try:
        name = read_json(_network_of(folder) / "config.json", folder).get("_class_name")
    except (OSError, ValueError):
        return torch.float32
    ours = name == OURS and device.type == "cpu"
    return torch.bfloat16 if ours and has_fast_bfloat16(device) else torch.float32


def _network_of(folder: Path) -> Path:
    """Where the network of a pipeline or model lies."""
    return _first_of(folder, "unet/config.json", "transformer/config.json", "config.json").parent


def _load_backbone(
    kind: Any, backbone_kind: type[Backbone], folder: Path, dtype: torch.dtype, plan: Memory, factor: int
) -> Backbone:
    """The network as it is called; one that can also compute in float32 (see `precise`) with its weights for that."""
    from .network import Residual

    whole = plan.bits is None and not plan.offload
    if not (backbone_kind is Residual and dtype.itemsize < 4 and whole):
        return backbone_kind(load_network(kind, folder, dtype, plan), factor)
    half, exact = (load_network(kind, folder, precision, plan) for precision in (dtype, torch.float32))
    return Residual(half, factor, exact)


def place(prior: Prior, backbone: Backbone, coder: nn.Module | None, plan: Memory) -> None:
    """Network and autoencoder to where the plan has them."""
    offload = plan.offload and backbone.network._supports_group_offloading
    if offload:
        backbone.network.enable_group_offload(plan.device, offload_type="block_level", num_blocks_per_group=1)
        backbone.has_gradient = False
    elif plan.bits is None:
        backbone.to(plan.device)
    if coder is not None:
        coder.to(plan.device)
    backbone.stays = offload or plan.bits is not None
    prior.memory_mode = plan.mode


def load_network(kind: Any, folder: Path, dtype: torch.dtype = torch.float32, plan: Memory | None = None) -> Any:
    """A network of a diffusers class from the folder with its config.json and its weights.

    Arguments:
        kind: the class.
        folder: as `save_pretrained` wrote it; weights as safetensors.
        dtype: of the network.
        plan: of how many bits the weights are, and where.

    Raises:
        ValueError: if the weights are missing, damaged, not safetensors, of few bits or those of another network.
    """
    config = read_json(folder / "config.json", folder)
    if config.get("quantization_config") is not None:
        raise ValueError(
            f"The weights in {folder} are quantised by another library; take the unquantised ones, and --memory low "
            "for few bits."
        )
    quantisation = None if plan is None else plan.quantisation()
    where = None if plan is None or quantisation is None else {"": plan.device}
    check_weights(folder)
    check_counts(config, folder)
    with reading(folder, f"the weights of the {kind.__name__} that its config.json describes"):
        network, loading = kind.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=True,
            output_loading_info=True, variant=weights_variant(folder), quantization_config=quantisation,
            device_map=where,
        )  # fmt: skip
        if other := [*loading["missing_keys"], *loading["unexpected_keys"]]:
            raise ValueError(f"{len(other)} tensors are missing or too many, such as {sorted(other)[0]}")
    return network if quantisation is not None else network.to(memory_format=torch.channels_last)


def _load_autoencoder(folder: Path, given: str | Path | None, kind: type[Backbone]) -> Any | None:
    """The autoencoder that was given, or that of the folder of a latent model.

    Raises:
        ValueError: there is none, though the network is one of latents, or it cannot be read.
    """
    import diffusers

    part = folder / "vae" if given is None else Path(given)
    if given is not None:
        refuse_code(part)
    if given is None and not part.is_dir() and not kind.latent:
        return None
    config = read_json(part / "config.json", folder)
    name = str(config.get("_class_name"))
    if name not in AUTOENCODERS:
        raise ValueError(f"The prior's autoencoder is a {name!r}; known ones are {', '.join(AUTOENCODERS)}.")
    read_number(config, "scaling_factor", 1.0)
    read_number(config, "shift_factor", 0.0, positive=False)
    return load_network(getattr(diffusers, name), part)


def _first_of(folder: Path, *names: str) -> Path:
    """The first of these files that exists, else where the first should be."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


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
        raise ValueError(
            f"{path.name} in {folder} is damaged ({problem}); remove it and run invsolve calibrate again."
        ) from problem
    return error


def path_of(config: Mapping[str, Any]) -> tuple[Schedule, Parameterisation]:
    """Schedule and parameterisation that a scheduler config describes.

    Raises:
        ValueError: they are not among those known.
    """
    name, kind = str(config.get("_class_name")), config.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch") or kind == "flow_prediction":
        return LinearFlow(), "velocity"
    if name.startswith("EDM"):
        if kind != "epsilon":
            raise ValueError(f"The scheduler {name} has prediction_type {kind!r}; EDM networks are known as 'epsilon'.")
        return VE(read_number(config, "sigma_max", 80.0)), "edm"
    betas = BETAS.get(str(config.get("beta_schedule", "linear"))) if name in VARIANCE_PRESERVING else None
    if betas is None:
        raise ValueError(
            f"The scheduler {name} has beta_schedule {config.get('beta_schedule')!r}; known are flow-matching and EDM "
            f"schedulers, and {', '.join(VARIANCE_PRESERVING)} with the beta schedules {', '.join(map(repr, BETAS))}."
        )
    if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"The scheduler {name} has its own betas (trained_betas or zero-SNR rescaling), not supported."
        )
    if kind not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(f"The scheduler {name} has prediction_type {kind!r}; known are epsilon, sample, v_prediction.")
    n, start, end = (
        config.get(key, value)
        for key, value in {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}.items()
    )
    if not (type(n) is int and 1 <= n <= 10**6 and all(type(b) in (int, float) and 0 < b < 1 for b in (start, end))):
        raise ValueError(
            f"The scheduler {name} has num_train_timesteps {n!r}, beta_start {start!r} and beta_end {end!r}; expected "
            f"are a whole number of at least 1 and two between 0 and 1: save or download the prior again."
        )
    return DiscreteVP(betas(n, start, end)), kind
