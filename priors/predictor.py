"""A diffusers network as a prior: what it predicts turned into both ends of the path, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..linalg import expand_to
from .backbone import Backbone, Condition
from .base import Endpoints, Prior
from .precision import finite_or_wider
from .schedule import DiscreteVP, Schedule

__all__ = ["Guidance", "NetworkPrior", "Parameterisation"]

Parameterisation = Literal["velocity", "epsilon", "sample", "v_prediction", "edm"]


@dataclass(frozen=True)
class Guidance:
    """What a network is asked with: negative + scale * (positive - negative) (Ho & Salimans, arXiv 2207.12598).

    Arguments:
        positive: the condition that is wanted; {} for networks that take none.
        negative: the condition to move away from; None for the positive one alone.
        scale: 1 is the positive condition alone, larger values follow it more closely.
    """

    positive: Condition
    negative: Condition | None = None
    scale: float = 1.0

    @property
    def calls(self) -> int:
        """Rows of the network behind one row of x_t."""
        return 1 if self.negative is None or self.scale == 1 else 2


class NetworkPrior(Prior):
    """A network on pixels or on the latents of an autoencoder, seen through the one interface.

    Arguments:
        backbone: the network.
        schedule: the path it was trained on.
        parameterisation: what it predicts: `velocity` of a flow, `epsilon`, `sample` (the clean picture), the
            `v_prediction` alpha eps - sigma x0 of a variance-preserving path, or `edm` (the network inside the
            preconditioning of Karras et al., arXiv 2206.00364, on a variance-exploding path).
        prompts: the prompts it can be asked with (`prompted`), by their text.
        prompt: the one it is asked with now; None asks with the first, and without any with no condition.
        data_std: sigma_data of `edm`.
        sigma_min: the lowest noise level that an `edm` network knows.
    """

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        parameterisation: Parameterisation,
        *,
        prompts: Mapping[str, Guidance] | None = None,
        prompt: str | None = None,
        data_std: float = 0.5,
        sigma_min: float = 0.002,
    ) -> None:
        super().__init__()
        self.backbone, self.schedule, self.parameterisation = backbone, schedule, parameterisation
        self.prompts = {"": Guidance({})} if prompts is None else dict(prompts)
        self.prompt = next(iter(self.prompts)) if prompt is None else prompt
        self.guidance = self.prompts[self.prompt]
        self.channels, self.calls_per_predict = backbone.channels, self.guidance.calls
        self.data_std, self.sigma_min = data_std, sigma_min

    def prompted(self, prompt: str) -> Prior:
        if prompt == self.prompt:
            return self
        if prompt not in self.prompts:
            raise ValueError(
                f"The prior was not loaded with the prompt {prompt!r}; give load_prior all prompts at once."
            )
        return NetworkPrior(
            self.backbone,
            self.schedule,
            self.parameterisation,
            prompts=self.prompts,
            prompt=prompt,
            data_std=self.data_std,
            sigma_min=self.sigma_min,
        ).known_as(self)

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = (expand_to(a.to(z), z) for a in self.schedule(t))
        if self.parameterisation == "edm":
            return self._precondition(z, sigma)
        out = self._call(z, self._timestep(t))
        if self.parameterisation == "velocity":  # of alpha = 1 - t, sigma = t
            return Endpoints(z - sigma * out, z + alpha * out)
        if self.parameterisation == "v_prediction":
            return Endpoints(alpha * z - sigma * out, sigma * z + alpha * out)
        if self.parameterisation == "epsilon":
            return Endpoints((z - sigma * out) / alpha, out)
        noise = (z - alpha * out) / sigma.clamp_min(torch.finfo(z.dtype).tiny)
        return Endpoints(out, torch.where(sigma > 0, noise, 0))

    def _precondition(self, z: Tensor, sigma: Tensor) -> Endpoints:
        """EDM's Table 1 for both ends, without a division by sigma: x = clean + sigma noise."""
        d, total = self.data_std, sigma.square() + self.data_std**2
        scaled = z / total.sqrt()
        out = self._call(scaled, sigma.flatten().clamp_min(self.sigma_min).log() / 4)
        noise = sigma / total * z - d / total.sqrt() * out
        return Endpoints(d**2 / total * z + sigma * d / total.sqrt() * out, noise)

    def _timestep(self, t: Tensor) -> Tensor:
        t = t.double()  # half precision would miss steps of the table
        if isinstance(self.schedule, DiscreteVP):  # step i of the table is t = (i + 1) / T; networks take those between
            return (t * self.schedule.n_steps - 1).clamp_min(0).float()
        return (1000 * t).float()

    def _call(self, z: Tensor, timestep: Tensor) -> Tensor:
        """The guided prediction: both conditions in one batch."""
        guidance, timestep = self.guidance, timestep.expand(len(z))
        if guidance.calls == 1 or guidance.negative is None:
            return finite_or_wider("network", self.backbone, z, lambda x: self.backbone(x, timestep, guidance.positive))
        both = {
            name: torch.cat(
                [guidance.negative[name].expand(len(z), *value.shape[1:]), value.expand(len(z), *value.shape[1:])]
            )
            for name, value in guidance.positive.items()
        }
        twice = timestep.repeat(2)
        out = finite_or_wider("network", self.backbone, torch.cat([z, z]), lambda x: self.backbone(x, twice, both))
        negative, positive = out.chunk(2)
        return negative + guidance.scale * (positive - negative)
