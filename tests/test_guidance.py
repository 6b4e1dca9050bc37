"""Posterior samplers that weigh data and prior by a covariance: PiGDM, OT-ODE, FLOWER, MMPS and DDRM."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from toys import IsotropicPrior, ReplayRng, affine_moments

from invsolve import (
    GaussianNoise,
    ImageRng,
    NoNoise,
    Problem,
    build_operator,
    build_solver,
    make_times,
    simulate,
    solve,
)
from invsolve.linalg import gmres
from invsolve.operators import Matrix
from invsolve.priors import DiscreteVP, Full, GaussianPrior, LinearDecoder, PowerLaw, Rescheduled
from invsolve.priors.gaussian import dense_matrix
from invsolve.priors.schedule import linear_betas
from invsolve.solvers._hold import proximal_step
from invsolve.solvers._start import noisy_first_guess
from invsolve.solvers.ddnm import DDNM
from invsolve.solvers.ddrm import DDRM
from invsolve.solvers.flower import FLOWER
from invsolve.solvers.mmps import MMPS
from invsolve.solvers.otode import OTODE
from invsolve.solvers.pigdm import PiGDM

SHAPE = (3, 8, 8)
PRIOR = GaussianPrior(PowerLaw())
ROWS = {
    "downsample": {"factor": 2},
    "inpaint-random": {},
    "blur": {"sigma": 0.7, "boundary": "circular"},
    "blur-motion": {"length": 3.0, "boundary": "zero"},
    "grayscale": {},
}
SPECTRAL = [row for row in ROWS if row != "blur-motion"]
EXACT = {"rtol": 1e-6, "atol": 1e-7}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Dense:
    """A problem of the Gaussian prior in NumPy: matrices for all that the boxes ask for, on the linear flow."""

    def __init__(self, row, sigma=0.15, steps=6, times="karras"):
        self.operator, self.sigma = build_operator(row, SHAPE, **ROWS[row]), sigma
        x = PRIOR.sample(SHAPE, ImageRng([3]), torch.float64)
        noise = GaussianNoise(sigma) if sigma else NoNoise()
        self.problem = Problem(self.operator, noise, simulate(self.operator, noise, x, ImageRng([4])))
        self.times = make_times(times, steps, PRIOR.schedule)
        self.pairs = [(float(t), float(s)) for t, s in pairwise(self.times)]
        self.draws = randn(3 * steps + 3, 1, *SHAPE)
        self.a, self.y = dense_matrix(self.operator).numpy(), self.problem.y.numpy().ravel()
        identity = torch.eye(192).double().reshape(-1, *SHAPE)
        self.c = PRIOR.covariance.apply_function(lambda v: v, identity).flatten(1).numpy()

    def ends(self, z, t):
        """z0, eps and J = d z0 / d z."""
        joint = (1 - t) ** 2 * self.c + t**2 * np.eye(192)
        jacobian = (1 - t) * np.linalg.solve(joint, self.c)
        return jacobian @ z, t * np.linalg.solve(joint, z), jacobian

    def start(self, draw):
        """The first state, which is tested with the solvers that came before."""
        return noisy_first_guess(self.times[0], self.problem, PRIOR, ReplayRng([draw])).numpy().ravel()

    def fit(self, r, level):
        """The operator r^2 A^T (r^2 A A^T + level^2)^-1."""
        return r**2 * self.a.T @ np.linalg.inv(r**2 * self.a @ self.a.T + level**2 * np.eye(len(self.a)))

    def run(self, solver, draws=None):
        """The solver's own last state, fed the same draws."""
        rng = ReplayRng(self.draws if draws is None else draws)
        state = solver.init(self.times[0], self.problem, PRIOR, rng)
        for t, s in pairwise(self.times):
            state = solver.step(state, t, s, self.problem, PRIOR, rng)
        return state.flatten()


def ancestral(t, s, eta):
    """DDIM's sigma on the linear flow, in the variance-preserving form of its paper."""
    b, a = ((1 - u) ** 2 / ((1 - u) ** 2 + u**2) for u in (s, t))
    return eta * np.sqrt((1 - b) / (1 - a) * (1 - a / b)) * np.hypot(s, 1 - s)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("update", ["clean", "ends"])
