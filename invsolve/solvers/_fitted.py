"""A fitted conditional flow: a start, one network per stage, and the card that says for what they were fitted."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..images import atomic_folder
from ..operators.base import Operator, PinvOperator, Shape
from ..priors.base import Prior
from ..problem import Problem
from ..rng import ImageRng
from ._pieces import first_guess

__all__ = ["Card", "FittedFlow", "NetworkKind", "condition", "load_fitted", "probe"]

NetworkKind = Literal["mlp", "unet"]
CARD, WEIGHTS = "card.json", "flow.safetensors"
FULL = 1024  # most latent entries whose covariance is kept as a matrix; beyond, only their variances
GAIN = 2.5  # brings pictures in [-1, 1] to where the units of a new network bend
SAME = 1e-3  # by how much two operators may differ on the probe: far more than rounding, less than a grey level


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a flow was fitted for, and how.

    Arguments:
        operator: its text.
        noise: the text of the noise model.
        prior: where the pictures came from.
        image_shape: (C, H, W) of the pictures.
        levels: shapes of the latents from the coarsest level to the finest.
        stages: networks per level.
        start: "regression" or "noise", see `FittedFlow`.
        network: "mlp" or "unet".
        width: of the networks.
        level_noise: standard deviation of what is added where a level doubles the resolution.
        about: settings, software and whatever else is to be remembered.
    """

    operator: str
    noise: str
    prior: str
    image_shape: Shape
    levels: tuple[Shape, ...]
    stages: int
    start: Literal["regression", "noise"]
    network: NetworkKind
    width: int
    level_noise: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)


class MLP(nn.Module):
    """A residual network on flattened pictures, with a linear way around it; zero at first.

    Arguments:
        size_in: entries of the input.
        size_out: entries of the output.
        width: of the hidden layers.
    """

    def __init__(self, size_in: int, size_out: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size_in, size_out)
        self.first = nn.Linear(size_in, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(2)
        )
        self.last = nn.Linear(width, size_out)
        for layer in (self.linear, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor) -> Tensor:
        flat = h.flatten(1)
        h = self.first(GAIN * flat)
        for block in self.blocks:
            h = h + block(h)
        return self.linear(flat) + self.last(F.silu(h))


class UNet(nn.Module):
    """A small U-Net of diffusers without attention; zero at first.

    Arguments:
        channels_in: channels of the input.
        channels_out: channels of the output.
        size: (h, w); the resolution is halved while it is even and more than 4, twice at most.
        width: channels of the first level, a multiple of 8.
    """

    def __init__(self, channels_in: int, channels_out: int, size: tuple[int, int], width: int) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        halvings = next(k for k in (2, 1, 0) if all(n % 2**k == 0 and (n > 2 ** (k + 1) or k == 0) for n in size))
        widths = tuple(width * 2**k for k in range(halvings + 1))
        self.net = UNet2DModel(
            in_channels=channels_in,
            out_channels=channels_out,
            block_out_channels=widths,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            layers_per_block=1,
            norm_num_groups=8,
            add_attention=False,
        )
        nn.init.zeros_(self.net.conv_out.weight)
        nn.init.zeros_(self.net.conv_out.bias)

    def forward(self, h: Tensor) -> Tensor:
        return self.net(h, 0).sample


