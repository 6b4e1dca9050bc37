"""FlowDPS, FlowChef, PSLD, ReSample and FLAIR against second writings of their boxes, and the calibration of FLAIR."""

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_priors import tiny_networks
from test_solvers import SHAPE, toy
from toys import IsotropicPrior, ReplayRng, ToyLatentPrior
from typer.testing import CliRunner

from invsolve import GaussianNoise, NoNoise, Problem, build_operator, build_solver, load_prior, make_times, solve
from invsolve.calibrate import calibrate, save_calibration
from invsolve.cli.app import app
from invsolve.files.encode import save_png
from invsolve.operators import OPERATORS
from invsolve.priors import (
    VE,
    DiscreteVP,
    Full,
    GaussianPrior,
    GreyPrior,
    Guided,
    LinearFlow,
    Metered,
    PowerLaw,
    Rescheduled,
)
from invsolve.priors.gaussian import dense_matrix
from invsolve.priors.schedule import linear_betas
from invsolve.rng import ImageRng
from invsolve.solvers._descent import least_squares
from invsolve.solvers._hold import STALL, approach_data, meet_data, proximal_step
from invsolve.solvers._misfit import misfit
from invsolve.solvers.flair import FLAIR
from invsolve.solvers.flowchef import FlowChef
from invsolve.solvers.flowdps import FlowDPS
from invsolve.solvers.psld import PSLD
from invsolve.solvers.resample import ReSample

PRIOR = GaussianPrior(PowerLaw())
SIZE = math.prod(SHAPE)


def double(problem):
    return dataclasses.replace(problem, y=problem.y.double())


def run(solver, problem, prior, times, draws):
    """The estimate after every step, as flat arrays."""
    rng = ReplayRng(draws)
    state = solver.init(times[0], problem, prior, rng)
    estimates = []
    for t, s in pairwise(times):
        state = solver.step(state, t, s, problem, prior, rng)
        estimates.append(solver.estimate(state).flatten().numpy())
    assert not rng.draws
    return estimates


def dense(problem, prior, schedule=None):
    """A, y, and the exact posterior means as affine maps, with their Jacobian, all NumPy."""
    c = prior.covariance.apply_function(lambda v: v, torch.eye(SIZE).double().reshape(-1, *SHAPE)).flatten(1).numpy()
    a, y = dense_matrix(problem.operator).numpy(), problem.y.numpy().ravel()

    def gains(t):  # E[x0 | z] = G z, E[eps | z] = H z
        alpha, sigma = (float(v) for v in (schedule or prior.schedule)(torch.as_tensor(t, dtype=torch.float64)))
        inverse = np.linalg.inv(alpha**2 * c + sigma**2 * np.eye(SIZE))
        return alpha * c @ inverse, sigma * inverse

    return a, y, gains


