"""A fitted conditional flow: one network per stage, and the card that says for what they were fitted."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files.atomic import atomic_folder
from ..operators.base import Operator, PinvOperator, Shape
from ..priors.base import Prior
from ..priors.files import CANNOT_HELP
from ..problem import Problem, first_guess
from ..rng import ImageRng
from ..spec import format_spec
from .networks import NetworkKind, StageNetwork

__all__ = ["FittedFlow", "FlowCard", "condition", "does_the_same", "load_fitted", "new_flow", "operator_text"]

CARD, WEIGHTS = "card.json", "flow.safetensors"
FORMAT = 3  # one more with every change of the networks
SAME = 1e-3  # mean relative difference on the probe up to which two operators count as one: rounding is far below

Draw = Callable[[tuple[int, ...]], Tensor]  # normal numbers (B, *shape) for the shape of one row


@dataclass(frozen=True, kw_only=True)
class FlowCard:
    """What a flow was fitted for, and how.

    Arguments:
        operator: its text.
        noise: the text of the noise model.
        prior: where the pictures came from.
        image_shape: (C, H, W) of the pictures.
        levels: shapes of the latents from the coarsest level to the finest.
        stages: networks per level.
        first: what the first stage of a level has learned from, "score" or "flow".
        network: "experts" or "unet".
        width: of the U-Nets, or of what gives the shares of experts that are not drawn.
        level_noise: standard deviation of what is added where a level doubles the resolution.
        format: of the networks; flows of other versions are refused.
        about: settings, software and whatever else is to be remembered.
    """

    operator: str
    noise: str
    prior: str
    image_shape: Shape
    levels: tuple[Shape, ...]
    stages: int
    first: Literal["score", "flow"]
    network: NetworkKind
    width: int
    level_noise: float = 0.0
    format: int = FORMAT
    about: dict[str, Any] = field(default_factory=dict)


class FittedFlow(nn.Module):
    """Samples of p(x | y) for one operator and one noise model, from one pass through a chain of small networks.

    x starts as noise with the mean and the spread of the pictures; every stage takes x <- x - Phi_k(x, c), c being the
    data as a picture; where a level begins, pixels are doubled and noise is added.

    Arguments:
        card: what it is for; the networks are new until `load_state_dict`.
        data_shape: of one measurement.
        decoded_shape: of what the prior's decoder makes of one latent; empty for flows of pixels.
    """

    mean: Tensor
    spread: Tensor
    probe: Tensor
    decoded: Tensor

    def __init__(self, card: FlowCard, data_shape: tuple[int, ...], decoded_shape: tuple[int, ...] = (0,)) -> None:
        super().__init__()
        self.card = card
        self.register_buffer("mean", torch.zeros(card.levels[0]))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("probe", torch.zeros(data_shape))
        self.register_buffer("decoded", torch.zeros(decoded_shape))
        self.stages = nn.ModuleList(
            StageNetwork(
                card.network,
                card.width,
                card.image_shape,
                shape,
                drawn=place == 0 and card.first == "score",
                blind=level == place == 0 and card.first == "score",
            )
            for level, shape in enumerate(card.levels)
            for place in range(card.stages)
        )

    def network(self, k: int) -> StageNetwork:
        """Phi_k."""
        network = self.stages[k]
        assert isinstance(network, StageNetwork)
        return network

    def begin(self, draw: Draw) -> Tensor:
        """The start x_0 (B, *coarsest shape)."""
        return self.mean + self.spread * draw(self.card.levels[0])

    def enter(self, k: int, x: Tensor, draw: Draw) -> Tensor:
        """What stage k sees of x: where a level begins, its pixels doubled, with fresh noise."""
        if k == 0 or k % self.card.stages:
            return x
        shape = self.card.levels[k // self.card.stages]
        return F.interpolate(x, shape[1:]) + self.card.level_noise * draw(shape)

    def advance(self, k: int, x: Tensor, c: Tensor, draw: Draw) -> Tensor:
        """Stage k for x (B, *shape before it) and conditions c (B, *image_shape)."""
        x = self.enter(k, x, draw)
        moved: Tensor = self.network(k)(x, c, self.choice(k, x, draw))
        return x - moved

    def choice(self, k: int, x: Tensor, draw: Draw) -> Tensor:
        """The numbers u (B,), uniform on [0, 1], that choose the answers of stage k; zeros where it has one only."""
        return torch.special.ndtr(draw((1,))).flatten() if self.network(k).drawn else x.new_zeros(len(x))

    def check(self, problem: Problem, prior: Prior) -> None:
        """Refuse a problem that the flow was not fitted for.

        Raises:
            ValueError: another operator, noise, picture size or latent.
        """
        operator, card = problem.operator, self.card
        same = tuple(card.image_shape) == operator.image_shape and tuple(self.probe.shape) == operator.data_shape
        if not (same and does_the_same(operator, self.probe) and card.noise == str(problem.noise)):
            raise ValueError(
                f"This flow was fitted for {card.operator} on pictures {tuple(card.image_shape)} with {card.noise}, "
                f"and the problem has {operator_text(operator)} on {operator.image_shape} with {problem.noise}; fit "
                "another one with `invsolve fit`, or choose another solver."
            )
        latent = prior.latent_shape(operator.image_shape)
        decoded = decoder_probe(prior, latent).to(self.decoded)
        if tuple(latent) != tuple(card.levels[-1]) or not _alike(decoded, self.decoded):
            raise ValueError(
                f"This flow makes latents {tuple(card.levels[-1])} of {card.prior}, and the given prior has latents "
                f"{latent} or another decoder; use the prior it was fitted with."
            )

    def save(self, folder: Path) -> None:
        """Write card.json and flow.safetensors; the folder appears complete or not at all."""
        with atomic_folder(folder) as work:
            save_file({name: t.contiguous() for name, t in self.state_dict().items()}, work / WEIGHTS)
            (work / CARD).write_text(json.dumps(asdict(self.card), indent=2, allow_nan=False) + "\n")


def load_fitted(folder: str | Path) -> FittedFlow:
    """Read what `FittedFlow.save` wrote; the second time from memory, unless the folder has changed.

    Raises:
        ValueError: the folder holds no fitted flow, or a damaged one.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no fitted flow ({CARD} is missing); make one with `invsolve fit -o {folder}`."
        )
    return _load(str(path.parent.resolve()), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(folder: str, _changed: int) -> FittedFlow:
    try:
        content = json.loads((Path(folder) / CARD).read_text())
        if not isinstance(content, dict):
            raise ValueError("its card holds no names and values")
        if content.get("format") != FORMAT:
            raise ValueError("it is of another version of invsolve")
        content["image_shape"] = tuple(content["image_shape"])
        content["levels"] = tuple(tuple(shape) for shape in content["levels"])
        card = TypeAdapter(FlowCard).validate_python(content)
        tensors = load_file(Path(folder) / WEIGHTS)
        with torch.random.fork_rng(devices=[]):  # the weights drawn first are not wanted
            flow = FittedFlow(card, tuple(tensors["probe"].shape), tuple(tensors["decoded"].shape))
        flow.load_state_dict(tensors)
    except CANNOT_HELP:
        raise
    except Exception as error:  # of pydantic, torch and safetensors, each with its own for the same few causes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"The fitted flow in {folder} cannot be used ({reason}); fit it again with --overwrite."
        ) from error
    return flow.requires_grad_(False).eval()