class Network(nn.Module):
    """Phi(x, c): what is taken off latents x (B, *shape) given the condition c (B, *image_shape).

    The condition is brought to the resolution of x without loss, several pixels becoming channels of one, where the one
    is a multiple of the other, and is averaged where it is not.
    """

    def __init__(self, card: Card, shape: Shape) -> None:
        super().__init__()
        (channels, height, width), (_, rows, columns) = card.image_shape, shape
        divides = height % rows == 0 and width % columns == 0 and height // rows == width // columns
        self.fold, self.shape = height // rows if divides else 0, shape
        channels_in = shape[0] + channels * (self.fold**2 if divides else 1)
        if card.network == "mlp":
            size = rows * columns
            self.net: nn.Module = MLP(channels_in * size, shape[0] * size, card.width)
        else:
            self.net = UNet(channels_in, shape[0], (rows, columns), card.width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        c = F.pixel_unshuffle(c, self.fold) if self.fold else F.adaptive_avg_pool2d(c, self.shape[1:])
        return self.net(torch.cat([x, c], dim=1)).reshape(x.shape)


class FittedFlow(nn.Module):
    """Samples of p(x | y) for one operator and one noise model, from one pass through a chain of small networks.

    With start = "regression" a first network gives about E[x | y] at the coarsest level, and noise with the covariance
    of its errors is added; with "noise" the start is noise alone, with the mean and the spread of all pictures.  Then
    every stage takes x <- x - Phi_k(x, c); where a level ends, pixels are doubled and noise is added.

    Arguments:
        card: what it is for; the networks are new until `load_state_dict`.
        data_shape: of one measurement.
    """

    mean: Tensor
    root: Tensor
    probe: Tensor

    def __init__(self, card: Card, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.card = card
        first = card.levels[0]
        size = first[0] * first[1] * first[2]
        self.register_buffer("mean", torch.zeros(first))
        self.register_buffer("root", torch.zeros((size, size) if size <= FULL else (size,)))
        self.register_buffer("probe", torch.zeros(data_shape))
        self.guess = Network(card, first) if card.start == "regression" else None
        self.stages = nn.ModuleList(Network(card, shape) for shape in card.levels for _ in range(card.stages))

    def begin(self, c: Tensor, rng: ImageRng) -> Tensor:
        """The start x_0 (B, *coarsest shape) for conditions c (B, *image_shape)."""
        noise = rng.randn(self.card.levels[0], dtype=torch.float32, device=c.device).flatten(1)
        noise = noise @ self.root.T if self.root.ndim == 2 else noise * self.root
        return self.centre(c.float()) + noise.reshape(-1, *self.card.levels[0])

    def centre(self, c: Tensor) -> Tensor:
        """The mean of the start (B, *coarsest shape)."""
        mean = self.mean.expand(len(c), *self.card.levels[0])
        return mean if self.guess is None else mean + self.guess(torch.zeros_like(mean), c)

    def advance(self, k: int, x: Tensor, c: Tensor, rng: ImageRng) -> Tensor:
        """Stage k, with the change of level before it if there is one."""
        if k and k % self.card.stages == 0:
            x = self.refine(x, k // self.card.stages, rng)
        return x - self.stages[k](x, c.float())

    def refine(self, x: Tensor, level: int, rng: ImageRng) -> Tensor:
        """X brought to the resolution of a level, with fresh noise."""
        x = F.interpolate(x, self.card.levels[level][1:])
        return x + self.card.level_noise * rng.randn_like(x)

    def check(self, problem: Problem, prior: Prior) -> None:
        """Refuse a problem that the flow was not fitted for.

        Raises:
            ValueError: another operator, noise, picture size or latent.
        """
        operator, card = problem.operator, self.card
        latent = tuple(prior.latent_shape(operator.image_shape))
        same = tuple(card.image_shape) == operator.image_shape and tuple(self.probe.shape) == operator.data_shape
        if same:
            difference = probe(operator).to(self.probe) - self.probe
            same = bool(difference.abs().max() <= SAME * self.probe.abs().max())
        if not (same and card.noise == str(problem.noise)):
            asked = type(operator).__name__ if operator.spec is None else operator.spec["name"]
            raise ValueError(
                f"This flow was fitted for {card.operator} with {card.noise} on pictures {tuple(card.image_shape)}, not "
                f"for {asked} with {problem.noise} on {operator.image_shape}"
                + (", or not for these values of its fields" if same is False and asked in card.operator else "")
                + "; fit another one with `invsolve fit`, or choose another solver."
            )
        if latent != tuple(card.levels[-1]):
            raise ValueError(
                f"This flow makes latents {tuple(card.levels[-1])} of the prior {card.prior}, and the given prior has "
                f"latents {latent}; use the prior it was fitted with."
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
    return _load(str(folder), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(folder: str, _changed: int) -> FittedFlow:
    try:
        content = json.loads((Path(folder) / CARD).read_text())
        content["image_shape"] = tuple(content["image_shape"])
        content["levels"] = tuple(tuple(shape) for shape in content["levels"])
        card = TypeAdapter(Card, config=ConfigDict(extra="forbid")).validate_python(content)
        tensors = load_file(Path(folder) / WEIGHTS)
        flow = FittedFlow(card, tuple(tensors["probe"].shape))
        flow.load_state_dict(tensors)
    except (ValidationError, ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"The fitted flow in {folder} is damaged ({reason}); fit it again.") from None
    return flow.requires_grad_(False).eval()


def probe(operator: Operator) -> Tensor:
    """What the operator makes of one fixed picture (*data_shape): tells operators apart whatever they are called."""
    device = next((buffer.device for buffer in operator.buffers()), torch.device("cpu"))
    x = ImageRng([0]).randn(operator.image_shape, dtype=torch.float32)
    return operator((x / 3).clamp(-1, 1).to(device))[0]


def condition(problem: Problem) -> Tensor:
    """The data as a picture (B, *image_shape): `first_guess`, or y resized where the operator has no pseudo-inverse.

    Raises:
        ValueError: the operator has no pseudo-inverse, and its data is not shaped like a picture.
    """
    operator, y = problem.operator, problem.y
    if isinstance(operator, PinvOperator):
        return first_guess(problem)
    if y.ndim != 4 or y.shape[1] > operator.image_shape[0]:
        raise ValueError(
            f"The data of {type(operator).__name__} {operator.data_shape} is not a picture, and it has no pseudo-inverse "
            "that would make one of it; a conditional flow needs one of the two."
        )
    y = F.interpolate(y, operator.image_shape[1:], mode="bilinear", antialias=True)
    return y.expand(-1, operator.image_shape[0], -1, -1) if y.shape[1] == 1 else y
