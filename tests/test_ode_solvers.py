"""Posterior samplers that follow the flow to its end: DAPS, PnP-Flow, D-Flow, Flow-Priors, SGFM, and their pieces."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from toys import ReplayRng

from invsolve import GaussianNoise, ImageRng, Problem, build_operator, build_solver, make_times, simulate, solve
from invsolve.operators import Matrix
from invsolve.priors import DiscreteVP, Full, GaussianMixture, GaussianPrior, PowerLaw, Rescheduled
from invsolve.priors.gaussian import dense_matrix
from invsolve.priors.schedule import linear_betas
from invsolve.sample import follow_flow
from invsolve.solvers._descent import curvature
from invsolve.solvers._source import chi_nll, descend, start_descent, transport, transport_calls
from invsolve.solvers._start import noisy_first_guess
from invsolve.solvers.daps import DAPS
from invsolve.solvers.dflow import DFlow
from invsolve.solvers.flowpriors import FlowPriors
from invsolve.solvers.pnpflow import PnPFlow
from invsolve.solvers.sgfm import SGFM, Chain
from invsolve.times import karras, restoration

SHAPE = (3, 8, 8)
PRIOR = GaussianPrior(PowerLaw())
ROWS = {"downsample": {"factor": 2}, "inpaint-random": {}, "blur": {"sigma": 0.7}}
EXACT = {"rtol": 1e-6, "atol": 1e-7}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Dense:
    """A problem of the Gaussian prior in NumPy, on the linear flow."""

    def __init__(self, row, sigma=0.15):
        self.operator, self.sigma = build_operator(row, SHAPE, **ROWS[row]), sigma
        x = PRIOR.sample(SHAPE, ImageRng([3]), torch.float64)
        noise = GaussianNoise(sigma)
        self.problem = Problem(self.operator, noise, simulate(self.operator, noise, x, ImageRng([4])))
        self.a, self.y = dense_matrix(self.operator).numpy(), self.problem.y.numpy().ravel()
        identity = torch.eye(192).double().reshape(-1, *SHAPE)
        self.c = PRIOR.covariance.apply_function(lambda v: v, identity).flatten(1).numpy()
        self.largest = np.linalg.eigvalsh(self.a.T @ self.a)[-1]

    def ends(self, z, t):
        """The matrices of the clean end and of the noise, applied."""
        joint = (1 - t) ** 2 * self.c + t**2 * np.eye(192)
        return (1 - t) * self.c @ np.linalg.solve(joint, z), t * np.linalg.solve(joint, z)

    def start(self, t, draw):
        """The first point of the path, which is tested with the solvers that came before."""
        return noisy_first_guess(t, self.problem, PRIOR, ReplayRng([draw])).numpy().ravel()

    def prox(self, x, y, rho):
        return np.linalg.solve(self.a.T @ self.a + rho * np.eye(192), self.a.T @ y + rho * x)


class Stream:
    """Random numbers in the order they are asked for, as the solver or as the second writing wants them."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)

    def randn_like(self, x):
        return torch.randn(x.shape, generator=self.generator, dtype=torch.float64)

    def flat(self, n):
        return torch.randn(n, generator=self.generator, dtype=torch.float64).numpy()


def small(sigma=0.3, d=6, m=3, seed=0):
    """A correlated Gaussian prior in six dimensions, three numbers measured, and the posterior."""
    factor = randn(d, d, seed=seed)
    prior = GaussianPrior(Full(0.2 * factor @ factor.T / d + 0.02 * torch.eye(d)), 0.3 * randn(1, 1, d, seed=seed + 1))
    operator, noise = Matrix((1, 1, d), matrix=randn(m, d, seed=seed + 2) / d**0.5), GaussianNoise(sigma)
    x = prior.sample((1, 1, d), ImageRng([seed]), torch.float64)
    problem = Problem(operator, noise, simulate(operator, noise, x, ImageRng([seed + 1])))
    return prior, problem, prior.posterior(operator, sigma, problem.y)


def whitened(samples, posterior):
    """Mean and covariance of samples (n, C, H, W) in units of the posterior: 0 and the identity if they follow it."""
    centred = posterior.covariance.apply_function(torch.rsqrt, samples.double() - posterior.mean).flatten(1)
    return centred.mean(dim=0), centred.T.cov()


# --- pieces -----------------------------------------------------------------------------------------------------------


