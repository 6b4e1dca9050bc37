"""Memory that the priors of the hub need, calculated without their weights; and a check of their numbers of parameters.

    python scripts/hub_memory.py > table.md
    python scripts/hub_memory.py --priors sd1.5 flux.1-dev
    python scripts/hub_memory.py --check

The models are built from their published configs (hub_configs.yaml) on the meta device, where tensors have sizes and no
data.  --check compares their numbers of parameters with priors/cards.yaml and exits with 1 if any differ.  The table is
in GB (1e9 bytes) for one picture of the training size:

    fast      2 N + 4 A + F + G
    balanced  2 N + 4 A + F + G'
    low       2 (2 N / blocks) + 4 A + F + G', with the tiny autoencoder if there is one

    N   elements of the network (bfloat16), with buffers; in `low` two of its blocks are there at a time
    A   elements of the autoencoder (float32), with buffers
    F   the network's prediction for one row, without a gradient; guidance by two rows doubles it
    G   the decoder and its gradient with respect to the latent, every activation kept
    G'  the same in tiles of 512 pixels that overlap by 128, each recomputed for the gradient, block by block where the
        autoencoder can (AutoencoderDC cannot)

F, G and G' are the most bytes in storages that are alive at once, besides the weights, over all operations that torch
runs, forwards and backwards; attention counts as its fused kernel, which keeps no matrix of all pairs.  Not counted:
memory inside kernels, fragmentation, the CUDA context, the solver's own tensors, gradients through the network.  F + G
is an upper bound: a step that ends the one before it starts the other needs only the larger.  Text encoders come before
all this and are freed; their column is the weights of all of them in bfloat16.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
import torch.nn.functional as F
import transformers
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from invsolve.priors.backbone import Backbone
from invsolve.priors.backbones import BACKBONES, find_backbone
from invsolve.priors.encoders import TRANSFORMERS
from invsolve.priors.hub import Card, load_cards
from invsolve.priors.latent import AUTOENCODERS, LatentPrior
from invsolve.priors.tiles import tiled

CONFIGS = yaml.safe_load((Path(__file__).parent / "hub_configs.yaml").read_text())
TILE = 512
META = torch.device("meta")


class Peak(TorchDispatchMode):
    """The most bytes that were alive at once in storages made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_iter((args, kwargs)):
            if isinstance(x, Tensor):
                self.known.setdefault(x.untyped_storage(), None)  # first seen as an input: a weight
        out = func(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, Tensor) and (storage := x.untyped_storage()) not in self.known:
                self.known[storage] = weakref.finalize(storage, self._add, -storage.nbytes())
                self._add(storage.nbytes())
        return out

    def _add(self, nbytes: int) -> None:
        self.now += nbytes
        self.most = max(self.most, self.now)


def peak(run: Callable[[], Any]) -> int:
    """Bytes that `run` needs at once, with attention that keeps its inputs, its result and one number per row."""

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True)[0]

    with mock.patch.object(F, "scaled_dot_product_attention", attention), Peak() as mode:
        run()
    return mode.most


def build(library: Any, config: dict[str, Any]) -> Any:
    """A model of diffusers or transformers on the meta device, of a class that invsolve loads."""
    if config["_class_name"] not in (*BACKBONES, *AUTOENCODERS, *TRANSFORMERS):
        raise ValueError(f"invsolve loads no {config['_class_name']!r}; correct hub_configs.yaml.")
    kind, fields = getattr(library, config["_class_name"]), {k: v for k, v in config.items() if k != "_class_name"}
    with META:
        return (kind(kind.config_class(**fields)) if library is transformers else kind(**fields)).requires_grad_(False)


def build_prior(name: str, card: Card) -> tuple[Backbone, Any | None, list[nn.Module]]:
    """Network, autoencoder and text encoders of a prior."""
    config = {"_class_name": card.network, **CONFIGS["networks"][name]}
    network = build(diffusers, config).to(torch.bfloat16)
    coder = None if card.latent_channels is None else build(diffusers, CONFIGS["autoencoders"][card.latent_channels])
    encoders = [build(transformers, config) for config in CONFIGS["text"].get(name, [])]
    return find_backbone(config)[1](network, card.factor), coder, encoders


