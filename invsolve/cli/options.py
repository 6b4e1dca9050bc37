"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from ..devices import DTYPES
from ..noise import NOISES
from ..priors import Mode

__all__ = [
    "CacheOption",
    "DeviceOption",
    "DtypeOption",
    "GuidanceOption",
    "Inputs",
    "KernelOption",
    "MaskOption",
    "MemoryOption",
    "MetadataOption",
    "NegativeOption",
    "NoiseOption",
    "OfflineOption",
    "OperatorOption",
    "OutOption",
    "PixelsOption",
    "PriorOption",
    "PromptOption",
    "path_of",
]


def path_of(text: str) -> Path:
    """The path that was typed; an empty one would be the current folder."""
    if not text:
        raise typer.BadParameter("it is empty; name a file or a folder")
    return Path(text)


Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Pictures, folders of pictures, or globs; of folders and globs, not what invsolve wrote.",
        show_default=False,
    ),
]
OperatorOption = Annotated[
    str | None, typer.Option(help="What happened to the picture: NAME or 'NAME(field=value, ...)'.")
]
MaskOption = Annotated[
    Path | None,
    typer.Option(
        parser=path_of,
        metavar="PATH",
        help="Black and white mask picture, white = hole; or a folder of masks named like the pictures.",
    ),
]
KernelOption = Annotated[
    Path | None, typer.Option(parser=path_of, metavar="PATH", help="Picture of the blur kernel, black = 0.")
]
OutOption = Annotated[
    Path,
    typer.Option(
        "-o",
        "--out",
        parser=path_of,
        metavar="PATH",
        help="Output folder, or for one picture a .png, .tif or .tiff file.",
    ),
]
NoiseOption = Annotated[
    str | None, typer.Option(help=f"Noise model instead of --sigma: {', '.join(NOISES)}, e.g. 'poisson(peak=100)'.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        parser=path_of, metavar="PATH", help="Folder of downloaded priors; by default that of huggingface_hub."
    ),
]
PriorOption = Annotated[str, typer.Option(help="A name, or the folder of a diffusers model.")]
PromptOption = Annotated[str | None, typer.Option(help="What the pictures show, or a class; of priors that take it.")]
NegativeOption = Annotated[str | None, typer.Option(help="What they do not show; needs --guidance.")]
GuidanceOption = Annotated[
    float | None,
    typer.Option(help="How closely the prompt is followed: 1 (twice as fast) is the prompt alone, 2 to 7 more."),
]
MemoryOption = Annotated[
    str, typer.Option(help=f"Of folders and hub priors: {', '.join(get_args(Mode))}; see docs/hub-priors.md.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Take hub priors from the cache only.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or xpu, with a number such as cuda:1.")]
DtypeOption = Annotated[
    str,
    typer.Option(
        help=f"Of the network: {', '.join(DTYPES)}, or auto: bfloat16 for bundled and hub priors on a CPU with "
        "instructions for it, and for hub priors on an accelerator; else float32."
    ),
]
PixelsOption = Annotated[int, typer.Option(min=1, help="Refuse pictures with more pixels than this.")]
MetadataOption = Annotated[
    bool,
    typer.Option(
        "--keep-metadata",
        help="Copy all EXIF and XMP data.  Without it GPS position, owner, serial numbers, maker notes, comments, "
        "host, time zone and XMP stay behind; camera, lens, exposure, date, artist and copyright are copied.",
    ),
]