def end_of_flow(prior, z, t):
    """The flow of a Gaussian prior keeps (alpha^2 C + sigma^2)^-1/2 (z - alpha mean), at the end C^-1/2 (z - mean)."""
    alpha, sigma = prior.schedule(t)
    centred = z - alpha * prior.mean
    return prior.mean + prior.covariance.apply_function(lambda v: (v / (alpha**2 * v + sigma**2)).sqrt(), centred)


@pytest.mark.parametrize(("midpoint", "order"), [(False, 1), (True, 2)])
def test_ode_converges_at_its_order(midpoint, order):
    prior, _, _ = small()
    z, start = randn(5, 1, 1, 6), torch.tensor(0.8).double()
    exact = end_of_flow(prior, z, start)
    errors, returns = [], []
    for n in (20, 40):
        times = torch.linspace(0.8, 0, n + 1, dtype=torch.float64)
        errors.append(float((follow_flow(prior, z, times, midpoint=midpoint) - exact).norm()))
        back = follow_flow(
            prior, follow_flow(prior, z, times[:-1], midpoint=midpoint), times[:-1].flip(0), midpoint=midpoint
        )
        returns.append(float((back - z).norm()))
    assert returns[0] > 0.8 * 2**order * returns[1]
    assert errors[0] > 0.9 * 2**order * errors[1]


@pytest.mark.parametrize("midpoint", [False, True])
def test_ode_is_the_same_on_every_path(midpoint):
    prior, _, _ = small()
    vp = Rescheduled(prior, DiscreteVP(linear_betas()))
    times, z = karras(7), randn(4, 1, 1, 6)
    vp_times = vp.schedule.time(prior.schedule.ratio(times))
    at_start = [p.at(t, torch.zeros_like(z), z) for p, t in ((prior, times[0]), (vp, vp_times[0]))]
    flow, other = (
        follow_flow(p, a, t, midpoint=midpoint)
        for p, a, t in zip((prior, vp), at_start, (times, vp_times), strict=True)
    )
    torch.testing.assert_close(flow, other, rtol=1e-6, atol=1e-7)


def test_transport_carries_the_source_to_the_prior():
    """x ~ N(0, I) goes to mean + C^1/2 x, also where the spread of the prior is not small against the first ratio."""
    factor = randn(6, 6)
    prior = GaussianPrior(Full(10 * factor @ factor.T), randn(1, 1, 6))  # standard deviations up to 14
    x = randn(50, 1, 1, 6, seed=1)
    exact = prior.mean + prior.covariance.apply_function(torch.sqrt, x)
    fine, coarse = (float((transport(prior, x, n) - exact).norm() / exact.norm()) for n in (200, 12))
    assert fine < 3e-3
    assert coarse < 2e-2
    assert transport_calls(12) == 26


def test_curvature_is_the_largest_eigenvalue():
    matrix = randn(4, 6, seed=2)
    problem = Problem(Matrix((1, 1, 6), matrix=matrix), GaussianNoise(0.1), randn(3, 4))
    scale = torch.tensor([1.0, 2.0, 0.5]).double()[:, None, None, None]  # a decoder that differs from row to row
    largest, v = curvature(problem, lambda z: scale * z, randn(3, 1, 1, 6), randn(3, 1, 1, 6, seed=1), 60)
    exact = torch.linalg.matrix_norm(matrix, 2).square() * scale.flatten().square()
    torch.testing.assert_close(largest, exact)
    warm, _ = curvature(problem, lambda z: scale * z, randn(3, 1, 1, 6), v, 1)
    torch.testing.assert_close(warm, exact)


def rosenbrock(x):
    a, b = x.flatten(1).T
    return (1 - a) ** 2 + 100 * (b - a**2) ** 2, 2 * x


def test_descent_of_every_row_by_itself():
    start = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [3.0, -2.0]]).double().reshape(3, 1, 1, 2)

    def run(rows):
        state = start_descent(rosenbrock, start[rows])
        values = [state.value]
        for _ in range(80):
            state = descend(rosenbrock, state)
            values.append(state.value)
            assert state.z.equal(2 * state.x)
        return state.x, torch.stack(values)

    together, values = run([0, 1, 2])
    torch.testing.assert_close(together, torch.ones_like(together), rtol=1e-6, atol=1e-6)
    assert (values.diff(dim=0) <= 0).all()
    for k in range(3):
        torch.testing.assert_close(together[k], run([k])[0][0], rtol=1e-9, atol=1e-9)