def test_pigdm_equals_a_second_writing(row, update):
    dense, weight, eta, v = Dense(row), 0.7, 0.6, 0.4
    z = dense.start(dense.draws[0])
    for (t, s), n in zip(dense.pairs, dense.draws[1:], strict=False):
        z0, eps, jacobian = dense.ends(z, t)
        r = np.sqrt(v * t**2 / ((1 - t) ** 2 * v + t**2))
        g = weight * jacobian.T @ dense.fit(r, dense.sigma) @ (dense.y - dense.a @ z0)
        if update == "ends":
            z0, eps = z0 + t**2 / ((1 - t) * r**2) * g, eps - t / r**2 * g
        c1 = ancestral(t, s, eta)
        z = (1 - s) * z0 + np.sqrt(s**2 - c1**2) * eps + c1 * n.numpy().ravel()
        z = z + (1 - s) * (1 - t) * g if update == "clean" else z
    solver = PiGDM(weight=weight, eta=eta, data_std=v**0.5, update=update)
    torch.testing.assert_close(dense.run(solver), torch.from_numpy(z), **EXACT)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("gamma", ["constant", "gamma_t"])
def test_otode_equals_a_second_writing(row, gamma):
    """As the paper has it: time runs from noise to data, an Euler step along the corrected velocity."""
    dense = Dense(row)
    z = dense.start(dense.draws[0])
    for tau, tau_next in [(1 - t, 1 - s) for t, s in dense.pairs]:
        x1, eps, jacobian = dense.ends(z, 1 - tau)
        r = np.sqrt((1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2))
        g = jacobian.T @ dense.fit(r, dense.sigma) @ (dense.y - dense.a @ x1) / r**2
        factor = 0.8 * (np.sqrt(tau / (tau**2 + (1 - tau) ** 2)) if gamma == "gamma_t" else 1)
        z = z + (tau_next - tau) * (x1 - eps + (1 - tau) / tau * factor * g)
    torch.testing.assert_close(dense.run(OTODE(weight=0.8, gamma=gamma, data_std=1.0)), torch.from_numpy(z), **EXACT)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_flower_equals_a_second_writing(row, gamma):
    dense, v = Dense(row), 0.4
    z, draws = dense.start(dense.draws[0]), list(dense.draws[1:])
    fed = [dense.draws[0]]
    for t, s in dense.pairs:
        z0, _, _ = dense.ends(z, t)
        nu = np.sqrt(v * t**2 / ((1 - t) ** 2 * v + t**2))
        covariance = np.linalg.inv(np.eye(192) / nu**2 + dense.a.T @ dense.a / dense.sigma**2)
        mean = covariance @ (z0 / nu**2 + dense.a.T @ dense.y / dense.sigma**2)
        e1, e2, n = (draws.pop(0).flatten() for _ in range(3))
        e2 = e2[: len(dense.y)]
        kappa = covariance @ (e1.numpy() / nu + dense.a.T @ e2.numpy() / dense.sigma)
        z = (1 - s) * (mean + gamma * kappa) + s * n.numpy()
        fed += [e1, e2, n] if gamma else [n]
    torch.testing.assert_close(dense.run(FLOWER(gamma=gamma, data_std=v**0.5), fed), torch.from_numpy(z), **EXACT)


@pytest.mark.parametrize("row", ROWS)
def test_mmps_equals_a_second_writing(row):
    """The data correct the clean end by its exact covariance: E[z_0 | z_t, y], with z_t a second measurement."""
    dense, eta = Dense(row), 0.6
    z = dense.start(dense.draws[0])
    for (t, s), n in zip(dense.pairs, dense.draws[1:], strict=False):
        precision = np.linalg.inv(dense.c) + ((1 - t) / t) ** 2 * np.eye(192) + dense.a.T @ dense.a / dense.sigma**2
        clean = np.linalg.solve(precision, (1 - t) / t**2 * z + dense.a.T @ dense.y / dense.sigma**2)
        eps, c1 = (z - (1 - t) * clean) / t, ancestral(t, s, eta)
        z = (1 - s) * clean + np.sqrt(s**2 - c1**2) * eps + c1 * n.numpy().ravel()
    result = dense.run(MMPS(eta=eta, krylov_steps=60))
    torch.testing.assert_close(result, torch.from_numpy(z), rtol=1e-4, atol=1e-4)  # GMRES stops at 1e-6


