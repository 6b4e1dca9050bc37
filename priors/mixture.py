"""A Gaussian mixture prior with its closed-form posterior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..linalg import grad
from ..operators.base import LinearOperator
from .base import Endpoints, Prior
from .covariance import decompose
from .gaussian import check_measurement, dense_matrix, posterior_covariance
from .schedule import LinearFlow, Schedule

__all__ = ["GaussianMixture"]


class GaussianMixture(Prior):
    """x ~ sum_k w_k N(mu_k, C_k), exact for small images.

    Given z_t the components have weights proportional to w_k N(z_t; alpha mu_k, alpha^2 C_k + sigma^2 I), and both
    endpoints are the weighted means of the components' Gaussian ones.

    Arguments:
        weights: (K,), not negative; normalised to sum 1.
        means: (K, C, H, W).
        covariances: (K, d, d) with d = C * H * W, or (1, d, d) if all share one.
        schedule: the path it is seen on.

    Raises:
        ValueError: if they do not fit each other, a weight is negative or a matrix is no covariance.
    """

    weights: Tensor
    means: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, schedule: Schedule | None = None) -> None:
        super().__init__()
        n, size = len(means), means[0].numel()
        if (
            means.ndim != 4
            or weights.shape != (n,)
            or tuple(covariances.shape) not in {(n, size, size), (1, size, size)}
        ):
            raise ValueError(
                f"GaussianMixture expects weights (K,), means (K, C, H, W) and covariances (K or 1, d, d) with "
                f"d = C * H * W, got {tuple(weights.shape)}, {tuple(means.shape)} and {tuple(covariances.shape)}; give "
                f"all three for the same components."
            )
        if not (weights.isfinite() & (weights >= 0)).all() or not weights.any():
            raise ValueError(
                f"GaussianMixture expects weights that are not negative, with a positive sum, got {weights.tolist()}; "
                f"leave out components of no weight."
            )
        values, vectors = decompose(covariances)
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("values", values)  # (K or 1, d)
        self.register_buffer("vectors", vectors)  # (K or 1, d, d)
        # Independent pixels need no rotation, which is most of the work in many dimensions.
        self.aligned = len(vectors) == 1 and torch.equal(vectors[0], torch.eye(vectors.shape[1]).to(vectors))
        self.schedule = LinearFlow() if schedule is None else schedule

    @property
    def covariances(self) -> Tensor:
        """(K or 1, d, d)."""
        return self.vectors * self.values[:, None, :] @ self.vectors.mT

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = (a.to(z).reshape(-1, 1) for a in self.schedule(t))  # (B or 1, 1)
        flat, means = z.flatten(1), self.means.flatten(1).to(z)  # (B, d), (K, d)
        vectors, values = self.vectors.to(z), self.values.to(z)
        tiny = torch.finfo(z.dtype).tiny
        if len(values) == 1:  # one basis for all: only the (B, K) logits grow with the number of components
            inner, centres = self._rotate(flat), self._rotate(means)
            variance = (alpha.square() * values + sigma.square()).clamp_min(tiny)  # (B, d)
            scaled = alpha / variance
            log_p = self.weights.to(z).log() + (scaled * inner) @ centres.T  # |z|^2 is the same for all components
            log_p = log_p - 0.5 * (alpha * scaled) @ centres.square().T
            centre = log_p.softmax(dim=1) @ centres  # (B, d)
            centred = (inner - alpha * centre) / variance
            clean, noise = (self._rotate_back(e) for e in (centre + alpha * values * centred, sigma * centred))
            return Endpoints(clean.reshape(z.shape), noise.reshape(z.shape))
        # All components' bases side by side: one matrix product each way instead of one per component and row.
        count, size = len(values), flat.shape[1]
        inward = vectors.permute(1, 0, 2).reshape(size, count * size)  # (d, K * e)
        outward = vectors.mT.reshape(count * size, size)  # (K * e, d)
        alpha, sigma = alpha[..., None], sigma[..., None]  # (B or 1, 1, 1)
        centres = torch.einsum("kd,kde->ke", means, vectors)
        inner = (flat @ inward).reshape(-1, count, size) - alpha * centres  # (B, K, e)
        variance = (alpha.square() * values + sigma.square()).clamp_min(tiny)  # (B or 1, K, e)
        log_p = self.weights.to(z).log() - 0.5 * (inner.square() / variance + variance.log()).sum(dim=-1)  # (B, K)
        share = log_p.softmax(dim=1)
        # One end by the components, the other, which is what is left of z, by a division by the larger coefficient.
        alpha, sigma = alpha[..., 0], sigma[..., 0]  # (B or 1, 1)
        by_clean = sigma > alpha
        gain = torch.where(by_clean[..., None], alpha[..., None] * values, sigma[..., None]) / variance
        first = (share[..., None] * (gain * inner)).flatten(1) @ outward + by_clean * (share @ means)
        second = (flat - torch.where(by_clean, alpha, sigma) * first) / torch.maximum(alpha, sigma)
        clean, noise = torch.where(by_clean, first, second), torch.where(by_clean, second, first)
        return Endpoints(clean.reshape(z.shape), noise.reshape(z.shape))

    def log_components(self, x: Tensor) -> Tensor:
        """Log w_k + log N(x; mu_k, C_k) of pictures x (B, C, H, W), (B, K), for covariances without a null space."""
        flat, means = x.flatten(1), self.means.flatten(1).to(x)
        values = self.values.to(x)
        if len(values) == 1:
            inner = self._rotate(flat)[:, None] - self._rotate(means)  # (B, K, d)
        else:
            inner = torch.einsum("bkd,kde->bke", flat[:, None] - means, self.vectors.to(x))
        quadratic = (inner.square() / values).sum(dim=-1) + values.log().sum(dim=-1)
        return self.weights.to(x).log() - 0.5 * (quadratic + flat.shape[1] * math.log(2 * math.pi))

    def score(self, x: Tensor) -> Tensor:
        """The gradient of log p at pictures x (B, C, H, W)."""
        return grad(lambda u: self.log_components(u).logsumexp(dim=1), x)

    @property
    def mean(self) -> Tensor:
        """E[x], (C, H, W)."""
        return torch.einsum("k,kchw->chw", self.weights.to(self.means), self.means)

    @property
    def covariance(self) -> Tensor:
        """Cov[x], (d, d)."""
        between = (self.means - self.mean).flatten(1)
        weights = self.weights.to(self.means)
        within = (weights[:, None, None] * self.covariances).sum(dim=0) if len(self.values) > 1 else self.covariances[0]
        return within + (weights[:, None] * between).T @ between

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """N pictures (n, C, H, W)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        white = torch.randn(n, self.values.shape[1], generator=generator, dtype=self.means.dtype)
        if len(self.values) == 1:
            return self.means[k] + self._rotate_back(white * self.values.sqrt()).reshape(n, *self.means.shape[1:])
        scaled = white * self.values[k].sqrt()
        for component in k.unique():
            rows = k == component
            scaled[rows] = scaled[rows] @ self.vectors[component].T
        return self.means[k] + scaled.reshape(n, *self.means.shape[1:])

    def posterior(self, operator: LinearOperator, sigma: float, y: Tensor) -> GaussianMixture:
        """p(x | y) of one measurement (1, *data_shape) with y = A x + sigma n, again a mixture.

        Component k has the covariance S_k = C_k - G_k A C_k with the gain G_k = C_k A^T (A C_k A^T + sigma^2)^-1,
        the mean mu_k + G_k (y - A mu_k) and a weight proportional to w_k N(y; A mu_k, A C_k A^T + sigma^2).

        Raises:
            ValueError: if the operator is not linear, or y and sigma are not one measurement with Gaussian noise.
        """
        check_measurement(operator, sigma, y, rows=1)
        a = dense_matrix(operator, y.dtype)  # (m, d)
        means, covariances = self.means.flatten(1).to(y), self.covariances.to(y)
        joint = a @ covariances @ a.T + sigma**2 * torch.eye(len(a)).to(y)  # (K or 1, m, m)
        gain = torch.linalg.solve(joint, a @ covariances).mT  # (K or 1, d, m)
        residual = y.flatten() - means @ a.T  # (K, m)
        log_w = self.weights.to(y).log() + torch.distributions.MultivariateNormal(
            torch.zeros_like(residual), joint
        ).log_prob(residual)
        shifted = means + torch.einsum("kdm,km->kd", gain.expand(len(means), -1, -1), residual)
        covariance = posterior_covariance(covariances, gain, a, sigma)
        return GaussianMixture(log_w.softmax(dim=0), shifted.reshape(self.means.shape), covariance, self.schedule)

    def _rotate(self, flat: Tensor) -> Tensor:
        """Into the basis of the one shared covariance."""
        return flat if self.aligned else flat @ self.vectors[0].to(flat)

    def _rotate_back(self, flat: Tensor) -> Tensor:
        return flat if self.aligned else flat @ self.vectors[0].to(flat).T