def test_descent_turns_back_from_where_the_function_is_not_finite():
    def barrier(x):  # least at 1 / 2; not a number beyond 1
        return -(x.flatten(1).log() + (1 - x.flatten(1)).log()).sum(dim=1), x

    state = start_descent(barrier, torch.tensor([[0.99], [0.02]]).double().reshape(2, 1, 1, 1))
    for _ in range(40):
        state = descend(barrier, state)
        assert state.z.equal(state.x)
    torch.testing.assert_close(state.x.flatten(), torch.full((2,), 0.5).double(), rtol=0, atol=1e-6)


def test_chi_nll_is_the_density_of_the_squared_norm():
    x = randn(4, 1, 2, 5)
    log_p = torch.distributions.Chi2(torch.tensor(10.0).double()).log_prob(x.flatten(1).square().sum(dim=1))
    difference = chi_nll(x) + log_p
    torch.testing.assert_close(difference, difference[:1].expand(4))


# --- DAPS -------------------------------------------------------------------------------------------------------------


def run(solver, dense, times, stream):
    """The last state of a solver whose random numbers come from `stream`."""
    state = solver.init(times[0], dense.problem, PRIOR, stream)
    for t, s in pairwise(times):
        state = solver.step(state, t, s, dense.problem, PRIOR, stream)
    return solver.estimate(state).flatten()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("inner", ["exact", "langevin"])
def test_daps_equals_a_second_writing(row, inner):
    dense, n_ode, n_chain, std, share = Dense(row), 3, 4, 0.7, 0.3
    times, numbers, sigma = make_times("restoration", 3, PRIOR.schedule), Stream(), dense.sigma
    z = dense.start(times[0], numbers.randn_like(torch.zeros(1, *SHAPE)))
    steepest = numbers.flat(192)
    for t, s in pairwise(times.tolist()):
        z0 = z
        for a, b in pairwise([t, *restoration(n_ode, t / (1 - t), 0.01)[1:].tolist()]):
            clean, noise = dense.ends(z0, a)
            z0 = (1 - b) * clean + b * noise
        r = 0.6 * std * t / math.hypot((1 - t) * std, t)
        u = z0 + r * numbers.flat(192)
        if inner == "exact":
            y = dense.y + sigma * numbers.flat(len(dense.y))
            u = np.linalg.solve(
                dense.a.T @ dense.a + (sigma / r) ** 2 * np.eye(192), dense.a.T @ y + (sigma / r) ** 2 * u
            )
        else:
            for _ in range(4):  # power iteration goes on from step to step
                steepest = dense.a.T @ dense.a @ (steepest / np.linalg.norm(steepest))
            h = share / (np.linalg.norm(steepest) / sigma**2 + 1 / r**2)
            for _ in range(n_chain):
                g = dense.a.T @ (dense.a @ u - dense.y) / sigma**2 + (u - z0) / r**2
                u = u - h * g + np.sqrt(2 * h) * numbers.flat(192)
        z = (1 - s) * u + s * numbers.flat(192)
    solver = DAPS(ode_steps=n_ode, inner=inner, langevin_steps=n_chain, step_size=share, data_std=std, spread=0.6)
    torch.testing.assert_close(run(solver, dense, times, Stream()), torch.from_numpy(z), **EXACT)


@pytest.mark.parametrize("inner", ["exact", "langevin"])
def test_daps_draws_from_the_gaussian_it_says(inner):
    """Both inner samplers against N(z0, r^2) p(y | .) in closed form, the chain up to its step."""
    _, problem, _ = small()
    n, r, sigma = 1500, 0.5, 0.3
    z0 = randn(1, 1, 1, 6)
    model = GaussianPrior(Full(r**2 * torch.eye(6).double()), z0[0])
    solver = DAPS(inner=inner, langevin_steps=100, step_size=0.1)
    draw = solver._langevin if inner == "langevin" else solver._exact
    many = problem.rows(torch.zeros(n, dtype=torch.long))
    u, _ = draw(z0.expand(n, -1, -1, -1), randn(n, 1, 1, 6), torch.tensor(r).double(), many, model, ImageRng(range(n)))
    mean, covariance = whitened(u, model.posterior(problem.operator, sigma, problem.y))
    assert mean.abs().max() < 4 / n**0.5
    assert (covariance - torch.eye(6)).abs().max() < 0.12


