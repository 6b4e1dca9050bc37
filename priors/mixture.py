"""A Gaussian mixture prior with its closed-form posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.base import LinearOperator
from .base import Endpoints, Prior, Shape
from .gaussian import dense_matrix
from .schedule import LinearFlow, Schedule

__all__ = ["GaussianMixture"]


class GaussianMixture(Prior):
    """x ~ sum_k w_k N(mu_k, C_k), exact for small images.

    Given z_t the components have weights proportional to w_k N(z_t; alpha mu_k, alpha^2 C_k + sigma^2 I), and both
    endpoints are the weighted means of the components' Gaussian ones.

    Arguments:
        weights: (K,), positive; normalised to sum 1.
        means: (K, C, H, W).
        covariances: (K, d, d) with d = C * H * W, or (1, d, d) if all share one.
        schedule: the path it is seen on.
    """

    weights: Tensor
    means: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, schedule: Schedule | None = None) -> None:
        super().__init__()
        values, vectors = torch.linalg.eigh(covariances)
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("values", values.clamp_min(0))  # (K or 1, d)
        self.register_buffer("vectors", vectors)  # (K or 1, d, d)
        self.schedule = LinearFlow() if schedule is None else schedule

    @property
    def covariances(self) -> Tensor:
        """(K or 1, d, d)."""
        return self.vectors * self.values[:, None, :] @ self.vectors.mT

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = (a.to(z).expand(len(z))[:, None, None] for a in self.schedule(t))  # (B, 1, 1)
        flat, means = z.flatten(1), self.means.flatten(1).to(z)  # (B, d), (K, d)
        centred = flat[:, None] - alpha * means  # (B, K, d)
        vectors, values = self.vectors.to(z), self.values.to(z)
        inner = torch.einsum("bkd,kde->bke", centred, vectors.expand(len(means), -1, -1))
        variance = (alpha.square() * values + sigma.square()).clamp_min(torch.finfo(z.dtype).tiny)  # (B, K, d)
        log_p = self.weights.to(z).log() - 0.5 * (inner.square() / variance + variance.log()).sum(dim=-1)  # (B, K)
        share = log_p.softmax(dim=1)[..., None]  # (B, K, 1)
        back = vectors.expand(len(means), -1, -1)
        clean = means + torch.einsum("bke,kde->bkd", alpha * values / variance * inner, back)
        noise = torch.einsum("bke,kde->bkd", sigma / variance * inner, back)
        return Endpoints((share * clean).sum(dim=1).reshape(z.shape), (share * noise).sum(dim=1).reshape(z.shape))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """N pictures (n, C, H, W)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        white = torch.randn(n, self.values.shape[1], generator=generator, dtype=self.means.dtype)
        pick = k if len(self.values) > 1 else torch.zeros_like(k)
        scaled = white * self.values[pick].sqrt()
        return self.means[k] + torch.einsum("nde,ne->nd", self.vectors[pick], scaled).reshape(n, *self.means.shape[1:])

    def posterior(self, operator: LinearOperator, sigma: float, y: Tensor) -> GaussianMixture:
        """p(x | y) of one measurement (1, *data_shape) with y = A x + sigma n, again a mixture.

        Component k has the covariance S_k = C_k - G_k A C_k with the gain G_k = C_k A^T (A C_k A^T + sigma^2)^-1,
        the mean mu_k + G_k (y - A mu_k) and a weight proportional to w_k N(y; A mu_k, A C_k A^T + sigma^2).
        """
        a = dense_matrix(operator, y.dtype)  # (m, d)
        means, covariances = self.means.flatten(1).to(y), self.covariances.to(y)
        joint = a @ covariances @ a.T + sigma**2 * torch.eye(len(a)).to(y)  # (K or 1, m, m)
        gain = torch.linalg.solve(joint, a @ covariances).mT  # (K or 1, d, m)
        residual = y.flatten() - means @ a.T  # (K, m)
        log_w = self.weights.to(y).log() + torch.distributions.MultivariateNormal(
            torch.zeros_like(residual), joint
        ).log_prob(residual)
        shifted = means + torch.einsum("kdm,km->kd", gain.expand(len(means), -1, -1), residual)
        covariance = covariances - gain @ a @ covariances
        return GaussianMixture(
            log_w.softmax(dim=0), shifted.reshape(self.means.shape), (covariance + covariance.mT) / 2, self.schedule
        )

    def latent_shape(self, image_shape: Shape) -> Shape:
        return image_shape
