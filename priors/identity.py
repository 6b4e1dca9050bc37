"""A hash that tells one prior from another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..files.atomic import sha256_of
from . import BUNDLED, PRIORS, find_card, load_cards, pull
from .files import files_within

__all__ = ["prior_sha256"]


def prior_sha256(name: str, cache_dir: Path | None = None) -> str | None:
    """A hash of the weights and configurations of a prior that has them, bundled or in a folder of its own.

    Of a prior of the hub it is that of its commit, which stands for gigabytes, and of its calibration.
    """
    folder = BUNDLED / name if name in PRIORS else Path(name)
    hashes: dict[str, str] = {}
    if not folder.is_dir():
        if name not in load_cards():
            return None
        folder = pull(name, offline=True, cache_dir=cache_dir)
        hashes = {"commit": f"{find_card(name).repo}@{folder.name}"}
        paths = sorted(folder.glob("calibration.*"))
    else:
        paths = files_within(folder)
    for path in paths:
        if path.suffix in (".safetensors", ".json", ".txt", ".model"):
            hashes[path.relative_to(folder).as_posix()] = sha256_of(path)
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
