"""The problems of the suites, whose posteriors are known."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..noise import GaussianNoise
from ..operators import Inpaint, Matrix
from ..priors import DiscreteVP, GaussianMixture, LinearDecoder
from ..problem import Problem, simulate
from ..rng import ImageRng, derive_seed
from .problems import Case, case_of, random_operator

__all__ = [
    "benchopt",
    "benchopt_grid",
    "bimodal",
    "digits",
    "digits_mixture",
    "gaussian",
    "gmm25",
    "gmm25_mixture",
    "latent_linear",
    "mcgdiff_path",
]

BIMODAL_TRUTH = (3.0, 2.0, 0.5, -0.5, 1.0, 0.8, -0.6, 1.1, -0.9, 0.4, 0.0, -1.2, 0.7, -0.3, 0.5, -0.8)


def _generator(*parts: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(0, *parts))


def _simulated(matrix: Tensor, x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return matrix @ x + sigma * torch.randn(len(matrix), generator=generator, dtype=x.dtype)


def gaussian(setting: str, index: int) -> Case:
    """C = M M^T + (mean eigenvalue) I for Gaussian M with unit columns, A (50, 100) ~ N(0, 1), sigma = 0.1."""
    d, m, sigma = 100, 50, 0.1
    generator = _generator("gaussian-100", index)
    factor = torch.randn(d, d, generator=generator, dtype=torch.float64)
    factor = factor / factor.norm(dim=0)
    covariance = factor @ factor.T
    covariance = covariance + covariance.diagonal().mean() * torch.eye(d)  # trace / d is the mean eigenvalue
    mixture = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 1, 1, d).double(), covariance[None])
    matrix = torch.randn(m, d, generator=generator, dtype=torch.float64)
    x = mixture.sample(1, generator).flatten()
    y = _simulated(matrix, x, sigma, generator)
    return case_of(
        suite="gaussian-100",
        setting=setting,
        index=index,
        mixture=mixture,
        matrix=matrix,
        sigma=sigma,
        y=y,
        truth=x,
    )


def gmm25_mixture(d: int, weights: Tensor, schedule: DiscreteVP | None = None) -> GaussianMixture:
    """Means (8 i, 8 j, 8 i, 8 j, ...) for i, j = -2 .. 2 and unit covariances."""
    steps = torch.arange(-2, 3).double() * 8
    means = torch.cartesian_prod(steps, steps).repeat(1, d // 2)
    return GaussianMixture(weights.double(), means.reshape(25, 1, 1, d), torch.eye(d).double()[None], schedule)


def gmm25(d: int, setting: str, index: int) -> Case:
    """Problem `index` with d_y = m: weights z^2 from seed 1000 + d, the rest from seed 10000 m + index, in float32."""
    m = int(setting.removeprefix("dy="))
    weights = torch.randn(25, generator=torch.Generator().manual_seed(1000 + d)).square()
    weights = weights / weights.sum()
    mixture = gmm25_mixture(d, weights)
    generator = torch.Generator().manual_seed(10000 * m + index)
    matrix, values = random_operator(m, d, generator)
    k = int(torch.multinomial(weights, 1, generator=generator))
    x = mixture.means[k].flatten().float() + torch.randn(d, generator=generator)
    sigma = torch.rand(1, generator=generator) * values.max()
    y = matrix @ x + torch.randn(m, generator=generator) * sigma
    return case_of(
        suite=f"gmm25-{d}",
        setting=setting,
        index=index,
        mixture=mixture,
        matrix=matrix.double(),
        sigma=float(sigma),
        y=y.double(),
        truth=x.double(),
    )


def mcgdiff_path() -> DiscreteVP:
    """MCG-diff's path for the mixture: 999 betas from 0.02 down to 0.0001, the largest first."""
    return DiscreteVP(torch.linspace(0.02, 1e-4, 999))


def benchopt(setting: str, index: int) -> Case:
    """The benchmark's problem: everything after `torch.manual_seed(27)`, in its order; means numbered from +16 down."""
    if index:
        raise ValueError(f"gmm25-benchopt has one problem per setting, number 0; there is no number {index}.")
    d, m = 8, int(setting.removeprefix("dy="))
    generator = torch.Generator().manual_seed(27)
    weights = torch.randn(25, generator=generator).square()
    mixture = gmm25_mixture(d, (weights / weights.sum()).flip(0), mcgdiff_path())
    matrix, values = random_operator(m, d, generator)
    k = int(torch.multinomial(weights / weights.sum(), 1, replacement=True, generator=generator))
    x = mixture.means.flip(0)[k].flatten().float() + torch.randn(25, d, generator=generator)[k]
    sigma = torch.rand(1, generator=generator) * values.max()
    y = matrix @ x + torch.randn(m, generator=generator) * sigma
    return case_of(
        suite="gmm25-benchopt",
        setting=setting,
        index=index,
        mixture=mixture,
        matrix=matrix.double(),
        sigma=float(sigma),
        y=y.double(),
        truth=x.double(),
        rescale=False,  # the published settings belong to the path in these units
    )