@pytest.mark.parametrize("row", SPECTRAL)
@pytest.mark.parametrize("sigma", [0.15, 0.0])
def test_ddrm_equals_a_second_writing(row, sigma):
    """Component by component, in the coordinates z / alpha."""
    dense, eta_a, eta_b, eta_c = Dense(row, sigma, times="vp"), 0.7, 0.9, 0.5
    u, v, vt = np.linalg.svd(dense.a)
    v = np.pad(v, (0, 192 - len(v)))
    v[v < 1e-9] = 0
    uty = np.pad(u.T @ dense.y, (0, 192 - len(dense.y)))
    seen, noise = set(), [vt @ d.numpy().ravel() for d in dense.draws]

    def component(i, x0, eps, r, n):
        if v[i] == 0:
            seen.add("null")
            return x0 + np.sqrt(1 - eta_c**2) * r * eps + eta_c * r * n
        if v[i] * r >= sigma:
            seen.add("strong")
            return (1 - eta_b) * x0 + eta_b * uty[i] / v[i] + np.sqrt(r**2 - (eta_b * sigma / v[i]) ** 2) * n
        seen.add("weak")
        return x0 + np.sqrt(1 - eta_a**2) * r * (uty[i] - v[i] * x0) / sigma + eta_a * r * n

    x = vt @ dense.start(dense.draws[0]) / (1 - dense.pairs[0][0])
    for (t, s), n in zip(dense.pairs, noise[1:], strict=False):
        z0, eps, _ = dense.ends((1 - t) * vt.T @ x, t)
        z0, eps, r = vt @ z0, vt @ eps, s / (1 - s)
        x = np.array([component(i, z0[i], eps[i], r, n[i]) for i in range(192)])
    assert "strong" in seen and ("null" in seen) == (row != "blur")
    assert ("weak" in seen) == (sigma > 0)
    result = dense.run(DDRM(eta_a=eta_a, eta_b=eta_b, eta_c=eta_c))
    torch.testing.assert_close(result, torch.from_numpy(vt.T @ x), **EXACT)