def count(*modules: nn.Module | None) -> int:
    """Parameters."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def nbytes(module: nn.Module | None) -> int:
    """Bytes of parameters and buffers."""
    return 0 if module is None else sum(x.nbytes for x in (*module.parameters(), *module.buffers()))


def predict(backbone: Backbone, card: Card) -> int:
    """F of the docstring."""
    side = card.size // card.factor
    condition = backbone.zeros() | ({"guidance": torch.ones(1)} if backbone.embeds_guidance else {})

    def run() -> None:
        x = torch.empty(1, backbone.channels, side, side, device=META)
        with torch.no_grad():
            backbone(x, torch.empty(1, device=META), condition)

    return peak(run)


def decode(coder: Any | None, card: Card, in_tiles: bool) -> int:
    """G of the docstring; with tiles G'."""
    if coder is None:
        return 0
    if in_tiles and coder._supports_gradient_checkpointing:
        coder.enable_gradient_checkpointing()
    factor = LatentPrior.factor_of(coder)
    side = (TILE if in_tiles else card.size) // factor

    def whole(z: Tensor) -> Tensor:
        x: Tensor = coder.decode(z).sample
        return x

    def run() -> None:
        shape = (1, coder.config.latent_channels, card.size // factor, card.size // factor)
        z = torch.empty(shape, device=META, requires_grad=True)
        x = tiled(whole, z, size=side, overlap=side // 4, scale=factor, checkpoint=in_tiles)
        torch.autograd.grad(x, z, torch.ones_like(x))

    return peak(run)


def row(name: str, card: Card) -> list[str]:
    """Of the table."""
    backbone, coder, encoders = build_prior(name, card)
    blocks = sum(
        len(m) if isinstance(m, nn.ModuleList) else k == "mid_block" for k, m in backbone.network.named_children()
    )
    network, forward, kept = nbytes(backbone.network), predict(backbone, card), decode(coder, card, in_tiles=False)
    tiles = small_tiles = decode(coder, card, in_tiles=True)
    small = coder
    if card.tiny_autoencoder is not None:
        small = build(diffusers, {"_class_name": "AutoencoderTiny", "latent_channels": card.latent_channels})
        small_tiles = decode(small, card, in_tiles=True)
    parts = [network, nbytes(coder), forward, kept, tiles]
    needs = [network + nbytes(coder) + forward + gradient for gradient in (kept, tiles)]
    needs += [2 * network // blocks + nbytes(small) + forward + small_tiles, 2 * count(*encoders)]
    return [name, str(card.size), *(f"{n / 1e9:.2f}" for n in parts), *(f"{n / 1e9:.1f}" for n in needs)]


def is_right(name: str, card: Card) -> bool:
    """Whether the numbers of parameters are those of the card; says so if not."""
    backbone, coder, encoders = build_prior(name, card)
    counted = {"network": count(backbone.network), "autoencoder": count(coder), "text": count(*encoders)}
    if counted != (said := card.parameters.model_dump()):
        print(f"{name}: cards.yaml says {said}, counted are {counted}")
    return counted == said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--priors", nargs="+", default=list(load_cards()), choices=list(load_cards()), metavar="NAME")
    parser.add_argument("--check", action="store_true", help="compare the numbers of parameters with cards.yaml only")
    args = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    cards = {name: load_cards()[name] for name in args.priors}
    if args.check:
        wrong = [name for name, card in cards.items() if not is_right(name, card)]
        raise SystemExit(1 if wrong else 0)
    head = ["prior", "picture", "2 N", "4 A", "F", "G", "G'", "fast", "balanced", "low", "text encoders"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, card in cards.items():
        print("| " + " | ".join(row(name, card)) + " |", flush=True)


if __name__ == "__main__":
    main()