def test_daps_says_what_it_cannot_draw_exactly():
    operator = build_operator("jpeg", SHAPE, quality=10)
    problem = Problem(operator, GaussianNoise(0.1), operator(PRIOR.sample(SHAPE, ImageRng([0]))))
    with pytest.raises(TypeError, match="needs a linear operator"):
        solve(problem, PRIOR, DAPS(inner="exact"), make_times("restoration", 1, PRIOR.schedule))


# --- PnP-Flow and Flow-Priors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_pnpflow_equals_a_second_writing(row):
    dense, times, numbers = Dense(row), make_times("uniform", 4, PRIOR.schedule), Stream()
    z, steepest = dense.prox(np.zeros(192), dense.y, (dense.sigma / 0.5) ** 2), numbers.flat(192)
    for t in times[:-1].tolist():
        for _ in range(4):
            steepest = dense.a.T @ dense.a @ (steepest / np.linalg.norm(steepest))
        curved = np.linalg.norm(steepest) + (dense.sigma * (1 - t) / t) ** 2
        z = z - 0.9 * t**0.6 / curved * dense.a.T @ (dense.a @ z - dense.y)
        z = np.mean([dense.ends((1 - t) * z + t * numbers.flat(192), t)[0] for _ in range(3)], axis=0)
    solver = PnPFlow(step_size=0.9, alpha=0.6, averages=3)
    torch.testing.assert_close(run(solver, dense, times, Stream()), torch.from_numpy(z), **EXACT)


@pytest.mark.parametrize("row", ROWS)
def test_flowpriors_equals_a_second_writing(row):
    """Of a Gaussian prior the divergence is constant: nothing is left of the probe."""
    dense, lr, weight, inner = Dense(row), 0.3, 0.5, 3
    times, numbers = make_times("uniform", 4, PRIOR.schedule), Stream()
    x = dense.start(times[0], numbers.randn_like(torch.zeros(1, *SHAPE)))
    y_1 = dense.a @ x
    for t, s in pairwise(times.tolist()):
        y_s = (1 - s) * dense.y + s * y_1
        clean, noise = dense.ends(np.eye(192), t)
        velocity = clean - noise  # as a matrix
        ahead = dense.a @ (np.eye(192) + (t - s) * velocity)
        first, second = np.zeros(192), np.zeros(192)
        for j in range(1, inner + 1):
            numbers.flat(192)
            g = weight * ahead.T @ (ahead @ x - y_s) / ((1 - s) * dense.sigma) ** 2
            g = g + dense.ends(x, t)[1] / t
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            x = x - lr * (t - s) * first / (1 - 0.9**j) / (np.sqrt(second / (1 - 0.999**j)) + 1e-8)
        x = x + (t - s) * velocity @ x
    solver = FlowPriors(lr=lr, weight=weight, inner_steps=inner)
    torch.testing.assert_close(run(solver, dense, times, Stream()), torch.from_numpy(x), **EXACT)


def test_flowpriors_goes_where_the_density_of_the_next_point_is_higher():
    """In one dimension the probe is exact: a step without data is downhill on (t - s) div u - log p_t."""
    mixture = GaussianMixture(
        torch.tensor([0.3, 0.7]).double(), randn(2, 1, 1, 1, seed=4), 0.05 * torch.eye(1).double()[None]
    )
    problem = Problem(
        Matrix((1, 1, 1), matrix=torch.ones(1, 1).double()), GaussianNoise(0.1), torch.zeros(1, 1).double()
    )
    t, s = torch.tensor([0.6, 0.3]).double()
    x = torch.linspace(-3, 3, 401, dtype=torch.float64).reshape(-1, 1, 1, 1)

    def loss(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            clean, noise = mixture.predict(leaf, t)
            (div,) = torch.autograd.grad((clean - noise).sum(), leaf)
        spread = ((1 - t).square() * 0.05 + t.square()).sqrt()
        parts = torch.distributions.Normal((1 - t) * mixture.means.flatten(), spread).log_prob(x.flatten()[:, None])
        return (t - s) * div.flatten() - (parts + mixture.weights.log()).logsumexp(dim=1)

    slope = (loss(x + 1e-5) - loss(x - 1e-5)) / 2e-5
    many = problem.rows(torch.zeros(len(x), dtype=torch.long))
    solver, rng = FlowPriors(weight=0.0, lr=1e-3 / 0.3), ImageRng(range(len(x)))
    state = solver.init(torch.tensor(1.0).double(), many, mixture, rng)._replace(z=x)
    moved = solver.step(state, t, s, many, mixture, rng).z
    clean, noise = mixture.predict(x - 1e-3 * slope.sign().reshape(x.shape), t)  # Adam's first step is the sign
    expected = x - 1e-3 * slope.sign().reshape(x.shape) + (t - s) * (clean - noise)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)
    assert ((noise / t).sign() != slope.sign().reshape(x.shape)).any()  # the divergence decides somewhere