def draws(n, seed=0):
    return torch.randn(n, 1, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest(a, y, x, radius):
    """The point next to x with |A x - y| <= radius: the multiplier by bisection."""
    if np.linalg.norm(a @ x - y) <= radius:
        return x
    low, high = 1e-9, 1e9
    for _ in range(200):
        rho = math.sqrt(low * high)
        u = np.linalg.solve(a.T @ a + rho * np.eye(len(x)), a.T @ y + rho * x)
        low, high = (rho, high) if np.linalg.norm(a @ u - y) < radius else (low, rho)
    return u


# --- hard data consistency --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["inpaint-random", "downsample", "downsample-bicubic", "blur", "blur-motion"])
def test_meeting_the_data_is_the_nearest_picture_that_does(row):
    """Against bisection on a dense matrix; one picture of the batch explains the data already and is left alone."""
    problem = double(toy(row, sigma=0.1, n=3))
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[2] = problem.linear.pinv(problem.y)[2]
    radius = problem.level * problem.n_data**0.5
    got = meet_data(x, problem, radius, 0)
    sizes = problem.residual(got).flatten(1).norm(dim=1)
    assert (sizes <= 1.0101 * radius).all()
    assert torch.equal(got[2], x[2])
    a = dense_matrix(problem.operator).numpy()
    for k in range(2):
        size = float(sizes[k])  # within one per cent of the radius; the nearest picture with that very misfit
        expected = nearest(a, problem.y[k].numpy().ravel(), x[k].numpy().ravel(), size)
        np.testing.assert_allclose(got[k].numpy().ravel(), expected, rtol=0, atol=2e-5)
        assert size >= float(radius[k]) * (1 - 1e-6)


def test_data_that_no_picture_explains_are_met_as_well_as_they_can_be():
    """Two copies of the picture that contradict each other."""

    class Twice(type(build_operator("identity", SHAPE))):
        def forward(self, x):
            return torch.cat([x, x], dim=1)

        def adjoint(self, y):
            return y[:, : SHAPE[0]] + y[:, SHAPE[0] :]

        def spectral(self, x, fn):
            return fn(x.new_full((), 2**0.5)) * x

    operator = Twice(SHAPE)
    y = torch.randn(1, 2 * SHAPE[0], *SHAPE[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = Problem(operator, GaussianNoise(0.01), y)
    got = meet_data(torch.zeros(1, *SHAPE).double(), problem, problem.level * problem.n_data**0.5, 0)
    torch.testing.assert_close(got, (y[:, :3] + y[:, 3:]) / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", ["downsample", "blur", "jpeg"])
def test_gradient_steps_never_move_away_from_the_data(row):
    problem = double(toy(row, sigma=0.1, n=2))
    x = 0.3 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    radius = problem.level * problem.n_data**0.5
    sizes = [problem.residual(x).flatten(1).norm(dim=1)]
    for _ in range(15):
        x = least_squares(x, problem.residual, radius, 1)
        sizes.append(problem.residual(x).flatten(1).norm(dim=1))
    assert all((after <= before).all() for before, after in pairwise(sizes))
    if row == "jpeg":  # which rounds, with the gradient of a smooth stand-in
        assert (sizes[-1] < 0.8 * sizes[0]).all()
    else:
        assert (sizes[-1] < 1.05 * radius).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_steps_on_a_linear_problem_are_conjugate_gradients(steps):
    """Against the least misfit over the Krylov space of the normal equations; in a batch, each row its own."""
    problem = double(toy("blur", sigma=1e-4, n=2, boundary="circular"))
    x = 0.3 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = least_squares(x, problem.residual, problem.radius, steps)
    a = dense_matrix(problem.operator).double().numpy()
    for k in range(2):
        residual = a @ x[k].numpy().ravel() - problem.y[k].numpy().ravel()
        space = [a.T @ residual]
        for _ in range(steps - 1):
            space.append(a.T @ (a @ space[-1]))
            space[-1] /= np.linalg.norm(space[-1])
        basis = np.linalg.qr(np.array(space).T)[0]
        share = np.linalg.lstsq(a @ basis, -residual, rcond=None)[0]
        np.testing.assert_allclose(got[k].numpy().ravel(), x[k].numpy().ravel() + basis @ share, rtol=0, atol=1e-6)


def test_a_row_whose_steps_hardly_help_is_done():
    """Stall against the steps of the same row one by one; a row that goes on does not wait for one that stalls."""
    problem = double(toy("blur", sigma=1e-4, n=2, boundary="circular"))
    x = 0.3 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[1] = problem.linear.pinv(problem.y)[1] + 0.01 * x[1]
    paths = [least_squares(x, problem.residual, problem.radius, k) for k in range(9)]
    excess = torch.stack([problem.residual(p).flatten(1).norm(dim=1) - problem.radius for p in paths])
    shares = 1 - excess[1:] / excess[:-1]  # what each step takes away
    stall = float(shares[2:6].min()) * 1.01
    got = least_squares(x, problem.residual, problem.radius, 8, stall)
    ends = []
    for k in range(2):
        slow = (shares[:, k] < stall).nonzero().flatten()
        ends.append(int(slow[0]) + 1 if len(slow) else 8)
        torch.testing.assert_close(got[k], paths[ends[k]][k])
    assert min(ends) < 8


def test_only_decoders_end_the_data_steps_early(monkeypatch):
    """Pixels can show everything; what a decoder leaves over is what it cannot show."""
    seen = []
    monkeypatch.setattr("invsolve.solvers._hold.least_squares", lambda z, *rest: seen.append(rest[-1]) or z)
    problem, z = double(toy("blur", sigma=0.1)), torch.zeros(1, *SHAPE).double()
    one, zero = torch.tensor(1.0).double(), torch.zeros(()).double()
    approach_data(z, problem, IsotropicPrior(zero, one), problem.radius, 3)
    approach_data(z, problem, ToyLatentPrior(zero, one, torch.eye(3, 4).double()), problem.radius, 3)
    assert seen == [0.0, STALL]


@pytest.mark.parametrize("spec", ["ddnm", "pigdm", "otode"])
def test_latents_meet_data_that_are_not_linear(spec):
    """Through a decoder the proximal step needs no pseudo-inverse, so that it also takes JPEG."""
    g = torch.Generator().manual_seed(0)
    prior = ToyLatentPrior(
        torch.zeros(1, 4, 4, 4).double(), torch.tensor(1.0).double(), torch.randn(3, 4, generator=g).double()
    )
    operator = build_operator("jpeg", SHAPE, quality=50)
    x = prior.decode(torch.randn(1, 4, 4, 4, generator=g).double())
    problem = Problem(operator, GaussianNoise(0.05), operator(x))
    z0 = torch.randn(1, 4, 4, 4, generator=g).double()
    before = problem.residual(prior.decode(z0)).norm()
    after = problem.residual(prior.decode(proximal_step(z0, problem, torch.tensor([1e-3]).double(), prior))).norm()
    assert after < 0.85 * before
    assert solve(problem, prior, build_solver(spec), make_times("restoration", 4, prior.schedule)).ok


def test_one_gradient_step_is_exact_where_all_singular_values_are_equal():
    problem = double(toy("downsample", sigma=0.1))
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    radius = problem.level * problem.n_data**0.5
    one = least_squares(x, problem.residual, radius, 1)
    torch.testing.assert_close(problem.residual(one).norm()[None], radius)
    torch.testing.assert_close(one, meet_data(x, problem, radius, 0), rtol=1e-6, atol=1e-6)


def test_a_saturated_decoder_is_left_without_harm():
    """Where the gradient almost vanishes a step to the end is endless, and lands where the decoder saturates again."""
    prior = ToyLatentPrior(torch.zeros(1, 4, 4, 4).double(), torch.tensor(1.0).double(), torch.eye(3, 4).double())
    problem = Problem(build_operator("identity", SHAPE), GaussianNoise(0.1), torch.zeros(1, *SHAPE).double())
    z = torch.full((1, 4, 4, 4), 6.0).double()  # tanh(6) = 0.99999
    before = problem.residual(prior.decode(z)).norm()
    for steps in (1, 15):
        after = approach_data(z, problem, prior, problem.level, steps)
        assert problem.residual(prior.decode(after)).norm() <= before
    assert problem.residual(prior.decode(after)).norm() < 0.5 * before


class Lossy(ToyLatentPrior):
    """Its encoder does not quite undo its decoder."""

    def encode(self, x):
        return 0.9 * super().encode(x) + 0.05


@pytest.mark.parametrize(
    "spec", ["diffpir(zeta=0.0)", "ddnm(eta=0.0)", "ddrm(eta_a=0.0,eta_c=0.0)", "flower(gamma=0.0)"]
)
def test_a_lossy_autoencoder_costs_nothing_where_the_data_ask_for_nothing(spec):
    """Data that every clean end on the way explains leave it as it is, whatever the autoencoder loses."""
    g = torch.Generator().manual_seed(0)
    prior = Lossy(torch.zeros(1, 4, 4, 4).double(), torch.tensor(1.0).double(), torch.randn(3, 4, generator=g).double())
    z = torch.randn(1, 4, 4, 4, generator=g).double()
    t, solver = torch.tensor(0.5).double(), build_solver(spec)
    clean = prior.predict(z, t).clean
    operator = build_operator("downsample", SHAPE, factor=2)
    problem = Problem(operator, GaussianNoise(0.1), operator(prior.decode(clean)))
    torch.testing.assert_close(solver.step(z, t, 0 * t, problem, prior, ImageRng([0])), clean)
    for ratio in (1.0, 2.0):  # held over latents, and over pictures
        torch.testing.assert_close(ReSample()._hold(clean, torch.tensor(ratio).double(), problem, prior), clean)


# --- second writings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "carry"), [("inpaint-random", 1.0), ("blur", 0.5), ("blur-motion", 0.0)])
def test_flair_equals_a_second_writing(row, carry):
    """Carried noise, calibrated pull, and the nearest picture at the noise level."""
    problem, prior = double(toy(row, sigma=0.15)), GaussianPrior(PowerLaw())
    prior.calibration = 0.2 + torch.linspace(-1, 1, 100).double().square()
    a, y, gains = dense(problem, prior)
    times, noise = make_times("flair", 6, prior.schedule), draws(7)
    m = prior.calibration.numpy()
    trust = (1 / (m + 1e-7)) / np.mean(1 / (m + 1e-7))
    mu = np.linalg.solve(a.T @ a + (0.15 / 0.5) ** 2 * np.eye(SIZE), a.T @ y)
    e, radius, pulls = noise[0].numpy().ravel(), 0.15 * math.sqrt(problem.n_data), []
    solver = FLAIR(regularizer_weight=0.4, weight_shift=-0.2, max_pull=0.6, carry=carry)
    got = run(solver, problem, prior, times, noise)
    for k, t in enumerate(float(t) for t in times[:-1]):
        g, h = gains(t)
        kept = carry * (1 - t)
        n = kept * e + math.sqrt(1 - kept**2) * noise[k + 1].numpy().ravel()
        z = (1 - t) * mu + t * n
        x, e = g @ z, h @ z
        pulls.append(0.4 * max(trust[round((1 - t) * 99)] - 0.2, 0) / t)
        mu = mu - min(pulls[-1], 0.6) * (mu - x)
        before = mu
        mu = nearest(a, y, mu, radius)
        # ours stops within one per cent of the noise level, on the same path from `before` to `mu`
        size = np.linalg.norm(a @ got[k] - y)
        assert size <= 1.0101 * radius
        mu = mu if np.linalg.norm(a @ before - y) <= radius else nearest(a, y, before, size)
        np.testing.assert_allclose(got[k], mu, rtol=0, atol=1e-4)
        mu = got[k]
    assert min(pulls) < 0.6 < max(pulls)


def test_flair_weights():
    prior = GaussianPrior(PowerLaw())
    weight = lambda t, **fields: float(  # noqa: E731
        FLAIR(regularizer_weight=0.5, **{"max_pull": None} | fields)._lam(torch.tensor(t).double(), prior)
    )
    assert [weight(t) for t in (0.9, 0.1)] == [0.5, 0.5]  # no calibration: the same everywhere
    prior.calibration = 1 / torch.linspace(1, 3, 101).double()  # trust 1 at t = 1 to 3 at t = 0, 2 on average
    assert weight(0.5) == pytest.approx(0.5)
    assert weight(0.0) == pytest.approx(0.75, rel=1e-5)
    assert weight(0.5, weight_shift=None) == 0  # the variant that takes the weight at t = 0 off
    assert weight(1.0, weight_shift=0.5) == pytest.approx(0.5)


def test_flair_data_steps_stop_at_the_noise():
    """A decoder, and gradient steps: one noise level of the problem, one of a field, and the official step size."""
    g = torch.Generator().manual_seed(0)
    prior = ToyLatentPrior(
        torch.zeros(1, 4, 4, 4).double(), torch.tensor(1.0).double(), torch.randn(3, 4, generator=g).double()
    )
    x = prior.decode(torch.randn(1, 4, 4, 4, generator=g).double())
    operator = build_operator("downsample", SHAPE, factor=2)
    y = operator(x) + 0.1 * torch.randn(1, 3, 4, 4, generator=g).double()
    for sigma, fields in ((0.1, {}), (0.05, {"tolerance": 0.01}), (0.1, {"data_lr": 0.5, "data_steps": 500})):
        problem = Problem(operator, GaussianNoise(sigma), y)
        solver = FLAIR(**fields)
        result = solve(problem, prior, solver, make_times("flair", 8, prior.schedule))
        chi2 = float(result.chi2) * (sigma / 0.1) ** 2
        assert 0.6 < chi2 < 1.1, fields
    without = solve(problem, prior, FLAIR(data_steps=0), make_times("flair", 8, prior.schedule))
    assert float(without.chi2) > 3


def test_flowdps_interpolates_where_the_step_is_fixed():
    problem, prior, times = double(toy("blur")), GaussianPrior(PowerLaw()), make_times("flowdps", 4, LinearFlow())
    last = lambda **fields: run(FlowDPS(**fields), problem, prior, times, draws(5))[-1]  # noqa: E731
    assert np.array_equal(last(step_size=1.0), last(step_size=1.0, interpolate=True))
    assert not np.array_equal(last(step_size=1.0), last(step_size=1.0, interpolate=False))
    assert np.array_equal(last(), last(interpolate=False))


@pytest.mark.parametrize(("interpolate", "carry"), [(False, 1.0), (True, 1.0), (False, 0.5), (True, 0.0)])
@pytest.mark.parametrize("row", ["inpaint-random", "downsample"])  # equal singular values: one inner step arrives
def test_flowdps_equals_a_second_writing(row, interpolate, carry):
    problem, prior = double(toy(row, sigma=0.1)), GaussianPrior(PowerLaw())
    a, y, gains = dense(problem, prior)
    times, noise, radius = make_times("flowdps", 6, prior.schedule), draws(7), 0.1 * math.sqrt(problem.n_data)
    got = run(FlowDPS(interpolate=interpolate, carry=carry), problem, prior, times, noise)
    z, moved = noise[0].numpy().ravel(), 0  # at t = 1 all is noise
    for k, (t, s) in enumerate(pairwise(times.tolist())):
        g, h = gains(t)
        z0, z1 = g @ z, h @ z
        z0_y = nearest(a, y, z0, radius)
        moved += not np.allclose(z0, z0_y)
        z0 = (1 - t) * z0 + t * z0_y if interpolate else z0_y
        kept = carry * math.sqrt(s)
        z1 = kept * z1 + math.sqrt(1 - kept**2) * noise[k + 1].numpy().ravel()
        z = (1 - s) * z0 + s * z1
        np.testing.assert_allclose(got[k], z, rtol=0, atol=2e-4)  # within the rounding that ends the inner steps
        z = got[k]
    assert moved


@pytest.mark.parametrize("row", ["inpaint-random", "downsample", "blur"])
def test_flowchef_equals_a_second_writing(row):
    """The default step, which meets the noise level along the gradient, and the published fixed one."""
    problem, prior = double(toy(row, sigma=0.1)), GaussianPrior(PowerLaw())
    a, y, gains = dense(problem, prior)
    times, radius = make_times("flowdps", 6, prior.schedule), 0.1 * math.sqrt(problem.n_data)
    for solver in (FlowChef(), FlowChef(step_size=0.3, data_term="half_sq")):
        got = run(solver, problem, prior, times, draws(1))
        z = draws(1).numpy().ravel()  # at t = 1 all is noise
        for k, (t, s) in enumerate(pairwise(times.tolist())):
            g, h = gains(t)
            z0, z1 = g @ z, h @ z
            r = a @ z0 - y
            if solver.step_size is not None:
                z = (1 - s) * z0 + s * z1 - 0.3 * a.T @ r
            else:
                size = np.linalg.norm(r)
                slope = a.T @ r / size
                move = -max(size - radius, 0) / (slope @ slope) * slope
                d = a @ move
                curve = np.polynomial.Polynomial([r @ r - radius**2, 2 * r @ d, d @ d])  # of the squared misfit
                roots = [root.real for root in curve.roots() if abs(root.imag) < 1e-9]
                share = min(roots, default=-(r @ d) / (d @ d)) if size > radius else 0
                z = (1 - s) * (z0 + min(share, 2) * move) + s * z1
            np.testing.assert_allclose(got[k], z, rtol=0, atol=1e-7)


@pytest.mark.parametrize("row", ["inpaint-random", "downsample", "blur"])
@pytest.mark.parametrize(
    ("back", "step_size"), [("prox", 0.7), ("pinv", 0.7), ("adjoint", 0.7), ("prox", None), ("pinv", None)]
)
def test_psld_equals_a_second_writing(row, back, step_size):
    problem, prior = double(toy(row, sigma=0.1)), GaussianPrior(PowerLaw())
    a, y, gains = dense(problem, prior)
    times = make_times("flowdps", 6, prior.schedule)
    solver = PSLD(step_size=step_size, gluing=0.3, back=back, data_std=0.5)
    got = run(solver, problem, prior, times, draws(1))
    z = draws(1).numpy().ravel()
    for k, (t, s) in enumerate(pairwise(times.tolist())):
        g, h = gains(t)
        z0 = g @ z
        r = a @ z0 - y
        if back == "prox":
            std = 0.5 * t / math.hypot(0.5 * (1 - t), t)
            pull = a.T @ np.linalg.inv(a @ a.T + (0.1 / std) ** 2 * np.eye(len(y)))
        else:
            pull = np.linalg.pinv(a, rcond=1e-9) if back == "pinv" else a.T
        glued = pull @ r  # z0 - (A^+ y + z0 - A^+ A z0) for pixels
        size, radius = np.linalg.norm(r), 0.1 * math.sqrt(problem.n_data)
        at_z0 = a.T @ r / size * (size > radius)
        at_z0 = at_z0 + 0.3 * a.T @ pull.T @ glued / np.linalg.norm(glued)
        gradient = g.T @ at_z0
        step = step_size
        if step is None:
            longest = max(np.linalg.norm(gradient), np.linalg.norm(at_z0))
            step = max(size - radius, 0) / (np.linalg.norm(gradient) * longest) if gradient.any() else 0
        z = (1 - s) * z0 + s * h @ z - step * gradient
        np.testing.assert_allclose(got[k], z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_psld_starts_where_the_clean_end_does_not_depend_on_z(dtype):
    """Mere noise: no gradient, hence no step, and no division by it."""
    problem = toy("identity", sigma=0.1)
    problem = dataclasses.replace(problem, y=problem.y.to(dtype))
    prior = GaussianPrior(PowerLaw())
    result = solve(problem, prior, PSLD(), make_times("uniform", 5, prior.schedule))
    assert result.ok


@pytest.mark.parametrize("step_size", [None, 0.7])
def test_psld_on_another_path(step_size):
    """Where the gradient at z_t is the longer one, which it is on larger pictures."""
    prior, solver = GaussianPrior(PowerLaw()), PSLD(step_size=step_size)
    operator = build_operator("downsample", (3, 32, 32), factor=4)
    problem = Problem(operator, GaussianNoise(0.1), operator(prior.sample((3, 32, 32), ImageRng([0])).double()))
    vp = Rescheduled(prior, DiscreteVP(linear_betas()))
    flow, other = (solve(problem, p, solver, make_times("karras", 10, p.schedule)).samples for p in (prior, vp))
    torch.testing.assert_close(flow, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("travel", [1, 3])
def test_resample_equals_a_second_writing(travel):
    """On a variance-preserving path, in the paper's own symbols: abar, and the variance v of the resampling."""
    schedule = DiscreteVP(linear_betas())
    problem, prior = double(toy("downsample", sigma=0.1)), GaussianPrior(PowerLaw(), schedule=schedule)
    a, y, gains = dense(problem, prior)
    times, noise = torch.tensor([0.8, 0.5, 0.35, 0.2, 0.1, 0.0]).double(), draws(3)
    solver = ReSample(step_size=0.5, period=2, travel=travel, gamma=40.0)
    abar = lambda t: float(schedule(torch.as_tensor(t, dtype=torch.float64))[0]) ** 2  # noqa: E731
    radius = 0.1 * math.sqrt(problem.n_data)
    got = run(solver, problem, prior, times, noise)
    start = np.linalg.solve(a.T @ a + (0.1 / 0.5) ** 2 * np.eye(SIZE), a.T @ y)
    rng = ReplayRng(noise)
    z = solver.init(times[0], problem, prior, rng).z.numpy().ravel()
    assert np.corrcoef(z, start)[0, 1] > 0  # the start is that of other solvers
    k_noise = 1
    for k, (t, s) in enumerate(pairwise(times.tolist()), start=1):
        g, h = gains(t)
        z0, eps = g @ z, h @ z
        r = a @ z0 - y
        gradient = g.T @ a.T @ r / np.linalg.norm(r)
        z_s = math.sqrt(abar(s)) * z0 + math.sqrt(1 - abar(s)) * eps - 0.5 * abar(t) * gradient
        if s == 0:
            z_s = nearest(a, y, z_s, radius)
        elif k % 2 == 0:
            ratio = lambda t: math.sqrt(1 / abar(t) - 1)  # noqa: E731
            here, at = z_s, ratio(s)
            for _ in range(travel):
                g, h = gains(float(schedule.time(torch.tensor(at).double())))
                end, eps = g @ here, h @ here
                at *= ratio(s) / ratio(t)
                a_next = 1 / (1 + at**2)
                here = math.sqrt(a_next) * end + math.sqrt(1 - a_next) * eps
            end = nearest(a, y, end, radius)
            v = 40 * (1 - abar(s)) / (1 - abar(t)) * (1 - abar(t) / abar(s))
            mean = (v * math.sqrt(abar(s)) * end + (1 - abar(s)) * z_s) / (v + 1 - abar(s))
            std = math.sqrt(1 / (1 / v + 1 / (1 - abar(s))))
            z_s = mean + std * noise[k_noise].numpy().ravel()
            k_noise += 1
        z = z_s
        np.testing.assert_allclose(got[k - 1], z, rtol=0, atol=1e-4)


def test_resample_holds_the_data_by_pictures_first_and_by_latents_below():
    """The encoder is called for consistent pictures only at high noise, and never from the first third on."""
    g = torch.Generator().manual_seed(0)
    prior = Metered(ToyLatentPrior(torch.zeros(1, 4, 4, 4), torch.tensor(1.0), torch.randn(3, 4, generator=g)))
    problem = toy("downsample", sigma=0.1)
    for start, calls in (
        (0.8, 2),  # the picture before and after
        (0.95, 0),
        (0.5, 0),
    ):  # sigma/alpha about 4, 19 and 1
        prior.counts["encode"] = 0
        solver = ReSample(period=1, hard_below=9.4, pixel_above=1.45)
        rng = ReplayRng(torch.randn(9, 1, 4, 4, 4, generator=g))
        state = solver.init(torch.tensor(start), problem, prior, rng)
        prior.counts["encode"] = 0
        solver.step(state, torch.tensor(start), torch.tensor(start) * 0.99, problem, prior, rng)
        assert prior.counts["encode"] == calls, start


# --- names, ranges, capabilities --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("flair(regularizer_weight=-1)", "must be"),
        ("flair(tolerance=-1)", "must be"),
        ("flair(max_pull=-0.1)", "must be"),
        ("flair(carry=1.1)", "must be"),
        ("flowdps(carry=1.1)", "must be"),
        ("flowchef(step_size=-1)", "must be"),
        ("flowchef(data_term=half_sq)", "needs a step_size"),
        ("psld(gluing=-1)", "must be"),
        ("resample(period=0)", "must be"),
    ],
)
def test_bad_fields_are_sentences(spec, words):
    with pytest.raises(ValueError, match=words):
        build_solver(spec)


def test_unknown_names_are_sentences():
    with pytest.raises(ValueError, match="data_term must be one of"):
        FlowChef(step_size=1.0, data_term="chi2")
    with pytest.raises(ValueError, match="back must be one of"):
        PSLD(back="inverse")
    problem = toy("jpeg", sigma=0.1)
    with pytest.raises(TypeError, match="choose another solver"):
        solve(problem, PRIOR, PSLD(), make_times("uniform", 2, PRIOR.schedule))
    with pytest.raises(TypeError, match="needs a pseudo-inverse or adjoint"):
        misfit("adjoint_norm", problem, torch.zeros(1, *SHAPE))


def test_all_misfits_of_one_table():
    """The shared names against their formulas."""
    problem = double(toy("downsample", sigma=0.1))
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, r = dense_matrix(problem.operator), problem.residual(x).flatten()
    expected = {
        "half_sq": r @ r / 2,
        "nll": r @ r / (2 * 0.1**2),
        "norm": r.norm(),
        "pinv_norm": (torch.linalg.pinv(a) @ r).norm(),
        "adjoint_norm": (a.T @ r).norm(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(misfit(name, problem, x), value[None])


def test_flair_and_resample_without_noise_use_the_operators_own_projection():
    """JPEG's gradient is that of a surrogate; its data are held by moving coefficients into their cells."""
    problem = toy("jpeg", sigma=0.0)
    assert "jpeg" in OPERATORS
    x = torch.zeros(1, *SHAPE)
    torch.testing.assert_close(
        meet_data(x, problem, problem.level * problem.n_data**0.5, 3), problem.operator.project(x, problem.y)
    )


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(None, id="flow"),
        pytest.param(VE(80.0), id="ve", marks=pytest.mark.slow),  # 12 s each
        pytest.param(DiscreteVP(linear_betas()), id="vp", marks=pytest.mark.slow),
    ],
)
def test_calibration_of_a_gaussian_is_the_closed_form(schedule):
    """Mean over the spectrum of c / ((1 - t)^2 c + t^2), the variance of the velocity given z_t; on every path."""
    g = torch.Generator().manual_seed(0)
    c = torch.rand(12, generator=g).double() + 0.1
    prior = GaussianPrior(Full(torch.diag(c)), schedule=schedule)
    pictures = c.sqrt().reshape(3, 2, 2) * torch.randn(400, 3, 2, 2, generator=g).double()
    error = calibrate(prior, pictures, batch_size=len(pictures))
    t = torch.linspace(1, 0, 100).double()[:, None]
    expected = (c / ((1 - t) ** 2 * c + t**2)).mean(dim=1)
    inside = slice(2, None)  # the paths of diffusion models end before t = 1 of the flow
    torch.testing.assert_close(error[inside], expected[inside], rtol=0.1, atol=0)
    assert float((error / expected)[inside].mean()) == pytest.approx(1, abs=0.01)


def test_calibration_does_not_depend_on_the_batch():
    pictures = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(*(calibrate(PRIOR, pictures, batch_size=n) for n in (1, 64)), rtol=1e-9, atol=0)
    other = calibrate(PRIOR, pictures, seed=1)
    assert not torch.allclose(other, calibrate(PRIOR, pictures))
    with pytest.raises(ValueError, match="no pictures"):
        calibrate(PRIOR, [])


def test_wrappers_pass_the_calibration_on():
    prior = GaussianPrior(PowerLaw())
    prior.calibration = torch.linspace(1, 2, 100)
    wrapped = [
        Rescheduled(prior, VE()),
        Guided(prior, GaussianPrior(PowerLaw()), 2.0),
        Metered(prior),
        GreyPrior(prior),
    ]
    for wrapper in wrapped:
        assert wrapper.calibration is prior.calibration
        assert Metered(wrapper.sized(SHAPE)).calibration is prior.calibration  # what a solver is given


@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_a_calibration_beside_the_card_is_loaded(tmp_path, ending):
    folder = tiny_networks(tmp_path)["velocity"]
    assert load_prior(str(folder)).calibration is None
    error = torch.linspace(0.1, 1, 100).double()
    save_calibration(folder / f"calibration.{ending}", error, {"prior": "velocity"})
    torch.testing.assert_close(load_prior(str(folder)).calibration, error, rtol=0, atol=0)
    (folder / f"calibration.{ending}").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        load_prior(str(folder))
    with pytest.raises(ValueError, match="not a calibration file"):
        save_calibration(folder / "calibration.txt", error, {})


def test_calibrate_command(tmp_path, monkeypatch):
    """Files of any size, grey ones too, to the folder of the prior; the solver then uses it."""
    monkeypatch.chdir(tmp_path)
    folder = tiny_networks(tmp_path)["velocity"]
    (tmp_path / "in").mkdir()
    g = torch.Generator().manual_seed(0)
    for name, channels in (("a", 3), ("b", 1)):
        save_png(torch.rand(channels, 12, 20, generator=g) * 2 - 1, tmp_path / "in" / f"{name}.png")
    words = ["calibrate", "in", "--prior", str(folder), "--device", "cpu", "--size", "8"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "calibrated velocity on 2 pictures" in result.output
    kept = load_prior(str(folder)).calibration
    assert kept.shape == (100,)
    assert CliRunner().invoke(app, [*words, "--batch-size", "3", "-o", "c.json"]).exit_code == 0
    text = json.loads((tmp_path / "c.json").read_text())
    torch.testing.assert_close(torch.tensor(text["velocity_error"]).double(), kept, rtol=1e-4, atol=1e-5)
    assert text["prior"] == "velocity"
    assert str(tmp_path) not in (tmp_path / "c.json").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["in", "--prior", "gaussian"], "has no folder"),
        (["in", "--prior", "gaussian", "-o", "c.txt"], "not a calibration file"),
        (["nowhere", "--prior", "gaussian", "-o", "c.json"], "does not exist"),
        (["in", "--prior", "gaussian", "-o", "c.json", "--size", "0"], "--size must be at least 1"),
        (["in", "--prior", "gaussian", "-o", "c.json", "--dtype", "int8"], "Unknown dtype"),
        (["in", "--prior", "nature", "-o", "c.json"], "Unknown prior"),
        (["in", "--prior", "gaussian", "-o", "notes.json"], "notes.json exists and is not a calibration"),
        (["in", "--prior", "gaussian", "-o", "folder.json"], "folder.json exists and is not a calibration"),
    ],
)
def test_calibrate_command_refuses_in_one_sentence(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    save_png(torch.zeros(3, 8, 8), tmp_path / "in" / "a.png")
    (tmp_path / "notes.json").write_text('{"my": "notes"}')
    (tmp_path / "folder.json").mkdir()
    result = CliRunner().invoke(app, ["calibrate", *words])
    assert result.exit_code == 2
    assert (tmp_path / "notes.json").read_text() == '{"my": "notes"}'
    assert sentence in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "c.json").exists()


def test_noiseless_problems_are_held_to_their_tolerance():
    problem = dataclasses.replace(toy("downsample", sigma=0.1), noise=NoNoise())
    for solver in (FLAIR(), ReSample(), FlowChef()):
        result = solve(problem, PRIOR, solver, make_times(solver.times, 10, PRIOR.schedule))
        misfits = problem.residual(result.samples[:, 0]).square().mean().sqrt()
        assert float(misfits) < 1.02 / 255, type(solver).__name__
