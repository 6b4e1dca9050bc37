"""A Gaussian prior: everything about it, also its posterior, has a closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..linalg import cg, expand_to
from ..operators.base import LinearOperator, check_shape
from ..rng import ImageRng
from .base import Endpoints, Prior
from .covariance import Covariance, Full
from .schedule import LinearFlow, Schedule

__all__ = ["GaussianPrior", "check_measurement", "dense_matrix", "posterior_covariance"]


class GaussianPrior(Prior):
    """x ~ N(mean, C).

    With K = alpha^2 C + sigma^2 I the endpoints are E[x_0 | z_t] = mean + alpha C K^-1 (z_t - alpha mean) and
    E[eps | z_t] = sigma K^-1 (z_t - alpha mean).

    Arguments:
        covariance: C.
        mean: (C, H, W) or a number.
        schedule: the path it is seen on.
    """

    mean: Tensor

    def __init__(self, covariance: Covariance, mean: Tensor | float = 0.0, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.covariance = covariance
        self.register_buffer("mean", torch.as_tensor(mean))
        self.schedule = LinearFlow() if schedule is None else schedule

    def predict(self, z: Tensor, t: Tensor) -> Endpoints:
        alpha, sigma = (expand_to(a.to(z), z) for a in self.schedule(t))
        mean = self.mean.to(z)
        centred = z - alpha * mean
        tiny = torch.finfo(z.dtype).tiny

        if alpha.ndim == 0:
            variance = lambda v: (alpha**2 * v + sigma**2).clamp_min(tiny)  # noqa: E731
            clean = mean + self.covariance.apply_function(lambda v: alpha * v / variance(v), centred)
            return Endpoints(clean, self.covariance.apply_function(lambda v: sigma / variance(v), centred))
        rows = [self.predict(row[None], one) for row, one in zip(z, t, strict=True)]
        return Endpoints(torch.cat([r.clean for r in rows]), torch.cat([r.noise for r in rows]))

    def sample(self, shape: tuple[int, int, int], rng: ImageRng, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pictures (B, *shape), one per seed of `rng`."""
        white = rng.randn(shape, dtype=dtype, device=self.mean.device)
        return self.mean.to(dtype) + self.covariance.apply_function(torch.sqrt, white)

    def posterior_mean(self, operator: LinearOperator, sigma: float, y: Tensor, tolerance: float = 1e-10) -> Tensor:
        """E[x | y] for y = A x + sigma n: mean + C A^T (A C A^T + sigma^2)^-1 (y - A mean), by conjugate gradients.

        Raises:
            ValueError: if the operator is not linear, or y and sigma are not a measurement with Gaussian noise.
        """
        check_measurement(operator, sigma, y)
        mean = self.mean.to(y).expand(len(y), *operator.image_shape)
        return mean + self._gain(operator, sigma, y - operator(mean), tolerance)

    def posterior_sample(
        self, operator: LinearOperator, sigma: float, y: Tensor, rng: ImageRng, tolerance: float = 1e-10
    ) -> Tensor:
        """Exact samples of p(x | y), one per row of y: a prior sample moved to explain y (Matheron's rule).

        Raises:
            ValueError: if the operator is not linear, or y and sigma are not a measurement with Gaussian noise.
        """
        check_measurement(operator, sigma, y)
        x = self.sample(operator.image_shape, rng, y.dtype)
        return x + self._gain(operator, sigma, y - operator(x) - sigma * rng.randn_like(y), tolerance)

    def posterior(self, operator: LinearOperator, sigma: float, y: Tensor) -> GaussianPrior:
        """p(x | y) of one measurement (1, *data_shape) as a Gaussian prior with a full covariance; for small images.

        Raises:
            ValueError: if the operator is not linear, or y and sigma are not one measurement with Gaussian noise.
        """
        check_measurement(operator, sigma, y, rows=1)
        shape = operator.image_shape
        identity = torch.eye(math.prod(shape), dtype=y.dtype, device=y.device).reshape(-1, *shape)
        prior_covariance = self.covariance.apply_function(lambda v: v, identity).flatten(1)
        a = dense_matrix(operator, y.dtype)
        gram = a @ prior_covariance @ a.T
        gain = torch.linalg.solve(gram + sigma**2 * torch.eye(len(a)).to(y), a @ prior_covariance).T
        covariance = posterior_covariance(prior_covariance, gain, a, sigma)
        mean = self.mean.to(y).expand(shape)
        shift = gain @ (y - operator(mean[None])).flatten()
        return GaussianPrior(Full(covariance), mean + shift.reshape(shape), self.schedule)

    def _gain(self, operator: LinearOperator, sigma: float, residual: Tensor, tolerance: float) -> Tensor:
        """C A^T (A C A^T + sigma^2)^-1 r."""

        def covary(image: Tensor) -> Tensor:
            return self.covariance.apply_function(lambda v: v, image)

        weights = cg(
            lambda r: operator(covary(operator.adjoint(r))) + sigma**2 * r,
            residual,
            tolerance=tolerance,
            max_steps=2000,
        )
        return covary(operator.adjoint(weights))


def check_measurement(operator: LinearOperator, sigma: float, y: Tensor, rows: int | None = None) -> None:
    """Raise the sentence about a problem whose posterior has no closed form here: it needs y = A x + sigma n.

    Arguments:
        operator: A.
        sigma: standard deviation of n.
        y: measurements (B, *data_shape).
        rows: how many there may be; any number if not given.

    Raises:
        ValueError: if there is none.
    """
    if not isinstance(operator, LinearOperator):
        raise ValueError(
            f"A closed-form posterior needs a linear operator, got {type(operator).__name__}; use a solver instead."
        )
    number = isinstance(sigma, int | float) or (isinstance(sigma, Tensor) and sigma.numel() == 1)
    if not number or not 0 <= float(sigma) < math.inf:
        raise ValueError(
            f"A closed-form posterior needs Gaussian noise, sigma being its standard deviation, got {sigma!r}; use a "
            f"solver for other noise."
        )
    check_shape(type(operator).__name__, "a measurement", y, operator.data_shape, "give it with a batch axis")
    if rows is not None and len(y) != rows:
        raise ValueError(f"posterior() is that of {rows} measurement, got a batch of {len(y)}; call it for each row.")


def posterior_covariance(covariance: Tensor, gain: Tensor, a: Tensor, sigma: float) -> Tensor:
    """(I - G A) C (I - G A)^T + sigma^2 G G^T, which no rounding error can make indefinite: Joseph's form of C - G A C.

    Arguments:
        covariance: C (..., d, d).
        gain: G (..., d, m).
        a: A (m, d).
        sigma: standard deviation of the noise.
    """
    rest = torch.eye(a.shape[1]).to(a) - gain @ a
    joseph = rest @ covariance @ rest.mT + sigma**2 * gain @ gain.mT
    return (joseph + joseph.mT) / 2


def dense_matrix(operator: LinearOperator, dtype: torch.dtype = torch.float64) -> Tensor:
    """A as a matrix (m, d), for small images."""
    d = math.prod(operator.image_shape)
    columns = operator(torch.eye(d, dtype=dtype).reshape(d, *operator.image_shape))
    return columns.flatten(1).T