@pytest.mark.parametrize("row", SPECTRAL)
def test_ddrm_with_full_trust_is_ddnm_plus(row):
    """Two papers, one step: the noise shaping of DDNM+ is DDRM's with eta_b = 1."""
    dense = Dense(row)
    z = randn(1, *SHAPE, seed=5)
    for t, s in pairwise(dense.times):
        one, other = (
            solver.step(z, t, s, dense.problem, PRIOR, ReplayRng([dense.draws[0]]))
            for solver in (DDRM(eta_a=0.6, eta_c=0.6), DDNM(eta=0.6))
        )
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_boxes_of_the_mixture_benchmark():
    """PiGDM with both ends guided and DDRM, written in abar on a variance-preserving path with a dense matrix."""
    d, sigma, eta = 8, 0.3, 0.6
    schedule = DiscreteVP(torch.linspace(0.02, 1e-4, 999, dtype=torch.float64))
    prior = IsotropicPrior(randn(1, 1, 1, d, seed=1), 1.0, schedule)
    a_matrix, y = randn(3, d, seed=2), randn(1, 3, seed=3)
    problem = Problem(Matrix((1, 1, d), matrix=a_matrix), GaussianNoise(sigma), y)
    a, mean = a_matrix.numpy(), prior.mean.numpy().ravel()
    u, v, vt = np.linalg.svd(a)
    index = [999, 700, 300, 50, 0]
    abar = np.append(1, np.cumprod(1 - np.linspace(0.02, 1e-4, 999)))
    draws = randn(8, 1, 1, 1, d, seed=4)
    x = {"pigdm": draws[0].numpy().ravel(), "ddrm": draws[0].numpy().ravel()}
    z = {"pigdm": draws[0], "ddrm": draws[0]}
    solvers = {"pigdm": PiGDM(update="ends", eta=eta), "ddrm": DDRM(eta_a=0.85, eta_b=1.0, eta_c=1.0)}
    for (i, j), n in zip(pairwise(index), draws[1:].numpy().reshape(-1, d), strict=False):
        a_t, a_s = abar[i], abar[j]
        z0 = {name: mean + np.sqrt(a_t) * (x[name] - np.sqrt(a_t) * mean) for name in x}  # a + (1 - a) = 1
        g = (
            np.sqrt(a_t)
            * a.T
            @ np.linalg.solve((1 - a_t) * a @ a.T + sigma**2 * np.eye(3), y[0].numpy() - a @ z0["pigdm"])
        )
        score = -(x["pigdm"] - np.sqrt(a_t) * z0["pigdm"]) / (1 - a_t) + g
        s = eta * np.sqrt((1 - a_s) / (1 - a_t) * (1 - a_t / a_s))
        x["pigdm"] = (
            np.sqrt(a_s) * (x["pigdm"] + (1 - a_t) * score) / np.sqrt(a_t)
            + s * n
            - np.sqrt(max(1 - a_s - s**2, 0)) * np.sqrt(1 - a_t) * score
        )
        r, x0, nv, uty = np.sqrt((1 - a_s) / a_s), vt @ z0["ddrm"], vt @ n, u.T @ y[0].numpy()
        inner = x0 + r * nv  # the null space, eta_c = 1
        for k in range(3):
            if sigma / v[k] < r:
                inner[k] = uty[k] / v[k] + np.sqrt(r**2 - (sigma / v[k]) ** 2) * nv[k]
            else:
                inner[k] = x0[k] + np.sqrt(1 - 0.85**2) * r * (uty[k] - v[k] * x0[k]) / sigma + 0.85 * r * nv[k]
        x["ddrm"] = np.sqrt(a_s) * vt.T @ inner
        times = [torch.tensor(k / 999, dtype=torch.float64) for k in (i, j)]
        for name, solver in solvers.items():
            rng = ReplayRng([torch.from_numpy(n).reshape(1, 1, 1, d)])
            z[name] = solver.step(z[name], *times, problem, prior, rng)
            torch.testing.assert_close(z[name].flatten(), torch.from_numpy(x[name]), rtol=0, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Against the posterior
# ---------------------------------------------------------------------------------------------------------------------


def small_world(covariance, sigma=0.2, seed=0):
    """Six numbers seen of sixteen, with the mean and covariance of the posterior."""
    prior = GaussianPrior(Full(covariance), mean=0.2)
    operator = Matrix((1, 4, 4), matrix=randn(6, 16, seed=seed) / 2)
    x = prior.sample((1, 4, 4), ImageRng([5]), torch.float64)
    problem = Problem(operator, GaussianNoise(sigma), simulate(operator, GaussianNoise(sigma), x, ImageRng([7])))
    posterior = prior.posterior(operator, sigma, problem.y)
    identity = torch.eye(16).double().reshape(-1, 1, 4, 4)
    return (
        prior,
        problem,
        posterior.mean.flatten(),
        posterior.covariance.apply_function(lambda v: v, identity).flatten(1),
    )


def distances(solver, times, prior, problem, mean, covariance):
    """Exact distance of the solver's law to the posterior: of the mean in standard deviations, of the covariance."""
    got_mean, got_covariance = affine_moments(solver, make_times(*times, prior.schedule), problem, prior)
    return (
        float((got_mean - mean).norm() / covariance.trace().sqrt()),
        float((got_covariance - covariance).norm() / covariance.norm()),
    )


def random_covariance(seed=1):
    factor = randn(16, 16, seed=seed)
    return factor @ factor.T / 32 + 0.02 * torch.eye(16).double()


@pytest.mark.parametrize(("eta", "n"), [(1.0, 60), (0.0, 40)])
@pytest.mark.slow
def test_mmps_samples_the_posterior_of_a_gaussian_prior(eta, n):
    """Mean and covariance are right in the limit of many steps, and the error falls like one over their number."""
    world = small_world(random_covariance())
    solver = MMPS(krylov_steps=6, eta=eta)  # as many as there are data
    (_, coarse), (mean, fine) = (distances(solver, ("karras", steps), *world) for steps in (n, 4 * n))
    assert mean < 0.02
    assert fine < 0.05
    assert 3 < coarse / fine < 5
    assert not MMPS().samples_posterior  # of any prior: see test_validate


def test_too_few_krylov_steps_are_no_posterior():
    """That needs its linear systems solved: one step of GMRES misses the mean."""
    prior, problem, mean, covariance = small_world(random_covariance())
    times = make_times("karras", 50, prior.schedule)
    shift = []
    for krylov_steps in (1, 6):
        x = (
            solve(problem, prior, MMPS(krylov_steps=krylov_steps), times, samples=256, batch_size=256)
            .samples[0]
            .flatten(1)
        )
        shift.append(float((x.mean(dim=0) - mean).norm() / covariance.trace().sqrt()))
    assert shift[1] < 0.08 < 0.13 < shift[0]


def test_flower_is_exact_for_an_isotropic_prior():
    """With its uncertainty, four steps are enough."""
    world = small_world(0.3 * torch.eye(16).double())
    mean, covariance = distances(FLOWER(gamma=1.0, data_std=0.3**0.5), ("karras", 4), *world)
    assert mean < 1e-3
    assert covariance < 1e-3
    assert distances(FLOWER(gamma=0.0, data_std=0.3**0.5), ("karras", 4), *world)[1] > 0.5  # its mean alone
    assert distances(FLOWER(gamma=1.0, data_std=1.0), ("karras", 4), *world)[1] > 0.02


@pytest.mark.parametrize(
    "solver", [PiGDM(update="ends", data_std=0.3**0.5), OTODE(data_std=0.3**0.5)], ids=["pigdm", "otode"]
)
def test_the_guided_score_is_exact_for_an_isotropic_prior(solver):
    """Then r^2 is the covariance of z_0 given z_t, and only the size of the steps is left."""
    world = small_world(0.3 * torch.eye(16).double())
    (_, coarse), (mean, fine) = (distances(solver, ("karras", n), *world) for n in (60, 240))
    assert mean < 0.01
    assert fine < 0.05
    assert 3 < coarse / fine < 5
    other = small_world(random_covariance())
    assert distances(solver, ("karras", 240), *other)[0] > 0.1  # and no other prior's
    assert not solver.samples_posterior


# ---------------------------------------------------------------------------------------------------------------------
# Latents, noiseless data, costs, ranges
# ---------------------------------------------------------------------------------------------------------------------


def seen_through_a_matrix():
    """Latents (2, 3, 2) ~ N(0, I) seen as pictures (1, 4, 4), six numbers of them measured."""
    prior = LinearDecoder(IsotropicPrior(torch.zeros(1, 2, 3, 2), 1.0), randn(16, 12, seed=8) / 4, (1, 4, 4), (2, 3, 2))
    return prior, Matrix((1, 4, 4), matrix=randn(6, 16, seed=2))


def test_mmps_corrects_latents_through_the_derivative_of_the_decoder():
    """A D is one matrix here, so the step to t = 0 ends at the closed-form E[z_0 | z_t, y]."""
    (prior, operator), t, sigma = seen_through_a_matrix(), 0.6, 0.3
    problem = Problem(operator, GaussianNoise(sigma), randn(2, 6, seed=3))
    z = randn(2, 2, 3, 2, seed=4)
    joint = (operator.matrix @ prior.matrix).numpy()
    precision = (1 + ((1 - t) / t) ** 2) * np.eye(12) + joint.T @ joint / sigma**2
    right = (1 - t) / t**2 * z.flatten(1).numpy() + problem.y.numpy() @ joint / sigma**2
    times = torch.tensor([t, 0.0], dtype=torch.float64)
    got = MMPS(krylov_steps=50).step(z, *times, problem, prior, ImageRng([0, 1]))
    torch.testing.assert_close(
        got.flatten(1), torch.from_numpy(np.linalg.solve(precision, right.T).T), rtol=1e-5, atol=1e-6
    )


def test_pigdm_guides_latents_through_decoder_and_network():
    """J^T r^2 M^T (r^2 M M^T + sigma^2)^-1 (y - M z0), M = A D."""
    (prior, operator), t, s, sigma = seen_through_a_matrix(), 0.6, 0.4, 0.3
    problem = Problem(operator, GaussianNoise(sigma), randn(1, 6, seed=3))
    z = randn(1, 2, 3, 2, seed=4)
    joint, total = (operator.matrix @ prior.matrix).numpy(), (1 - t) ** 2 + t**2
    z0, eps = (1 - t) / total * z.numpy().ravel(), t / total * z.numpy().ravel()
    r2 = t**2 / total
    pull = (
        r2 * joint.T @ np.linalg.solve(r2 * joint @ joint.T + sigma**2 * np.eye(6), problem.y[0].numpy() - joint @ z0)
    )
    expected = (1 - s) * z0 + s * eps + (1 - s) * (1 - t) * (1 - t) / total * pull
    times = torch.tensor([t, s], dtype=torch.float64)
    got = PiGDM(eta=0.0).step(z, *times, problem, prior, ImageRng([0]))
    torch.testing.assert_close(got.flatten(), torch.from_numpy(expected), rtol=0, atol=1e-9)


def test_a_latent_drawn_given_y_sees_the_perturbed_data_where_they_were_measured():
    """y in place of the problem's data, against the closed form; what it says of hidden entries changes nothing."""
    (prior, _), sigma, rho = seen_through_a_matrix(), 0.3, torch.tensor([0.5], dtype=torch.float64)
    operator = build_operator("inpaint-random", (1, 4, 4), fraction=0.7)  # five numbers, fewer than the steps
    problem = Problem(operator, GaussianNoise(sigma), operator(randn(1, 1, 4, 4, seed=3)))
    z0, y = randn(1, 2, 3, 2, seed=4), randn(1, 1, 4, 4, seed=5)
    mask = operator.data_mask.expand(1, 1, 4, 4).flatten().double()
    joint = mask[:, None].numpy() * prior.matrix.numpy()
    right = joint.T @ (mask * y.flatten()).numpy() + 0.5 * z0.numpy().ravel()
    expected = np.linalg.solve(joint.T @ joint + 0.5 * np.eye(12), right)
    got = proximal_step(z0, problem, rho, prior, y)
    np.testing.assert_allclose(got.numpy().ravel(), expected, rtol=0, atol=1e-6)
    elsewhere = torch.where(mask.reshape(y.shape) > 0, y, 7.0)
    assert torch.equal(proximal_step(z0, problem, rho, prior, elsewhere), got)


@pytest.mark.parametrize(
    ("spec", "s", "ratio"),
    [  # ratio: sigma_y^2 / rho is its square
        ("flower", 0.0, 0.6 / math.hypot(0.4, 0.6)),
        ("diffpir(weight=0.25, data_std=none)", 0.0, 2 * 0.6 / 0.4),
        ("diffpir(weight=0.25)", 0.0, 2 * 0.6 / math.hypot(0.4, 0.6)),
        ("ddnm(eta=0.0)", 0.3, 0.3 / 0.7),
        ("ddrm(eta_c=0.0)", 0.3, 0.3 / 0.7),
    ],
)
def test_clean_ends_meet_the_data_through_the_derivative_of_the_decoder(spec, s, ratio):
    """z0 becomes the mean of z given y = A D z + noise, where z ~ N(z0, ratio^2 I)."""
    (prior, operator), t, sigma = seen_through_a_matrix(), 0.6, 0.3
    problem = Problem(operator, GaussianNoise(sigma), randn(2, 6, seed=3))
    z = randn(2, 2, 3, 2, seed=4)
    joint, total = (operator.matrix @ prior.matrix).numpy(), (1 - t) ** 2 + t**2
    times = torch.tensor([t, s], dtype=torch.float64)
    got = build_solver(spec).step(z, *times, problem, prior, ImageRng([0, 1]))
    for k in range(2):
        z0, eps = (1 - t) / total * z[k].numpy().ravel(), t / total * z[k].numpy().ravel()
        gain = ratio**2 * joint.T @ np.linalg.inv(ratio**2 * joint @ joint.T + sigma**2 * np.eye(6))
        mean = z0 + gain @ (problem.y[k].numpy() - joint @ z0)
        np.testing.assert_allclose(got[k].numpy().ravel(), (1 - s) * mean + s * eps, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "spec", ["pigdm", "pigdm(update='ends')", "otode", "flower", "flower(gamma=1.0)", "mmps", "ddrm"]
)
def test_noiseless_data_are_explained(spec):
    dense = Dense("downsample", sigma=0.0)
    result = solve(dense.problem, PRIOR, build_solver(spec), samples=4)
    misfit = dense.operator(result.samples[0]) - dense.problem.y
    assert misfit.square().mean().sqrt() < 0.03


def test_the_start_and_ddrm_keep_the_digits_of_float32():
    """A blur with singular values down to 1e-4: dividing A^T y by v^2 would be wrong by most of the picture."""
    operator = build_operator("blur", (3, 32, 32), sigma=2.0)
    y = operator(PRIOR.sample((3, 32, 32), ImageRng([0]), torch.float64))
    starts, ends = [], []
    for dtype in (torch.float32, torch.float64):
        problem = Problem(operator, NoNoise(), y.to(dtype))
        times = make_times("restoration", 3, PRIOR.schedule).to(dtype)
        starts.append(noisy_first_guess(times[0], problem, PRIOR, ImageRng([1])).double())
        ends.append(solve(problem, PRIOR, DDRM(), times).samples.double())
    assert (starts[0] - starts[1]).abs().max() < 1e-3
    assert (ends[0] - ends[1]).abs().max() < 2e-3


@pytest.mark.parametrize("spec", ["pigdm", "pigdm(update='ends')", "otode", "flower(gamma=1.0)", "mmps", "ddrm"])
def test_pure_noise_is_a_time_like_the_others(spec):
    """alpha = 0 at the first time of an even grid: sigma^2 / alpha is infinite there, and J is zero."""
    dense = Dense("downsample")
    for prior in (PRIOR, Rescheduled(PRIOR, DiscreteVP(linear_betas()))):
        times = make_times("uniform", 8, prior.schedule)
        assert solve(dense.problem, prior, build_solver(spec), times).ok


def test_gradients_through_the_network_are_as_few_as_the_box_says():
    dense = Dense("downsample", sigma=0.15)
    counts = {
        name: solve(dense.problem, PRIOR, build_solver(name), dense.times).stats["network_vjp"]
        for name in ("pigdm", "otode", "flower", "ddrm", "mmps", "mmps(krylov_steps=1)")
    }
    steps = len(dense.pairs)
    assert counts.pop("mmps") <= 4 * steps  # fewer where the system is solved before
    assert counts == {"pigdm": steps, "otode": steps, "flower": 0, "ddrm": 0, "mmps(krylov_steps=1)": 2 * steps}


@pytest.mark.parametrize(
    "spec",
    [
        "pigdm(eta=2.0)",
        "pigdm(weight=-1.0)",
        "pigdm(data_std=0.0)",
        "pigdm(update='both')",
        "otode(gamma='linear')",
        "otode(weight=-1.0)",
        "otode(data_std=0.0)",
        "flower(gamma=2.0)",
        "flower(data_std=0.0)",
        "mmps(krylov_steps=0)",
        "mmps(eta=-1.0)",
        "ddrm(eta_a=2.0)",
        "ddrm(eta_b=-1.0)",
        "ddrm(eta_c=2.0)",
    ],
)
def test_hyperparameters_have_ranges(spec):
    with pytest.raises(ValueError, match="must be"):
        build_solver(spec)


# ---------------------------------------------------------------------------------------------------------------------
# GMRES
# ---------------------------------------------------------------------------------------------------------------------


def test_gmres_solves_what_conjugate_gradients_cannot():
    """A matrix that is neither symmetric nor positive, a singular one, one that is solved by a single step."""
    m = torch.stack([randn(9, 9, seed=1), randn(9, 9, seed=2), torch.eye(9).double() * 3])
    m[1] = m[1] @ torch.diag(torch.arange(9).double())  # of rank 8
    x = randn(3, 9, seed=3)
    b = torch.einsum("bij,bj->bi", m, x)
    products = []

    def matvec(v):
        products.append(v)
        return torch.einsum("bij,bj->bi", m, v)

    solution = gmres(matvec, b, tolerance=1e-12, max_steps=20)
    assert len(products) <= 10
    torch.testing.assert_close(torch.einsum("bij,bj->bi", m, solution), b, rtol=0, atol=1e-9)
    assert (products[1][2] == 0).all()  # the third row was done after one product and stays
    for k in range(3):
        alone = gmres(lambda v, k=k: v @ m[k].T, b[k : k + 1], tolerance=1e-12, max_steps=20)
        torch.testing.assert_close(alone, solution[k : k + 1], rtol=1e-6, atol=1e-9)
    misfits = [(torch.einsum("bij,bj->bi", m, gmres(matvec, b, max_steps=n)) - b).norm(dim=1) for n in range(1, 10)]
    assert all((after <= before + 1e-9).all() for before, after in pairwise(misfits))
    assert torch.equal(gmres(matvec, 0 * b), 0 * b)