def new_flow(card: FlowCard, operator: Operator, seed: int, prior: Prior | None = None) -> FittedFlow:
    """A flow for this operator whose networks are yet to be trained.

    Arguments:
        card: what it is for.
        operator: A.
        seed: of the first weights of the networks.
        prior: whose latents it makes, where they are not pictures.
    """
    decoded = torch.zeros(0) if prior is None else decoder_probe(prior, card.levels[-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = FittedFlow(card, operator.data_shape, tuple(decoded.shape))
    flow.probe.copy_(probe(operator))
    flow.decoded.copy_(decoded)
    return flow


def operator_text(operator: Operator) -> str:
    """Name and fields, or the class where the operator was not made from a name."""
    if operator.spec is None:
        return type(operator).__name__
    return format_spec(operator.spec["name"], {key: value for key, value in operator.spec.items() if key != "name"})


def probe(operator: Operator) -> Tensor:
    """What the operator makes of one fixed picture (*data_shape): tells operators apart whatever they are called."""
    device = next((buffer.device for buffer in operator.buffers()), torch.device("cpu"))
    x = ImageRng([0]).randn(operator.image_shape, dtype=torch.float32)
    return operator((x / 3).clamp(-1, 1).to(device))[0]


def does_the_same(operator: Operator, stored: Tensor) -> bool:
    """Whether the operator makes of the probe what is stored: its text may not tell, a mask is a file name there."""
    seen = probe(operator).to(stored)
    masks_differ = operator.data_mask is not None and not torch.equal(seen == 0, stored == 0)
    return _alike(seen, stored) and not masks_differ  # one pixel more or less is little in the mean


def decoder_probe(prior: Prior, latent_shape: Shape) -> Tensor:
    """What the decoder of a prior makes of one fixed latent (C, H, W); empty if there is none."""
    if not prior.has_decoder:
        return torch.zeros(0)
    device = next((tensor.device for tensor in (*prior.parameters(), *prior.buffers())), torch.device("cpu"))
    return prior.decode(ImageRng([0]).randn(latent_shape, dtype=torch.float32).to(device))[0]


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two probes are equal but for rounding."""
    return a.shape == b.shape and bool((a - b).abs().sum() <= SAME * b.abs().sum())


def condition(problem: Problem) -> Tensor:
    """The data as a picture (B, *image_shape) for the networks: `first_guess`, or y resized without pseudo-inverse.

    Raises:
        ValueError: the operator has no pseudo-inverse, and its data is not shaped like a picture.
    """
    operator, y = problem.operator, problem.y
    if isinstance(operator, PinvOperator):
        return first_guess(problem).float()
    if y.ndim != 4 or y.shape[1] > operator.image_shape[0]:
        raise ValueError(
            f"The data of {type(operator).__name__} {operator.data_shape} is not a picture, and it has no "
            "pseudo-inverse that would make one of it; a conditional flow needs one of the two."
        )
    y = F.interpolate(y, operator.image_shape[1:], mode="bilinear", antialias=True)
    return (y.expand(-1, operator.image_shape[0], -1, -1) if y.shape[1] == 1 else y).float()