# --- D-Flow and SGFM --------------------------------------------------------------------------------------------------


def transport_matrix(prior, steps, d=6):
    """Of a Gaussian prior T is affine: T(x) = matrix x + offset."""
    identity = torch.eye(d).double().reshape(d, 1, 1, d)
    offset = transport(prior, torch.zeros(1, 1, 1, d).double(), steps).flatten()
    return (transport(prior, identity, steps).flatten(1) - offset).T, offset


def test_opt1_finds_the_most_probable_source_point():
    """argmin |A T(x) - y|^2 / 2 sigma^2 + |x|^2 / 2, which is a least squares problem."""
    prior, problem, posterior = small()
    solver = SGFM(variant="opt-1", ode_steps=8)
    result = solve(problem, prior, solver, make_times("uniform", 6, prior.schedule))
    matrix, offset = transport_matrix(prior, 8)
    b = problem.operator.matrix @ matrix / 0.3
    rest = (problem.y.flatten() - problem.operator.matrix @ offset) / 0.3
    x = torch.linalg.solve(b.T @ b + torch.eye(6), b.T @ rest)
    torch.testing.assert_close(result.samples.flatten(), matrix @ x + offset, rtol=1e-5, atol=1e-6)
    assert float((result.samples.flatten() - posterior.mean.flatten()).norm() / posterior.mean.norm()) < 0.02


def test_opt2_and_dflow_find_points_on_the_sphere():
    """Where no data are seen, |x|^2 is at the mode d - 2 of its density; the weight 1 of D-Flow is opt-2."""
    prior, problem, _ = small(m=1)
    times = make_times("uniform", 8, prior.schedule)
    for solver in (SGFM(variant="opt-2"), DFlow()):
        state = solver.init(times[0], problem, prior, ImageRng([1]))
        for t, s in pairwise(times):
            state = solver.step(state, t, s, problem, prior, ImageRng([1]))
        assert float(state.g.norm()) < 1e-4
        objective = problem.nll(transport(prior, state.x, solver.ode_steps)) + chi_nll(state.x)
        torch.testing.assert_close(state.value, objective)
        torch.testing.assert_close(state.z, transport(prior, state.x, solver.ode_steps))
        weighed = prior.predict(torch.zeros(1, 1, 1, 6).double(), torch.tensor(0.5).double()).clean  # any picture
        assert problem.nll(state.z) < problem.nll(weighed)


def test_dflow_starts_at_the_inverted_first_guess():
    prior, problem, _ = small()
    state = DFlow(blend=1.0, ode_steps=40).init(torch.tensor(1.0).double(), problem, prior, ImageRng([0]))
    guess = problem.linear.prox(torch.zeros(1, 1, 1, 6).double(), problem.y, torch.tensor(0.36).double())
    torch.testing.assert_close(transport(prior, state.x, 40), guess, rtol=0, atol=0.02)
    blended = DFlow(blend=0.25, ode_steps=40).init(torch.tensor(1.0).double(), problem, prior, ImageRng([0])).x
    noise = ImageRng([0]).randn((1, 1, 6), dtype=torch.float64)
    torch.testing.assert_close(blended, 0.5 * state.x + 0.75**0.5 * noise)


@pytest.mark.slow
def test_sgfm_samples_a_gaussian_posterior():
    """The claim samples_posterior: mean and covariance of the exact posterior to a few per cent of its spread."""
    prior, problem, posterior = small(sigma=0.1)
    n = 1200
    assert SGFM().samples_posterior and not SGFM(variant="opt-1").samples_posterior
    result = solve(problem, prior, SGFM(ode_steps=10), samples=n, batch_size=n)
    mean, covariance = whitened(result.samples[0], posterior)
    assert mean.abs().max() < 3 / n**0.5
    assert (covariance - torch.eye(6)).abs().max() < 0.12
    assert float((covariance.diagonal() - 1).mean().abs()) < 0.05


