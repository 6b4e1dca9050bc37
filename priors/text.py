"""Prompts: texts become conditions by a pipeline's own text encoders, once, and are kept on disk.

Encoders are loaded without the rest of the pipeline, used, and freed before any other network is there.  The cache is
keyed by the encoders' files and the text, so that a second run with the same prompt loads no encoder.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .backbone import Backbone, Condition
from .encoders import check_parts, load_encoders
from .files import CANNOT_HELP, short
from .memory import SHARE, free_memory, stored_parameters
from .prompts import Prompts

__all__ = ["cache_folder", "encode_texts", "has_encoders"]

LOG = logging.getLogger("invsolve")
EDGE = 1 << 16  # bytes at both ends of a weights file that, with its size, tell it from others


def cache_folder() -> Path:
    """Where invsolve keeps what it can make again: $INVSOLVE_CACHE, or invsolve in the user's cache folder."""
    own = os.environ.get("INVSOLVE_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "invsolve"


def encode_texts(
    folder: Path, kind: type[Backbone], texts: Iterable[str], dtype: torch.dtype, prompts: Prompts
) -> dict[str, Condition]:
    """The conditions of texts, from the cache or by the text encoders of the pipeline in the folder.

    Arguments:
        folder: of a diffusers pipeline.
        kind: whose pipeline encodes.
        texts: what to encode.
        dtype: of the encoders.
        prompts: for its device and cache.

    Raises:
        ValueError: the folder has no text encoders, or they cannot be read.
    """
    texts = list(texts)
    if not texts:
        return {}
    if not _encoder_files(folder):
        raise ValueError(
            f"{folder} has no text encoder, so it takes no prompt; leave the prompt out, or download it whole."
        )
    check_parts(folder, kind.pipeline)
    identity = _identity(folder, kind.pipeline, dtype)
    cache = (prompts.cache or cache_folder()) / "prompts"
    paths = {
        text: cache / f"{hashlib.sha256((identity + text).encode()).hexdigest()[:32]}.safetensors" for text in texts
    }
    known = {text: loaded for text, path in paths.items() if (loaded := _read(path, kind)) is not None}
    missing = [text for text in texts if text not in known]
    if missing:
        known |= _encode(folder, kind, missing, dtype, prompts.device)
        for text in missing:
            _write(paths[text], known[text])
    return known


def has_encoders(folder: Path) -> bool:
    """Whether the folder of a pipeline has text encoders."""
    return bool(_encoder_files(folder))


def _encoder_files(folder: Path) -> list[Path]:
    return sorted(
        path for part in ("text_encoder*", "tokenizer*") for path in folder.glob(f"{part}/*") if path.is_file()
    )


def _identity(folder: Path, pipeline: str, dtype: torch.dtype) -> str:
    """A hash of the encoders' files: names, sizes and both ends, which is where safetensors keep what is in them."""
    digest = hashlib.sha256(f"{pipeline} {dtype}".encode())
    for path in _encoder_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(size - EDGE, 0))
            digest.update(file.read(EDGE))
    return digest.hexdigest()


def _encode(
    folder: Path, kind: type[Backbone], texts: list[str], dtype: torch.dtype, device: torch.device
) -> dict[str, Condition]:
    """Load the encoders, use them, and free them; on the CPU where the device has no room for them."""
    numbers = sum(stored_parameters(path) for path in folder.glob("text_encoder*"))
    if device.type != "cpu" and numbers * dtype.itemsize > SHARE * free_memory(device):
        LOG.info("The text encoders do not fit on the device; the prompt is encoded on the CPU.")
        device = torch.device("cpu")
    pipeline = load_encoders(folder, kind.pipeline, dtype).to(device)
    encoded = {text: _embeddings(pipeline, kind, text, folder, device) for text in texts}
    del pipeline
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return encoded


@torch.no_grad()
def _embeddings(pipeline: Any, kind: type[Backbone], text: str, folder: Path, device: torch.device) -> Condition:
    """The condition of one text, on the CPU; encoders in half precision that overflow go on in float32."""
    try:
        condition = ENCODE[kind.pipeline](pipeline, text, device)
        if not _finite(condition) and pipeline.dtype in (torch.float16, torch.bfloat16):
            LOG.warning("The text encoders gave values that are not finite in half precision; they go on in float32.")
            pipeline.to(torch.float32)
            condition = ENCODE[kind.pipeline](pipeline, text, device)
    except CANNOT_HELP:
        raise
    except Exception as error:  # of whatever the encoders are, if they are not those of this pipeline
        raise ValueError(
            f"The text encoders in {folder} cannot encode a prompt ({short(error, folder)}); save or download the "
            "prior again."
        ) from error
    if not _finite(condition):
        raise ValueError(f"The text encoders in {folder} gave values that are not finite; download the prior again.")
    return {name: value.cpu().contiguous() for name, value in condition.items()}


def _finite(condition: Condition) -> bool:
    return all(bool(value.isfinite().all()) for value in condition.values())


def _of_sd(pipeline: Any, text: str, device: torch.device) -> dict[str, Tensor]:
    return {"encoder_hidden_states": pipeline.encode_prompt(text, device, 1, False)[0]}


def _of_sdxl(pipeline: Any, text: str, device: torch.device) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipeline.encode_prompt(text, device=device, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeds, "text_embeds": pooled}


def _of_sd3(pipeline: Any, text: str, device: torch.device) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipeline.encode_prompt(text, None, None, device=device, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def _of_flux(pipeline: Any, text: str, device: torch.device) -> dict[str, Tensor]:
    embeds, pooled, _ = pipeline.encode_prompt(text, None, device=device)
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def _of_sana(pipeline: Any, text: str, device: torch.device) -> dict[str, Tensor]:
    embeds, mask, _, _ = pipeline.encode_prompt(text, False, device=device)
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


ENCODE: dict[str, Callable[[Any, str, torch.device], dict[str, Tensor]]] = {
    "StableDiffusionPipeline": _of_sd,
    "StableDiffusionXLPipeline": _of_sdxl,
    "StableDiffusion3Pipeline": _of_sd3,
    "FluxPipeline": _of_flux,
    "SanaPipeline": _of_sana,
}


def _read(path: Path, kind: type[Backbone]) -> Condition | None:
    """What the cache has; what is damaged counts as none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        condition = load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    return condition if set(condition) == set(kind.text_keys) and _finite(condition) else None


def _write(path: Path, condition: Condition) -> None:
    """Keep a condition, whole or not at all; a cache that cannot be written is none."""
    from safetensors.torch import save

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            part.write(save(dict(condition)))
        Path(part.name).replace(path)
    except OSError as error:
        LOG.warning("The prompt cache cannot be written (%s); the prompt will be encoded again next time.", error)
