"""RSD: repulsive latent score distillation for solving inverse problems
(Zilberstein, Mardani & Segarra, ICLR 2025, arXiv 2406.16683).

N particles per measurement, i = 1 .. N, all with the same y; D the decoder, f the feature map:

    z_i, x_i = start
    for t in times:                                         (descending)
        z_t = alpha_t z_i + sigma_t n,  n ~ N(0, I)
        eps = noise endpoint at z_t                         (no gradient)
        R_i = grad_{z_i} -log sum_{j != i} exp(-|f(D(z_i)) - f(D(z_j))|^2 / h_i),   h_i and the others held fixed,
              h_i = median_{j != i} |f(D(z_i)) - f(D(z_j))|^2 / log N;   0 where sigma_t / alpha_t < sigma_break
        g   = (eps - n) / d - gamma s R_i,  s = sigma_t / hypot(alpha_t, sigma_t)
        split:
            z_i = Adam step along grad |D(z_i) - x_i|^2 / 2p + weight * w(t) * g
            x_i = Adam step along A^T (A x_i - y) / m + coupling * (x_i - D(z_i)) / p
        plain:
            z_i = Adam step along grad |A D(z_i) - y|^2 / 2m + weight * w(t) * g

m measured values, p pixels, d latent entries; Adam with betas (0.9, 0.99).  The misfits and the regulariser are means,
as in the official code: next to a sum over pixels (split) the regulariser weighs weight * p / d (48 times `weight` for
Stable Diffusion), next to a sum over the data (plain) weight * m / d; with convention = "sum" `weight` is that.  R is
the gradient of one number however large the picture is; the official code divides it by d with the rest, so that its
gamma is gamma * d here (16384 at 64x64 latents).

| | paper | official code: defaults, scripts | here |
|---|---|---|---|
| weight (lambda, w_t) | – | 0.1, 0.0001 to 0.15 | 0.25 |
| w(t) | – | sigma/alpha; in earlier versions divided by the coupling | min(sigma/alpha, 1): `trunc_linear` |
| coupling (1 / rho^2, rho_reg) | – | 0.2, 0.01 to 0.2 | 0.2 |
| lr of z; of x | – | 0.2, 0.2 to 1; 0.2, 0.1 to 0.6 | 0.1; 0.05 |
| gamma | – | 0, 0 to 150 / d | 0.003 |
| features | DINO | DINO ViT-S/16 of D(z); in earlier versions of D(z_t) | `latent`: z itself |
| h | – | median^2 / log(N - 1): nothing at N = 2, NaN at N = 1 | median^2 / log N |
| sigma_break | – | first 60 %, 100 % of the steps: 1.16, 0 | 0 |
| y | – | a noise draw of its own for every particle | one |
| split | yes | both | where there is a decoder |
| start | – | noise, x apart from z | the data, as RED-diff |
| steps | – | 999 | 100 |
| result | – | x, or D(z) in the plain version | D(z) |

Where sigma/alpha is large, so is w(t) gamma R next to the rest of g, which shrinks as alpha/sigma; Adam remembers such
gradients for its next hundred steps and then hardly moves, hence the bound on w(t).  In pixels z and x are one picture
twice, which hold each other back where there are no data, so that the plain version is taken there.  The plain version
without repulsion and with RED-diff's weighting is RED-diff.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..features import check_features, load_features
from ..linalg import dot, expand_to, grad
from ..priors.base import Prior
from ..problem import Problem, first_guess
from ..rng import ImageRng
from ..solver import Range, Solver
from ._misfit import misfit
from ._weighting import Convention, Weighting, weigh, weight_of_means

__all__ = ["RSD", "repulsion"]

Start = Literal["data", "noise"]
SMALLEST = torch.finfo(torch.float32).eps ** 0.5  # h: particles in one place do not enlarge rounding errors


class State(NamedTuple):
    """The particles with their optimisers; x is the picture of the split version."""

    z: Tensor  # (B, *latent_shape)
    x: Tensor  # (B, *image_shape)
    adam_z: torch.optim.Adam
    adam_x: torch.optim.Adam
    split: bool  # whether x is in use


@dataclass(frozen=True, kw_only=True)
class RSD(Solver[State]):
    """Score distillation of particles that push each other apart in a feature space: several answers, not one.

    Arguments:
        split: the augmented version, in which a picture x meets the data and the latent z meets x, so that A is never
            seen through the decoder; else one gradient through both.  None: only where there is a decoder.
        lr: learning rate of Adam for z.
        lr_x: learning rate of Adam for x.
        weight: lambda, weight of the regulariser relative to the misfit.
        convention: of `weight`: `mean` between means, as in the official code, or `sum` next to a sum over the data
            (plain) or the pixels (split).
        weighting: w(t) as a function of sigma/alpha.
        coupling: rho, weight of |x - D(z)|^2 relative to the data term of x.
        gamma: repulsion; 0 is none.
        sigma_break: the particles repel each other while sigma/alpha is at least this.
        features: where they do: `latent`, `pixels`, `lpips` or `dino`.
        network: for `dino`, a folder written by transformers' save_pretrained or the id of a model on its hub.
        start: `data` at the first guess that y gives, or `noise`.

    Raises:
        ValueError: an unknown weighting, convention, feature space or start, or dino without a network.
    """

    interacting = True
    times = "vp"
    steps = 100
    published: ClassVar[Mapping[str, Any]] = {
        "weight": 0.1,
        "lr": 0.2,
        "lr_x": 0.2,
        "gamma": 0.0,
        "weighting": "s_over_a",
        "sigma_break": 1.16,
        "start": "noise",
    }

    split: bool | None = None
    lr: Annotated[float, Range(0)] = 0.1
    lr_x: Annotated[float, Range(0)] = 0.05
    weight: Annotated[float, Range(0)] = 0.25
    convention: Convention = "mean"
    weighting: Weighting = "trunc_linear"
    coupling: Annotated[float, Range(0)] = 0.2
    gamma: Annotated[float, Range(0)] = 0.003
    sigma_break: Annotated[float, Range(0)] = 0.0
    features: str = "latent"
    network: str | None = None
    start: Start = "data"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_features(self.features, self.network, "latent")

    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        x = first_guess(problem)
        z = prior.encode(x).clone()
        if self.gamma and problem.particles > 1 and self.features != "latent":
            self._feature_map(prior)(z[:1])  # what is missing must not wait for the prior's network
        split = prior.has_decoder if self.split is None else self.split
        if self.start == "noise":
            z, x = rng.randn_like(z), rng.randn_like(x)
        adam_z, adam_x = (torch.optim.Adam([u], lr=lr, betas=(0.9, 0.99)) for u, lr in ((z, self.lr), (x, self.lr_x)))
        return State(z, x, adam_z, adam_x, split)

    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        z, x, adam_z, adam_x, split = state
        n = rng.randn_like(z)
        eps = prior.predict(prior.at(t, z, n), t).noise
        g = eps - n
        alpha_t, sigma_t = prior.schedule(t)
        d, ratio = z[0].numel(), sigma_t / alpha_t
        if self.gamma and ratio >= self.sigma_break:
            push = repulsion(z, self._feature_map(prior), problem.particles)
            g = g - expand_to(self.gamma * d * sigma_t / torch.hypot(alpha_t, sigma_t), z) * push
        sums = x[0].numel() if split else problem.n_data
        weight = weight_of_means(self.weight, self.convention, sums, d) * weigh(self.weighting, ratio)

        def fit_data(u: Tensor) -> Tensor:  # |A u - y|^2 / 2m  (B,)
            return misfit("half_sq", problem, u) / problem.n_data

        def fit_picture(u: Tensor) -> Tensor:  # |D(u) - x|^2 / 2p  (B,)
            r = prior.decode(u) - x.detach()
            return dot(r, r) / (2 * x[0].numel())

        fit = fit_picture if split else lambda u: fit_data(prior.decode(u))
        z.grad = grad(fit, z) + expand_to(weight, z) * g / d
        adam_z.step()
        if split:
            x.grad = grad(fit_data, x) + self.coupling * (x - prior.decode(z)) / x[0].numel()
            adam_x.step()
        return state

    def estimate(self, state: State) -> Tensor:
        return state.z.clone()  # Adam goes on in place

    def _feature_map(self, prior: Prior) -> Callable[[Tensor], Tensor]:
        """f(D(z)), (B, n)."""
        if self.features == "latent":
            return lambda z: z.flatten(1)
        features = load_features(self.features, self.network)
        return lambda z: features(prior.decode(z))


def repulsion(z: Tensor, features: Callable[[Tensor], Tensor], particles: int) -> Tensor:
    """R (B, *latent_shape): away from the other particles of the group in feature space; zero if there are none.

    Arguments:
        z: latents (B, *latent_shape); consecutive groups of `particles` rows see each other.
        features: latents to features (B, n), differentiable.
        particles: N.
    """
    if particles == 1:
        return torch.zeros_like(z)
    good = z.flatten(1).isfinite().all(dim=1)
    if not good.all():  # one that was lost does not take the others with it
        pushes = torch.zeros_like(z)
        for rows in torch.arange(len(z), device=z.device).split(particles):
            left = rows[good[rows]]
            if len(left):
                pushes[left] = repulsion(z[left], features, len(left))
        return pushes
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        f = features(leaf)
        groups = f.detach().unflatten(0, (-1, particles))  # (G, N, n)
        groups = groups - groups.mean(dim=1, keepdim=True)  # keeps the digits of particles that are close together
        d2 = torch.cdist(groups, groups, compute_mode="donot_use_mm_for_euclid_dist").square()  # (G, N, N)
        median = d2.kthvalue(particles // 2 + 1, dim=-1, keepdim=True).values  # (G, N, 1); one of them is itself
        h = (median / math.log(particles)).clamp_min(SMALLEST)
        k = d2.div_(-h).exp_()
        k.diagonal(dim1=1, dim2=2).zero_()
        pull = 2 * k / k.sum(dim=-1, keepdim=True) / h
        push = pull.sum(dim=-1, keepdim=True) * groups - pull @ groups  # sum_j pull_ij (f_i - f_j)
        (r,) = torch.autograd.grad(f, leaf, push.flatten(0, 1))
    return r