@pytest.mark.slow
def test_sgfm_visits_the_modes_as_often_as_they_deserve():
    """Four far modes in the plane, of which one number is measured: two explain it, one of them better."""
    means = 4 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    mixture = GaussianMixture(
        torch.tensor([0.1, 0.4, 0.2, 0.3]).double(), means.reshape(4, 1, 1, 2), 0.2 * torch.eye(2).double()[None]
    )
    operator = Matrix((1, 1, 2), matrix=torch.tensor([[1.0, 0.1]]).double())
    problem = Problem(operator, GaussianNoise(0.3), torch.tensor([[4.0]]).double())
    n = 1500
    samples = solve(problem, mixture, SGFM(ode_steps=16), samples=n, batch_size=n).samples[0]
    exact = mixture.posterior(operator, 0.3, problem.y)
    share = mixture.log_components(samples).softmax(dim=1).mean(dim=0)
    assert 0.1 < exact.weights[0] < 0.9
    assert 0.1 < exact.weights[1] < 0.9
    torch.testing.assert_close(share, exact.weights, rtol=0, atol=0.05)


def test_the_kernel_of_sgfm_leaves_the_posterior_as_it_is():
    """Steps far too long are rejected often; exact samples must stay exact samples all the same."""
    prior, problem, _ = small(sigma=0.15)
    matrix, offset = transport_matrix(prior, 3)  # a coarse T: its own posterior is exact all the same
    b = problem.operator.matrix @ matrix / 0.15
    rest = (problem.y.flatten() - problem.operator.matrix @ offset) / 0.15
    covariance = torch.linalg.inv(b.T @ b + torch.eye(6))
    source = GaussianPrior(Full(covariance), (covariance @ b.T @ rest).reshape(1, 1, 6))
    n = 4000
    x = source.sample((1, 1, 6), ImageRng(range(n)), torch.float64)
    solver, rng = SGFM(ode_steps=3, leapfrog_steps=3, global_moves=1, burn_in=0.0), ImageRng(range(n, 2 * n))
    many, z = problem.rows(torch.zeros(n, dtype=torch.long)), transport(prior, x, 3)
    state = Chain(x, z, many.nll(z), torch.full((n,), math.log(0.4)).double())
    for _ in range(6):
        before = state.x
        state = solver.step(state, torch.tensor(0.5).double(), torch.tensor(0.4).double(), many, prior, rng)
        stayed = float((state.x == before).flatten(1).all(dim=1).double().mean())
        assert 0.02 < stayed < 0.9
        state = state._replace(log_step=torch.full((n,), math.log(0.4)).double())
    mean, covariance = whitened(state.x, source)
    assert mean.abs().max() < 4 / n**0.5
    assert (covariance - torch.eye(6)).abs().max() < 0.09


def test_sgfm_adapts_the_step_size(monkeypatch):
    """Whatever the noise, a trajectory is accepted about four times in five, and less noise needs shorter steps."""
    prior, problem, _ = small()
    solver, probabilities, steps = SGFM(ode_steps=3, global_moves=0), [], []
    trajectory = SGFM._trajectory

    def watched(self, *args):
        chain, probability = trajectory(self, *args)
        probabilities.append(probability)
        return chain, probability

    monkeypatch.setattr(SGFM, "_trajectory", watched)
    times = make_times("uniform", 60, prior.schedule)
    for sigma in (0.03, 0.003):
        rows = dataclasses.replace(problem, noise=GaussianNoise(sigma)).rows(torch.zeros(100, dtype=torch.long))
        rng = ImageRng(range(100))
        state = solver.init(times[0], rows, prior, rng)
        for t, s in pairwise(times):
            state = solver.step(state, t, s, rows, prior, rng)
        assert 0.65 < float(torch.stack(probabilities[-15:]).mean()) < 0.95
        steps.append(float(state.log_step.mean()))
    assert steps[0] > steps[1] + 0.5


@pytest.mark.parametrize(
    "spec",
    [
        "daps(data_std=0)",
        "daps(step_size=3)",
        "daps(inner='other')",
        "pnpflow(averages=0)",
        "pnpflow(step_size=3)",
        "dflow(blend=2)",
        "dflow(evaluations=0)",
        "flowpriors(lr=-1)",
        "sgfm(burn_in=2)",
        "sgfm(leapfrog_steps=0)",
        "sgfm(variant='opt-3')",
    ],
)
def test_hyperparameters_have_ranges(spec):
    with pytest.raises(ValueError, match="must be"):
        build_solver(spec)
