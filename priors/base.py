"""The one interface of all priors, and the wrappers that change what a prior is seen as."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..linalg import expand_to
from .schedule import Schedule

__all__ = ["Endpoints", "Guided", "Metered", "Prior", "Rescheduled", "Shape", "Wrapper"]

Shape = tuple[int, int, int]  # (C, H, W), no batch axis


class Endpoints(NamedTuple):
    """The two ends of the path through z_t: z_t = alpha_t * clean + sigma_t * noise."""

    clean: Tensor  # E[z_0 | z_t]  (B, *latent_shape)
    noise: Tensor  # E[eps | z_t]  (B, *latent_shape)


class Prior(nn.Module, abc.ABC):
    """A pretrained model of images.  t = 0 is data, t = 1 is noise; images are in [-1, 1].

    Velocity and score follow from `predict`: v = clean * alpha' + noise * sigma', score = -noise / sigma.
    """

    schedule: Schedule
    channels: int | None = None  # image channels it knows; None: any
    calls_per_predict: int = 1  # network calls behind one prediction
    memory_mode: str = "fast"  # of `memory.py`, in which it was loaded
    name: str = ""  # in PRIORS, of a bundled one
    calibration: Tensor | None = None  # squared velocity error per element at uniform flow times from 1 to 0

    @abc.abstractmethod
    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        """Posterior means of both ends of the path; the only network call.

        Arguments:
            z: (B, *latent_shape).
            t: time in [0, 1], a scalar tensor or (B,), of any floating dtype; both ends have the dtype of z.
        """

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to latents; the identity for pixel priors."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Latents to images (B, C, H, W); the identity for pixel priors."""
        return z

    @property
    def has_decoder(self) -> bool:
        """Whether latents are something else than pictures: false for pixel priors."""
        return type(self).decode is not Prior.decode

    def latent_shape(self, image_shape: Shape) -> Shape:
        """Shape of the latent of one image."""
        return image_shape

    def checkpoint_gradients(self) -> None:
        """From now on gradients recompute the activations of networks and decoders instead of storing them.

        Less memory for one more forward pass, the same numbers; models that cannot, and exact priors, stay as they are.
        """
        module: Any  # those that can are of diffusers, and windows
        for module in self.modules():
            if getattr(module, "_supports_gradient_checkpointing", False):
                module.enable_gradient_checkpointing()
            elif isinstance(getattr(module, "checkpoint", None), bool):
                module.checkpoint = True

    @contextmanager
    def checkpointed(self) -> Iterator[None]:
        """Inside, gradients recompute the activations; afterwards they are as they were."""
        module: Any
        before = []
        for module in self.modules():
            if getattr(module, "_supports_gradient_checkpointing", False):
                before.append((module, module.is_gradient_checkpointing))
            elif isinstance(getattr(module, "checkpoint", None), bool):
                before.append((module, module.checkpoint))
        self.checkpoint_gradients()
        try:
            yield
        finally:
            for module, was in before:
                if not isinstance(getattr(module, "checkpoint", None), bool):
                    if not was:
                        module.disable_gradient_checkpointing()
                else:
                    module.checkpoint = was

    @property
    def placed(self) -> bool:
        """Whether a part of it must stay where it is: weights of few bits, or that come block by block."""
        return any(getattr(module, "stays", False) for module in self.modules())

    def known_as(self, prior: Prior) -> Self:
        """This prior with the name, the memory mode and the calibration of another one that it is seen from."""
        self.name, self.memory_mode, self.calibration = prior.name, prior.memory_mode, prior.calibration
        return self

    def sized(self, image_shape: Shape) -> Prior:  # noqa: ARG002
        """This prior for pictures of one size (C, H, W); itself, unless `decode` must crop."""
        return self

    def prompted(self, prompt: str) -> Prior:
        """This prior under another of the prompts that it was loaded with.

        Raises:
            ValueError: it was not loaded with that one, or takes none.
        """
        if prompt:
            raise ValueError(f"{type(self).__name__} takes no prompt, got {prompt!r}; leave it out.")
        return self

    def at(self, t: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
        """The point alpha_t * clean + sigma_t * noise of the path."""
        alpha, sigma = (expand_to(a.to(clean), clean) for a in self.schedule(t))
        return alpha * clean + sigma * noise


class Wrapper(Prior, abc.ABC):
    """A prior seen another way: what is not changed is that of the prior inside.

    Arguments:
        prior: the prior inside.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior, self.schedule, self.channels = prior, prior.schedule, prior.channels
        self.calls_per_predict = prior.calls_per_predict
        self.known_as(prior)

    @abc.abstractmethod
    def around(self, prior: Prior) -> Wrapper:
        """The same around another prior."""

    def encode(self, x: Tensor) -> Tensor:
        return self.prior.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.prior.decode(z)

    @property
    def has_decoder(self) -> bool:
        return type(self).decode is not Wrapper.decode or self.prior.has_decoder

    def latent_shape(self, image_shape: Shape) -> Shape:
        return self.prior.latent_shape(image_shape)

    def sized(self, image_shape: Shape) -> Wrapper:
        return self._with(self.prior.sized(image_shape))

    def prompted(self, prompt: str) -> Wrapper:
        return self._with(self.prior.prompted(prompt))

    def _with(self, prior: Prior) -> Wrapper:
        return self.around(prior).known_as(self)


class Rescheduled(Wrapper):
    """The same prior viewed under another schedule, by matching sigma/alpha.

    Both ends of the path are unchanged by this map, so a sampler written for one kind of path runs on every prior.

    Arguments:
        prior: the prior to view.
        schedule: the schedule the sampler is written for.
    """

    def __init__(self, prior: Prior, schedule: Schedule) -> None:
        super().__init__(prior)
        self.schedule = schedule

    def around(self, prior: Prior) -> Wrapper:
        return Rescheduled(prior, self.schedule)

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = self.schedule(t)
        inner_t = self.prior.schedule.time(sigma / alpha)
        inner_alpha, inner_sigma = self.prior.schedule(inner_t)
        scale = torch.hypot(inner_alpha, inner_sigma) / torch.hypot(alpha, sigma)  # finite also where alpha is 0
        return self.prior.predict(expand_to(scale.to(z), z) * z, inner_t)


class Guided(Prior):
    """Classifier-free guidance: negative + scale * (positive - negative) on both ends (Ho & Salimans, 2207.12598).

    Arguments:
        positive: the prior under the wanted condition.
        negative: the same network without it (or under a negative prompt); it must share schedule and latents.
        scale: 1 is the conditional prior alone, larger values follow the condition more closely.
    """

    def __init__(self, positive: Prior, negative: Prior, scale: float) -> None:
        super().__init__()
        self.positive, self.negative, self.scale = positive, negative, scale
        self.schedule, self.channels = positive.schedule, positive.channels
        self.known_as(positive)
        self.calls_per_predict = positive.calls_per_predict + negative.calls_per_predict

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        positive, negative = self.positive.predict(z, t), self.negative.predict(z, t)
        return Endpoints(*(n + self.scale * (p - n) for p, n in zip(positive, negative, strict=True)))

    def encode(self, x: Tensor) -> Tensor:
        return self.positive.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.positive.decode(z)

    @property
    def has_decoder(self) -> bool:
        return self.positive.has_decoder

    def latent_shape(self, image_shape: Shape) -> Shape:
        return self.positive.latent_shape(image_shape)

    def sized(self, image_shape: Shape) -> Prior:
        return Guided(self.positive.sized(image_shape), self.negative.sized(image_shape), self.scale).known_as(self)


class Metered(Wrapper):
    """Counts what a solver asks of a prior, in rows: three pictures in one call are three.

    `counts` has network (calls of predict), network_vjp (gradients through it), encode, decode and decode_vjp.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.counts = dict.fromkeys(("network", "network_vjp", "encode", "decode", "decode_vjp"), 0)

    def around(self, prior: Prior) -> Wrapper:
        return Metered(prior)

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        rows = len(z) * self.prior.calls_per_predict
        self.counts["network"] += rows
        return self.prior.predict(self._watch(z, "network_vjp", rows), t)

    def encode(self, x: Tensor) -> Tensor:
        self.counts["encode"] += len(x)
        return self.prior.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        self.counts["decode"] += len(z)
        if not self.has_decoder:  # no gradient to count through the identity
            return self.prior.decode(z)
        return self.prior.decode(self._watch(z, "decode_vjp", len(z)))

    @property
    def has_decoder(self) -> bool:
        return self.prior.has_decoder

    def _watch(self, z: Tensor, name: str, rows: int) -> Tensor:
        """z, with a count of the gradients that flow back to it."""
        if not z.requires_grad:
            return z
        watched = z.view_as(z)

        def count(_: Tensor) -> None:
            self.counts[name] += rows

        watched.register_hook(count)
        return watched


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Pad (B, C, H, W) at the bottom and right by reflection to a multiple; returns the original (H, W) too."""
    height, width = x.shape[-2:]
    target = [math.ceil(n / multiple) * multiple for n in (height, width)]
    while x.shape[-2] < target[0] or x.shape[-1] < target[1]:  # reflection pads by less than the size at a time
        pads = [min(goal - have, have - 1) for goal, have in zip(target, x.shape[-2:], strict=True)]
        mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"
        pads = pads if mode == "reflect" else [g - h for g, h in zip(target, x.shape[-2:], strict=True)]
        x = nn.functional.pad(x, (0, pads[1], 0, pads[0]), mode=mode)
    return x, (height, width)