def benchopt_grid(n: int) -> Tensor:
    """Evenly spaced indices of the path, from 999 to 0."""
    index = torch.linspace(0, 999, n + 1).long().flip(0)
    return mcgdiff_path().ratio(index.double() / 999)


def bimodal(setting: str, index: int) -> Case:
    """0.8 N(0, I) + 0.2 N(3, 2 I) in two entries, N(0, 1) in fourteen; noise draw `index` of the one true x."""
    kind, _, level = setting.partition(" sigma=")
    sigma, d = float(level), len(BIMODAL_TRUTH)
    if kind == "many-weak":  # the bimodal pair is not observed
        matrix = torch.zeros(14, d, dtype=torch.float64)
        matrix[range(14), range(2, d)] = 0.1 + 0.05 * torch.arange(14).double()
    else:
        matrix = 3 * torch.eye(d, dtype=torch.float64)[:4]
    means = torch.zeros(2, 1, 1, d, dtype=torch.float64)
    means[1, ..., :2] = 3
    covariances = torch.eye(d, dtype=torch.float64).repeat(2, 1, 1)
    covariances[1, [0, 1], [0, 1]] = 2
    x = torch.tensor(BIMODAL_TRUTH, dtype=torch.float64)
    return case_of(
        suite="bimodal16",
        setting=setting,
        index=index,
        mixture=GaussianMixture(torch.tensor([0.8, 0.2]).double(), means, covariances),
        matrix=matrix,
        sigma=sigma,
        y=_simulated(matrix, x, sigma, _generator("bimodal16", setting, index)),
        truth=x,
    )


def latent_linear(setting: str, index: int) -> Case:
    """Eight Gaussians in R^16, decoded by one fixed W (64, 16); A (2, 64) with orthonormal rows, sigma = 0.1."""
    k, latent, image, m, sigma = 8, (1, 1, 16), (1, 8, 8), 2, 0.1
    generator = _generator("latent-linear")
    means = 0.5 * torch.randn(k, *latent, generator=generator, dtype=torch.float64)
    weights = torch.rand(k, generator=generator, dtype=torch.float64) + 0.2
    mixture = GaussianMixture(weights, means, 0.15**2 * torch.eye(16).double()[None])
    u, _, v = torch.linalg.svd(torch.randn(64, 16, generator=generator, dtype=torch.float64), full_matrices=False)
    decoder = u @ torch.diag(torch.linspace(1, 3, 16).double()) @ v
    prior = LinearDecoder(mixture, decoder, image, latent)
    generator = _generator("latent-linear", index)
    rows = torch.linalg.qr(torch.randn(64, m, generator=generator, dtype=torch.float64)).Q.T
    operator, x = Matrix(image, matrix=rows), prior.decode(mixture.sample(1, generator))
    noise = GaussianNoise(sigma)
    y = simulate(operator, noise, x, ImageRng([derive_seed(0, "latent-linear", index, "noise")]))
    return Case(
        suite="latent-linear",
        setting=setting,
        index=index,
        problem=Problem(operator, noise, y),
        prior=prior,
        mixture=mixture,
        truth=x,
    )


@functools.cache
def digits_mixture() -> GaussianMixture:
    """Thirty Gaussians fitted to the 1797 digits of scikit-learn in [-1, 1], 0.1^2 added to every variance."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.mixture import GaussianMixture as Fit
    except ImportError as error:
        raise ImportError("The suite digits needs scikit-learn; pip install 'invsolve[validate]'.") from error
    pictures = load_digits().data / 8 - 1
    fit = Fit(n_components=30, reg_covar=0.1**2, random_state=0).fit(pictures)
    weights, means, covariances = (torch.from_numpy(a) for a in (fit.weights_, fit.means_, fit.covariances_))
    return GaussianMixture(weights, means.reshape(-1, 1, 8, 8), covariances)


def digits(setting: str, index: int) -> Case:
    """A draw of the fitted mixture, lower four rows observed, sigma = 0.3: sometimes several digits are possible."""
    sigma, mixture = 0.3, digits_mixture()
    observed = torch.zeros(1, 8, 8, dtype=torch.bool)
    observed[:, 4:] = True
    operator, noise = Inpaint((1, 8, 8), observed=observed), GaussianNoise(sigma)
    x = mixture.sample(1, _generator("digits", index))
    y = simulate(operator, noise, x, ImageRng([derive_seed(0, "digits", index, "noise")]))
    return Case(
        suite="digits",
        setting=setting,
        index=index,
        problem=Problem(operator, noise, y),
        prior=mixture,
        mixture=mixture,
        truth=x,
    )
