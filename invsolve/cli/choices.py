"""What the options of the command line stand for: operator, noise model, mask, prior."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch

from ..devices import parse_dtype
from ..files.holes import load_mask
from ..files.inputs import Source
from ..noise import NOISES, GaussianNoise, Noise
from ..operators import OPERATORS, Inpaint, Operator, Shape, build_operator
from ..priors import Mode, Prior, Prompts, default_dtype, load_prior
from ..spec import parse_sigma, parse_spec, split_spec

__all__ = [
    "PriorOptions",
    "check_at_least",
    "choose_dtype",
    "choose_operator",
    "choose_prompts",
    "fields_for",
    "files_of",
    "is_file",
    "open_prior",
    "operator_for",
    "parse_noise",
    "public_fields",
]


def check_at_least(least: int, **counts: int | None) -> None:
    """Refuse options that count something and are below `least`; those that were not given are None.

    Raises:
        ValueError: one is too small.
    """
    for name, count in counts.items():
        if count is not None and count < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {count}.")


class PriorOptions(Protocol):
    """The options of a command that say which prior it runs with, and how."""

    @property
    def prior(self) -> str: ...
    @property
    def negative_prompt(self) -> str | None: ...
    @property
    def guidance(self) -> float | None: ...
    @property
    def memory(self) -> str: ...
    @property
    def offline(self) -> bool: ...
    @property
    def cache_dir(self) -> Path | None: ...
    @property
    def dtype(self) -> str: ...


def choose_dtype(options: PriorOptions, device: torch.device) -> str:
    """A name of DTYPES: what was asked for, or for "auto" what `default_dtype` says.

    Raises:
        ValueError: the dtype, or the memory mode, is unknown, or no prior is named.
    """
    if not options.prior:
        raise ValueError("--prior is empty; name a prior of `invsolve list priors`, or a folder.")
    if options.memory not in get_args(Mode):
        raise ValueError(f"Unknown memory mode {options.memory!r}; choose one of {', '.join(get_args(Mode))}.")
    return str(parse_dtype(options.dtype) or default_dtype(options.prior, device)).removeprefix("torch.")


def choose_prompts(options: PriorOptions, texts: Iterable[str] | None, device: torch.device) -> Prompts | None:
    """What the prior is asked with; None, where nothing is said of prompts, for what its card says.

    Raises:
        ValueError: a prompt that is no text, or a guidance scale out of range.
    """
    if texts is None and options.negative_prompt is None and options.guidance is None:
        return None
    return Prompts(
        texts=("",) if texts is None else tuple(dict.fromkeys(texts)),
        negative=options.negative_prompt or "",
        scale=options.guidance,
        device=device,
    )


def open_prior(options: PriorOptions, dtype: str, prompts: Prompts | None, device: torch.device) -> Prior:
    """The prior in a dtype of DTYPES, asked with the prompts.

    Raises:
        ValueError: a prior that cannot be had, or a prompt that it does not take.
    """
    return load_prior(
        options.prior,
        dtype,
        prompts=prompts,
        memory=options.memory,
        device=device,
        offline=options.offline,
        cache_dir=options.cache_dir,
    )


def choose_operator(spec: str | None, mask: Path | None, kernel: Path | None) -> tuple[str, dict[str, Any]]:
    """The operator's name and fields; --mask FILE is short for inpaint(mask='FILE'), --kernel for blur-kernel.

    Raises:
        ValueError: none is named, two contradict each other, or a field is wrong.
        FileNotFoundError: there is no such mask or kernel.
    """
    if mask is not None and kernel is not None:
        raise ValueError("Give --mask or --kernel, not both.")
    given: str | dict[str, Any] | None = spec
    for field, path, implied in (("mask", mask, "inpaint"), ("kernel", kernel, "blur-kernel")):
        if path is None:
            continue
        name, values = (implied, {}) if spec is None else split_spec(spec, "operator")
        if name != implied or field in values:
            raise ValueError(f"--{field} goes with --operator {implied}, not with {spec}; leave one of them out.")
        if not path.exists():
            raise FileNotFoundError(f"--{field}: {path} does not exist; check the path.")
        given = {"name": implied, **values, field: str(path)}
    if given is None:
        raise ValueError(
            "Say what happened to the picture with --operator, for example 'blur(sigma=2)', downsample, "
            "'jpeg(quality=30)', or identity for noise alone; or with --mask or --kernel.  `invsolve list operators` "
            "names all."
        )
    return parse_spec(given, OPERATORS, "operator")


def files_of(fields: Mapping[str, Any]) -> list[Path]:
    """The masks and kernels among an operator's fields, files or folders, which are no pictures to be read."""
    return [Path(fields[key]) for key in ("mask", "kernel") if isinstance(fields.get(key), str)]


def fields_for(fields: dict[str, Any], source: Source) -> dict[str, Any]:
    """The operator's fields for one picture, which differ only where `mask` is a folder of masks.

    A picture a.jpg of the sub-folder s has its mask in s/a.png, or any other suffix, of that folder, else in a.png.

    Raises:
        ValueError: the folder does not hold one mask with the stem of the picture.
    """
    if "mask" not in fields or not Path(fields["mask"]).is_dir():
        return fields
    stem = source.path.stem
    for folder in (Path(fields["mask"]) / source.name.parent, Path(fields["mask"])):
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [path for path in paths if path.stem == stem and path.is_file()]
        if len(found) == 1:
            return fields | {"mask": str(found[0])}
        if found:
            raise ValueError(f"The folder {folder} holds several masks named {stem}, for {source.path}; leave one.")
    raise ValueError(f"The folder {fields['mask']} holds no mask named {stem}, for {source.path}; add one.")


def operator_for(name: str, fields: dict[str, Any], image_shape: Shape, max_pixels: int) -> Operator:
    """Build the operator; a mask file passes the same checks as a picture does.

    Raises:
        ValueError: a field has no sense for this picture, or a file cannot be used.
    """
    if "mask" in fields:
        holes = load_mask(fields["mask"], max_pixels)
        if tuple(holes.shape) != image_shape[1:]:
            raise ValueError(
                f"The mask {fields['mask']} is {holes.shape[1]} x {holes.shape[0]} pixels and the picture "
                f"{image_shape[2]} x {image_shape[1]}; they must be of one size, so scale the mask."
            )
        operator = Inpaint(image_shape, observed=~holes)
        operator.spec = {"name": name, **fields}
        return operator
    return build_operator(name, image_shape, **fields)


def parse_noise(sigma: str | None, noise: str | None) -> Noise | float | Literal["auto"]:
    """What `--sigma` or `--noise` asks for: a number in [-1, 1] units, "auto", or a noise model.

    Raises:
        ValueError: both are given, or one cannot be read.
    """
    if noise is None:
        return parse_sigma("0" if sigma is None else sigma)
    if sigma is not None:
        raise ValueError("Give --sigma or --noise, not both; --sigma 0.1 is --noise 'gaussian(sigma=0.1)'.")
    name, fields = parse_spec(noise, NOISES, "noise")
    model = NOISES[name](**fields)
    if isinstance(model, GaussianNoise):
        parse_sigma(str(model.sigma))  # a picture's range bounds it here as there
    return model


def is_file(value: Any) -> bool:
    """Whether a field's value is the path of a file."""
    return isinstance(value, str) and Path(value).is_file()


def public_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields with file names instead of paths."""
    return {key: Path(value).name if is_file(value) else value for key, value in fields.items()}
