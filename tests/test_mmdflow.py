"""The conditional MMD flow: its gradient, its particles on closed forms, and flows that are fitted, stored and used."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from typer.testing import CliRunner

from invsolve import GaussianNoise, NoNoise, Problem, build_operator, build_solver, make_times, simulate, solve
from invsolve.cli.app import app
from invsolve.files.encode import save_png
from invsolve.flows.clusters import clusters
from invsolve.flows.experts import MAX_WEIGHTS
from invsolve.flows.fit import FitSettings, fit
from invsolve.flows.fitted import load_fitted
from invsolve.flows.mmd import Cloud, advance, discrepancy, frames, natural_step, patches, slicing_constant, slope
from invsolve.flows.networks import StageNetwork
from invsolve.flows.state import state_folder
from invsolve.flows.training import carry, learn_score
from invsolve.operators import Inpaint, Matrix
from invsolve.priors import GaussianMixture, GaussianPrior, PowerLaw
from invsolve.priors.decoder import LinearDecoder
from invsolve.rng import ImageRng, derive_seed
from invsolve.sample import measure, sample_prior
from invsolve.solvers import MMDFlow
from invsolve.solvers._start import first_guess

GOLDEN = load_file(Path(__file__).parent / "golden" / "mmd_negative_distance.safetensors")
PRIOR, SHAPE, NOISE = GaussianPrior(PowerLaw()), (1, 8, 8), GaussianNoise(0.1)
QUICK = FitSettings(flow_steps=4, slices=16, particles=50, score_steps=12, train_steps=8, batch=8, width=8)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the gradient -----------------------------------------------------------------------------------------------------


def test_golden_gradient_and_flow():
    x, y = GOLDEN["x"], GOLDEN["y"]
    p, q = torch.cat([x, y], dim=1), torch.cat([GOLDEN["X"], GOLDEN["Y"]], dim=1)
    n, xi = len(p), GOLDEN["directions"]
    assert slicing_constant(p.shape[1]) == pytest.approx(float(GOLDEN["c_D"]), abs=1e-8)
    g = slope(xi @ p.T, xi @ q.T) / n
    torch.testing.assert_close(g, GOLDEN["derivative_1d"], rtol=0, atol=1e-8)
    torch.testing.assert_close(GOLDEN["c_D"] / len(xi) * g.T @ xi, GOLDEN["gradient"], rtol=0, atol=1e-8)
    cloud = Cloud(x, y, torch.zeros_like(x))
    for xi, expected in zip(GOLDEN["flow_directions"], GOLDEN["flow_x"], strict=True):
        cloud = advance(cloud, q, xi, GOLDEN["c_D"].expand(len(xi)), step=1.0, momentum=0.5)
        torch.testing.assert_close(cloud.x, expected, rtol=0, atol=1e-8)
    assert cloud.y is y


def test_sorting_equals_counting_all_pairs_ties_included():
    p, q, tracers = (torch.randint(0, 6, (3, n), generator=torch.Generator().manual_seed(n)) for n in (9, 7, 4))

    def count(a, points):
        return (points < a).double().sum() + (points == a).double().sum() / 2

    expected = [
        [2 * (count(a, q[k]) / q.shape[1] - count(a, p[k]) / p.shape[1]) for a in torch.cat([p[k], tracers[k]])]
        for k in range(3)
    ]
    found = slope(p.double(), q.double(), tracers.double())
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert not slope(p.double(), p.double()).any()  # particles in the places of the targets stay


def test_the_sliced_gradient_is_the_gradient_on_average():
    p, q = randn(12, 5), randn(15, 5, seed=1) + 0.5
    leaf = p.clone().requires_grad_(True)
    difference = leaf[:, None] - leaf + torch.eye(12)[..., None] * 1e-12  # the norm has no gradient at zero
    value = torch.cdist(leaf, q).mean() - difference.norm(dim=2).mean() / 2
    assert float(value.detach()) == pytest.approx(float(discrepancy(p, q)), abs=1e-10)
    (exact,) = torch.autograd.grad(12 * value, leaf)
    errors = {}
    for n in (500, 50000):
        xi, c = frames(n, 5, ImageRng([0]), dtype=torch.float64)
        g = slope(xi @ p.T, xi @ q.T)
        errors[n] = float((g.T @ (c[:, None] * xi) / n - exact).norm() / exact.norm())
    assert errors[50000] < 0.01
    assert errors[50000] < errors[500] / 3


def test_frames_are_orthonormal():
    xi, c = frames(13, 5, ImageRng([0]), dtype=torch.float64)
    for part in xi.split(5):
        torch.testing.assert_close(part @ part.T, torch.eye(len(part), dtype=torch.float64))
    torch.testing.assert_close(c, torch.full((13,), 8 / 3, dtype=torch.float64))  # c_5


def test_patches_equal_a_second_writing():
    """Every slice by loops over pixels, from the same draws."""
    shape, extra, side, n = (2, 8, 10), 6, 3, 10
    directions, factors = patches(n, shape, extra, ImageRng([3]), side=side, dtype=torch.float64)
    rng, size = ImageRng([3]), math.prod(shape)
    counts = [4, 3]  # the scales 1 and 2, and the last turn sees everything
    whole, c = frames(n - sum(counts), size + extra, rng, dtype=torch.float64)
    expected, expected_factors = list(whole), list(c)
    for scale, count in enumerate(counts, start=1):
        dim, reach = 2 * side**2 + extra, side * scale
        normal = rng.randn((count, dim), dtype=torch.float64)[0]
        place = rng.rand((count, 2), dtype=torch.float64)[0]
        for k in range(count):
            picture = torch.zeros(shape, dtype=torch.float64)
            top, left = int(place[k, 0] * 8), int(place[k, 1] * 10)
            for channel, i, j in np.ndindex(2, reach, reach):
                value = normal[k, channel * side**2 + i // scale * side + j // scale] / scale
                picture[channel, (top + i) % 8, (left + j) % 10] = value
            xi = torch.cat([picture.flatten(), normal[k, -extra:]])
            expected.append(xi / xi.norm())
            expected_factors.append(torch.tensor(slicing_constant(dim) * 80 / reach**2, dtype=torch.float64))
    torch.testing.assert_close(directions, torch.stack(expected))
    torch.testing.assert_close(factors, torch.stack(expected_factors))


def test_one_natural_step_brings_the_middle_of_a_cloud_home():
    q = randn(4000, 3)
    p = torch.cat([q[:, :2] + 0.3, q[:, 2:]], dim=1)
    xi, c = frames(300, 3, ImageRng([1]), dtype=torch.float64)
    cloud = Cloud(p[:, :2], p[:, 2:], torch.zeros(4000, 2).double())
    cloud = advance(cloud, q, xi, c, step=natural_step(q, 2, xi, c), momentum=0.0)
    middle = q.norm(dim=1) < 0.5
    assert (cloud.x[middle] - q[middle, :2]).mean(dim=0).abs().max() < 0.06
    after = discrepancy(torch.cat([cloud.x, cloud.y], dim=1), q) - discrepancy(q, q)
    assert 0 <= after < 0.2 * (discrepancy(p, q) - discrepancy(q, q))


def test_carry_is_the_box():
    """The steps of a stage, with a dense count instead of the sort."""
    x, y, target = randn(20, 1, 2, 2), randn(20, 3, seed=1), randn(20, 1, 2, 2, seed=2)
    settings = FitSettings(flow_steps=3, slices=7, condition_weight=0.5, step_size=0.7, momentum=0.6)
    found = carry(x, y, target, settings, ImageRng([5]))
    rng, q, points = ImageRng([5]), np.hstack([target.flatten(1), 0.5 * y]), np.hstack([x.flatten(1), 0.5 * y])
    total = np.zeros((20, 4))
    for _ in range(3):
        xi, c = (a.numpy() for a in frames(7, 7, rng, dtype=torch.float64))
        gradient = np.zeros((20, 7))
        for direction in xi:
            a, b = points @ direction, q @ direction
            counts = [(2 * (b < v).sum() - 20) / 20 - (2 * (a < v).sum() + 1 - 20) / 20 for v in a]
            gradient += c[0] / 7 * np.outer(counts, direction)
        total = gradient[:, :4] + 0.6 * total
        tau = 0.7 * natural_step(torch.from_numpy(q), 4, torch.from_numpy(xi), torch.from_numpy(c))
        points[:, :4] -= tau * total
    torch.testing.assert_close(found.flatten(1), torch.from_numpy(points[:, :4]))


# --- particles alone --------------------------------------------------------------------------------------------------


def small_problem(y, sigma=0.5):
    """Two correlated numbers, one sum of which is measured: prior, problem, posterior."""
    covariance = torch.tensor([[[1.0, 0.6], [0.6, 0.8]]], dtype=torch.float64)
    prior = GaussianMixture(torch.ones(1).double(), torch.tensor([0.5, -0.2]).double().reshape(1, 1, 1, 2), covariance)
    operator = Matrix((1, 1, 2), matrix=torch.tensor([[1.0, -0.5]], dtype=torch.float64))
    problem = Problem(operator, GaussianNoise(sigma), torch.tensor([[y]], dtype=torch.float64))
    return prior, problem, prior.posterior(operator, sigma, problem.y)


@pytest.mark.parametrize("y", [0.2, 1.6])
@pytest.mark.slow
def test_particles_sample_a_gaussian_posterior(y):
    prior, problem, exact = small_problem(y)
    solver = MMDFlow(pairs=2000, slices=30)
    x = solve(problem, prior, solver, samples=400, batch_size=400).samples[0].flatten(1)
    mean, covariance = exact.means[0].flatten(), exact.covariances[0]
    assert (x.mean(dim=0) - mean).norm() < 0.2 * covariance.trace().sqrt()
    assert (x.T.cov() - covariance).norm() < 0.3 * covariance.norm()


def test_tracers_are_not_felt():
    prior, problem, _ = small_problem(0.3)
    many = solve(problem, prior, MMDFlow(pairs=50), samples=6).samples
    few = solve(problem, prior, MMDFlow(pairs=50), samples=2).samples
    assert torch.equal(many[:, :2], few)


def test_large_pictures_need_a_fit():
    operator = build_operator("identity", (3, 32, 32))
    problem = Problem(operator, NOISE, torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="3072; fit a flow with `invsolve fit`"):
        solve(problem, PRIOR, MMDFlow())


# --- fitted -----------------------------------------------------------------------------------------------------------


def quick_fit(folder, settings=QUICK, row="downsample", noise=NOISE, n=60, report=lambda _: None, **fields):
    """A flow that is fitted far too little to be good."""
    operator = build_operator(row, SHAPE, **(fields or {"factor": 2}))
    rows = ImageRng(range(n))

    def draw():
        z = sample_prior(PRIOR, SHAPE, rows)
        return z, measure(z, operator, noise, rows)

    return fit(draw, operator, noise, folder, settings, source="gaussian", report=report)


def problem_of(row="downsample", n=1, noise=NOISE, **fields):
    operator = build_operator(row, SHAPE, **(fields or {"factor": 2}))
    x = PRIOR.sample(SHAPE, ImageRng(range(n)))
    return Problem(operator, noise, simulate(operator, noise, x, ImageRng(range(9, 9 + n))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("flows") / "toy"
    quick_fit(path)
    return path


def test_round_trip(folder):
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == ["card.json", "flow.safetensors"]
    assert not state_folder(folder).exists()
    card = json.loads((folder / "card.json").read_text())
    assert card["operator"].startswith("downsample(factor=2")
    assert card["noise"] == "GaussianNoise(sigma=0.1)"
    assert card["levels"] == [[1, 8, 8]]
    assert card["about"]["settings"]["score_steps"] == 12
    result = solve(problem_of(n=3), PRIOR, build_solver(f"mmdflow(folder='{folder}')"), samples=2, seed=5)
    assert result.ok
    assert result.samples.shape == (3, 2, *SHAPE)
    assert result.stats["network"] == 0


def test_the_stages_are_applied_one_after_the_other(folder):
    """Against the box by hand, from the same draws; any number of steps gives the same picture."""
    problem, flow = problem_of(), load_fitted(folder)
    kept = []
    result = solve(
        problem,
        PRIOR,
        MMDFlow(folder=str(folder)),
        make_times("uniform", 2, PRIOR.schedule),
        observers=[lambda step, steps, rows, estimate: kept.append(estimate.image())],
    )
    rng = ImageRng([derive_seed(0, 0, 0)])
    x, c = flow.mean + flow.spread * rng.randn(SHAPE, dtype=torch.float32), first_guess(problem)
    u = torch.special.ndtr(rng.randn((1,), dtype=torch.float32))[0]  # for the one stage that draws
    for network, seen in zip(flow.stages, kept, strict=True):
        x = x - network(x, c, u)
        torch.testing.assert_close(seen, x)
    many = solve(problem, PRIOR, MMDFlow(folder=str(folder)), make_times("uniform", 7, PRIOR.schedule)).samples
    assert torch.equal(many, result.samples)


def test_batches_and_seeds(folder):
    solver, problem = MMDFlow(folder=str(folder)), problem_of(n=3)
    together = solve(problem, PRIOR, solver, samples=2, seed=1).samples
    alone = solve(problem, PRIOR, solver, samples=2, seed=1, batch_size=1).samples
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(together, solve(problem, PRIOR, solver, samples=2, seed=1).samples)
    assert not torch.equal(together, solve(problem, PRIOR, solver, samples=2, seed=2).samples)


@pytest.mark.parametrize(
    "settings",
    [
        QUICK,
        FitSettings(**vars(QUICK) | {"first": "flow", "levels": 2, "stages": 2}),
        FitSettings(**vars(QUICK) | {"network": "unet", "levels": 2, "stages": 1}),
    ],
    ids=["experts", "paper's", "unet"],
)
def test_a_stopped_fit_goes_on_to_the_same_bits(tmp_path, settings):
    quick_fit(tmp_path / "whole", settings)
    stages = settings.levels * settings.stages

    def stop(stage):
        if stage.stage == stages - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick_fit(tmp_path / "halves", settings, report=stop)
    assert not (tmp_path / "halves").exists()
    with pytest.raises(ValueError, match="unfinished fit with other options"):
        quick_fit(tmp_path / "halves", FitSettings(**vars(settings) | {"seed": 9}))
    seen = []
    quick_fit(tmp_path / "halves", settings, report=seen.append)
    assert [report.stage for report in seen] == [stages]
    assert (seen[0].missed is None) == (settings.first == "score" and settings.stages == 1)
    first, second = ((tmp_path / name / "flow.safetensors").read_bytes() for name in ("whole", "halves"))
    assert first == second
    x = solve(problem_of(), PRIOR, MMDFlow(folder=str(tmp_path / "halves"))).samples
    assert x.shape == (1, 1, *SHAPE)
    assert x.isfinite().all()


def test_a_new_level_doubles_the_pixels(tmp_path):
    flow = quick_fit(tmp_path / "flow", FitSettings(**vars(QUICK) | {"levels": 2, "stages": 1, "level_noise": 0.2}))
    x, fresh = torch.randn(2, 1, 4, 4), torch.randn(2, *SHAPE)
    expected = x.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.2 * fresh
    torch.testing.assert_close(flow.enter(1, x, lambda shape: fresh.reshape(2, *shape)), expected)
    assert flow.enter(0, x, lambda shape: pytest.fail("no draw is needed")) is x
    c = torch.randn(2, *SHAPE)
    folded = torch.cat([x, F.pixel_unshuffle(c, 2)], dim=1).flatten(1)  # four pixels are four channels of one
    moves, share = flow.stages[0].net(folded)
    rows, largest = torch.arange(2), share.argmax(dim=1)
    chosen = flow.stages[0](x, c, (share.cumsum(dim=1) - share / 2)[rows, largest])
    torch.testing.assert_close(chosen, moves[rows, largest].reshape(2, 1, 4, 4))
    torch.testing.assert_close(share.sum(dim=1), torch.ones(2))


def test_the_choice_has_the_shares_as_probabilities():
    """And the mean of the answers is what a network gives that does not draw."""
    torch.manual_seed(3)
    network = StageNetwork("experts", 8, (1, 2, 2), (1, 2, 2), drawn=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    x, c = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    moves, share = network.answers(x, c)
    n = 20_000
    u = (torch.arange(n) + 0.5) / n
    chosen = network(x.expand(n, -1, -1, -1), c.expand(n, -1, -1, -1), u)
    which = (chosen[:, None] - moves).abs().sum(dim=(2, 3, 4)).argmin(dim=1)
    torch.testing.assert_close(torch.bincount(which, minlength=len(share[0])) / n, share[0], rtol=0, atol=1e-3)
    network.drawn = False
    torch.testing.assert_close(network(x, c, u[:1])[0], chosen.mean(dim=0), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_score_finds_a_gaussian_posterior(tmp_path):
    """Two numbers of which one is measured: mean and spread of what a network makes of the other."""
    settings = FitSettings(stages=1, score_steps=400, batch=256, width=8, lr=1e-2)
    operator, n = Matrix((1, 1, 2), matrix=torch.tensor([[1.0, 0.0]], dtype=torch.float64)), 4000
    prior, _, _ = small_problem(0.0)

    def draw():
        z = sample_prior(prior, (1, 1, 2), ImageRng(range(n)))
        return z, measure(z, operator, GaussianNoise(0.5), ImageRng(range(n)))

    fit(draw, operator, GaussianNoise(0.5), tmp_path / "two", settings, source="two numbers")
    y = torch.tensor([[0.0], [1.5]])
    problem = Problem(operator, GaussianNoise(0.5), y)
    x = solve(problem, prior, MMDFlow(folder=str(tmp_path / "two")), samples=1000, batch_size=2000).samples
    for k in range(2):
        exact = prior.posterior(operator, 0.5, y[k : k + 1].double())
        mean, covariance = exact.means[0].flatten(), exact.covariances[0]
        assert (x[k].flatten(1).mean(dim=0) - mean).norm() < 0.15 * covariance.trace().sqrt()
        assert (x[k].flatten(1).double().T.cov() - covariance).norm() < 0.2 * covariance.norm()


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_follow_the_shape_of_gaussians(seed):
    """Six long Gaussians that Lloyd's algorithm cuts across: no cluster holds rows of two of them."""
    generator, n, d = torch.Generator().manual_seed(seed), 6000, 10
    origin = torch.randint(0, 6, (n,), generator=generator)
    axes = torch.linalg.qr(torch.randn(6, d, d, generator=generator))[0] * torch.logspace(-1, 0.7, d)
    middles, normal = 2 * torch.randn(6, d, generator=generator), torch.randn(n, d, generator=generator)
    x = middles[origin] + torch.einsum("nij,nj->ni", axes[origin], normal)
    own = clusters(x, 8, ImageRng([seed]))
    assert sum(int(torch.bincount(origin[own == k]).max()) for k in own.unique()) >= 0.99 * n
    assert len(own.unique()) >= 6


def test_one_expert_starts_as_the_gaussian_posterior(monkeypatch, tmp_path):
    """Regression on y, and the noise that it leaves: nothing is left to learn where pictures are Gaussian."""
    monkeypatch.setattr("invsolve.flows.experts.MAX_EXPERTS", 1)
    settings = FitSettings(stages=1, score_steps=1, lr=0.0)
    prior, problem, _ = small_problem(0.0)
    operator, noise = problem.operator, problem.noise

    def draw():
        rows = ImageRng(range(20_000))
        z = sample_prior(prior, operator.image_shape, rows)
        return z, measure(z, operator, noise, rows)

    fit(draw, operator, noise, tmp_path / "flow", settings, source="Gaussian")
    y = torch.tensor([[0.9] * operator.data_shape[0]])
    solver = MMDFlow(folder=str(tmp_path / "flow"))
    x = solve(Problem(operator, noise, y), prior, solver, samples=4000, batch_size=4000).samples[0].flatten(1).double()
    exact = prior.posterior(operator, 0.5, y.double())
    mean, covariance = exact.means[0].flatten(), exact.covariances[0]
    assert (x.mean(dim=0) - mean).norm() < 0.05 * covariance.trace().sqrt()
    assert (x.T.cov() - covariance).norm() < 0.1 * covariance.norm()


def test_the_shares_of_the_first_stage_do_not_see_its_noise(folder):
    """The draw of the expert is all the chance that they have; without this, modes get wrong weights."""
    network, c = load_fitted(folder).network(0), torch.randn(1, *SHAPE).expand(2, -1, -1, -1)
    _, share = network.answers(torch.randn(2, *SHAPE), c)
    torch.testing.assert_close(share[0], share[1])
    other = network.answers(torch.randn(2, *SHAPE), c + 1)[1]
    assert (other - share).abs().max() > 0.05


def test_the_score_is_the_functional_of_two_particles(monkeypatch, tmp_path):
    """The loss of one pair is F of two particles and one target, but for its own distance, which is counted once."""
    flow, losses = quick_fit(tmp_path / "flow"), []
    target, c = torch.randn(1, *SHAPE), torch.randn(1, *SHAPE)
    monkeypatch.setattr(
        "invsolve.flows.training._train", lambda network, loss, *rest: losses.append(loss(torch.tensor([0])))
    )
    learn_score(flow, 0, target, c, FitSettings(batch=1), ImageRng([4]))
    noise = ImageRng([4]).randn((2, *SHAPE), dtype=torch.float32)[0]
    x = flow.mean + flow.spread * noise
    moves, share = flow.stages[0].answers(x, c.repeat(2, 1, 1, 1))
    points, t, expected = (x[:, None] - moves).flatten(2), target.flatten(), torch.zeros(())
    for a, p in zip(points[0], share[0], strict=True):  # every pair of answers with its probability
        for b, q in zip(points[1], share[1], strict=True):
            once = discrepancy(torch.stack([a, b]), t[None]) - (a - b).norm() / 4
            torch.testing.assert_close(once, ((a - t).norm() + (b - t).norm() - (a - b).norm()) / 2)
            expected = expected + p * q * once
    torch.testing.assert_close(losses[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_score_finds_two_modes(tmp_path):
    """The sign of a number whose size is measured: both answers, each half of the time, and nothing in between."""
    operator, noise, n = Matrix((1, 1, 2), matrix=torch.tensor([[0.0, 1.0]])), GaussianNoise(0.1), 4000

    def draw():
        generator = torch.Generator().manual_seed(0)
        size = 1 + 0.3 * torch.rand(n, generator=generator)
        z = torch.stack([size * torch.randn(n, generator=generator).sign(), size], dim=1).reshape(n, 1, 1, 2)
        return z, measure(z, operator, noise, ImageRng(range(n)))

    settings = FitSettings(stages=1, score_steps=600, batch=128, width=16, lr=1e-2)
    fit(draw, operator, noise, tmp_path / "sign", settings, source="signs")
    problem = Problem(operator, noise, torch.tensor([[1.15]]))
    prior, _, _ = small_problem(0.0)
    x = solve(problem, prior, MMDFlow(folder=str(tmp_path / "sign")), samples=1000, batch_size=1000).samples
    x = x[0, :, 0, 0, 0]
    assert abs(float((x > 0).float().mean()) - 0.5) < 0.1
    assert float((x.abs() < 0.7).float().mean()) < 0.05
    assert float((x.abs() - 1.15).abs().mean()) < 0.15


@pytest.mark.parametrize("noise", [NOISE, NoNoise()])
@pytest.mark.parametrize("kind", ["constant", "grey", "repeated", "two"])
def test_pictures_that_hardly_vary_can_be_fitted(tmp_path, kind, noise):
    operator = build_operator("downsample", SHAPE, factor=2)
    pictures = {
        "constant": torch.full((60, *SHAPE), 0.3),
        "grey": torch.zeros(60, *SHAPE),
        "repeated": sample_prior(PRIOR, SHAPE, ImageRng([0])).repeat(60, 1, 1, 1),
        "two": sample_prior(PRIOR, SHAPE, ImageRng([0, 1])),
    }
    z = pictures[kind]
    y = measure(z, operator, noise, ImageRng(range(len(z))))
    flow = fit(lambda: (z, y), operator, noise, tmp_path / "flow", QUICK, source="few")
    assert all(tensor.isfinite().all() for tensor in flow.state_dict().values())


def test_experts_stay_small_where_the_condition_is_large():
    """The metrics of the shares count too; one expert alone has none."""
    several = StageNetwork("experts", 8, (3, 16, 16), (8, 4, 4), drawn=True, blind=True)
    alone = StageNetwork("experts", 8, (3, 32, 32), (4, 4, 4), drawn=True, blind=True)
    for network, experts in ((several, 5), (alone, 1)):
        assert network.net.count == experts
        assert sum(p.numel() for p in network.parameters()) < 1.01 * MAX_WEIGHTS
    moves, share = alone.answers(torch.randn(2, 4, 4, 4), torch.randn(2, 3, 32, 32))
    assert moves.shape == (2, 1, 4, 4, 4)
    assert share.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("rows", [torch.zeros(50, 3), torch.randn(5, 3)], ids=["equal", "few"])
def test_clusters_of_almost_nothing(rows):
    own = clusters(rows, 8, ImageRng([0]))
    assert own.shape == (len(rows),)
    assert own.min() >= 0
    assert own.max() < 8


def test_a_flow_of_another_version_is_refused_with_a_sentence(folder, tmp_path):
    card = json.loads((folder / "card.json").read_text())
    del card["format"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / "flow.safetensors").write_bytes((folder / "flow.safetensors").read_bytes())
    with pytest.raises(ValueError, match="another version of invsolve"):
        MMDFlow(folder=str(tmp_path))


REFUSED = {
    "operator": ({"row": "downsample-bicubic"}, "downsample-bicubic"),
    "field": ({"row": "blur", "sigma": 0.7}, "blur"),
    "noise": ({"noise": GaussianNoise(0.2)}, "sigma=0.2"),
    "no noise": ({"noise": NoNoise()}, "NoNoise"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_problem_is_refused_with_a_sentence(folder, name):
    options, expected = REFUSED[name]
    with pytest.raises(ValueError, match="was fitted for downsample") as error:
        solve(problem_of(**options), PRIOR, MMDFlow(folder=str(folder)))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_another_size_or_a_damaged_folder_is_refused(folder, tmp_path):
    operator = build_operator("downsample", (1, 16, 16), factor=2)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\).*\(1, 16, 16\)"):
        solve(Problem(operator, NOISE, torch.zeros(1, 1, 8, 8)), PRIOR, MMDFlow(folder=str(folder)))
    with pytest.raises(ValueError, match="holds no fitted flow"):
        MMDFlow(folder=str(tmp_path))
    (tmp_path / "card.json").write_text((folder / "card.json").read_text())
    (tmp_path / "flow.safetensors").write_bytes((folder / "flow.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be used"):
        MMDFlow(folder=str(tmp_path))
    with pytest.raises(ValueError, match="at least 2"):
        MMDFlow(pairs=1)


def test_settings_have_ranges():
    for field in ({"stages": 0}, {"lr": -1.0}, {"momentum": 1.0}, {"particles": 1}, {"step_size": math.nan}):
        with pytest.raises(ValueError, match=next(iter(field))):
            FitSettings(**field)


# --- command line -----------------------------------------------------------------------------------------------------


def command(*words):
    return CliRunner().invoke(app, list(words))


FIT = ["fit", "--operator", "downsample(factor=2)", "--sigma", "0.1", "--size", "8", "--device", "cpu", "--pairs", "40"]
SHORT = ["--flow-steps", "2", "--score-steps", "3", "--train-steps", "3", "--slices", "8", "--batch", "8"]


def test_fit_and_restore(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = command(*FIT, *SHORT, "--prior", "gaussian", "-o", "flow")
    assert run.exit_code == 0, run.output
    assert "stage 2 of 2" in run.output
    save_png(torch.zeros(3, 4, 4), "small.png")
    restore = ["restore", "small.png", "--operator", "downsample(factor=2)", "--prior", "gaussian", "--sigma", "0.1"]
    solver = ["--solver", "mmdflow(folder='flow')"]
    assert command(*restore, *solver, "-o", "out").exit_code == 0
    assert (tmp_path / "out" / "small.png").exists()
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    absolute = ["--solver", f"mmdflow(folder='{tmp_path / 'flow'}')"]
    assert "skipped" in command(*restore, *absolute, "-o", "out").output
    assert record["solver"]["folder"] == "flow"
    other = command(*restore[:-1], "0.2", *solver, "-o", "other")
    assert other.exit_code == 2
    assert "was fitted for downsample(factor=2)" in other.stderr
    assert not Path("other").exists()
    again = command(*FIT, *SHORT, "--prior", "gaussian", "-o", "flow")
    assert (again.exit_code, "skipped flow" in again.output) == (0, True)
    changed = [*FIT, *SHORT, "--prior", "gaussian", "-o", "flow", "--lr", "1e-4"]
    refused = command(*changed)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert command(*changed, "--overwrite").exit_code == 0
    assert "restored" in command(*restore, *solver, "-o", "out").output  # another flow gives another picture


def test_fit_on_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(3):
        save_png(torch.rand(1, 12, 10 + k) - 0.5, f"pictures/{k}.png")
    run = command(*FIT, *SHORT, "pictures", "--grey", "-o", "flow")
    assert run.exit_code == 0, run.output
    card = json.loads(Path("flow/card.json").read_text())
    assert card["prior"].startswith("40 crops of 3 pictures (")
    assert card["image_shape"] == [1, 8, 8]
    small = command(*FIT, *SHORT, "pictures", "--size", "12", "-o", "other")
    assert small.exit_code == 2
    assert "less than a crop of 12 x 12" in small.stderr
    assert not Path("other.state").exists()


@pytest.mark.parametrize(
    "change", ["size", *(pytest.param(c, marks=pytest.mark.slow) for c in ("grey", "mask", "pictures", "prior"))]
)
def test_another_fit_is_never_taken_for_the_one_that_is_there(tmp_path, monkeypatch, change):
    """Neither the finished one nor one that was stopped, although the words typed may be the same."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"a": -0.5, "b": 0.5}.items():
        save_png(torch.full((1, 12, 12), value), f"{name}/p.png")
        hole = torch.full((1, 8, 8), -1.0)
        hole[0, 4 * (name == "b") :][:4] = 1.0
        save_png(hole, f"{name}/masks/m.png")
    base, first, second = {
        "size": (FIT, ["--prior", "gaussian"], ["--prior", "gaussian", "--size", "16"]),
        "grey": (FIT, ["--prior", "gaussian"], ["--prior", "gaussian", "--grey"]),
        "mask": (
            ["fit", *FIT[3:]],
            ["--prior", "gaussian", "--mask", "a/masks/m.png"],
            ["--prior", "gaussian", "--mask", "b/masks/m.png"],
        ),
        "pictures": (FIT, ["a/p.png"], ["b/p.png"]),
        "prior": (FIT, ["--prior", "gaussian"], ["a/p.png"]),
    }[change]
    words = [*base, *SHORT, "-o", "flow"]
    assert command(*words, *first).exit_code == 0
    again = command(*words, *second)
    assert (again.exit_code, "other options" in again.stderr) == (2, True)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("invsolve.flows.fit._fit_stage", stop)
        command(*words[:-1], "stopped", *first)
    assert Path("stopped.state").is_dir()
    resumed = command(*words[:-1], "stopped", *second)
    assert (resumed.exit_code, "other options" in resumed.stderr) == (2, True)


def test_a_fit_goes_on_after_it_was_killed_over_its_first_file(tmp_path):
    work = state_folder(tmp_path / "flow")
    work.mkdir()
    (work / ".invsolve-f0bcf9b73bc97afb.123.tmp").touch()
    quick_fit(tmp_path / "flow")
    assert not work.exists()
    work.mkdir()
    (work / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is not the state of a fit"):
        quick_fit(tmp_path / "flow")


def test_a_damaged_state_is_one_sentence(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("invsolve.flows.fit._fit_stage", stop)
        quick_fit(tmp_path / "flow")
    path = state_folder(tmp_path / "flow") / "pairs.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged; remove the folder"):
        quick_fit(tmp_path / "flow")


def test_a_fit_that_runs_away_is_not_published(tmp_path):
    with pytest.raises(ValueError, match="diverged"):
        quick_fit(tmp_path / "flow", dataclasses.replace(QUICK, lr=1e9))
    assert list(tmp_path.iterdir()) == []  # also no state, which would refuse other options


def test_one_hidden_pixel_more_is_another_operator(tmp_path):
    mask = torch.ones(1, 8, 8)
    mask[:, :2] = 0
    rows, operator = ImageRng(range(60)), Inpaint(SHAPE, observed=mask.clone())
    z = sample_prior(PRIOR, SHAPE, rows)
    flow = fit(lambda: (z, measure(z, operator, NOISE, rows)), operator, NOISE, tmp_path / "flow", QUICK, source="few")
    flow.check(Problem(operator, NOISE, torch.zeros(1, *SHAPE)), PRIOR)
    mask[0, 5, 5] = 0
    with pytest.raises(ValueError, match="was fitted for"):
        flow.check(Problem(Inpaint(SHAPE, observed=mask.clone()), NOISE, torch.zeros(1, *SHAPE)), PRIOR)


def test_a_flow_of_latents_knows_its_decoder(tmp_path):
    operator, rows = build_operator("downsample", SHAPE, factor=2), ImageRng(range(60))
    right, wrong = (
        LinearDecoder(PRIOR, torch.linalg.qr(randn(64, 64, seed=k))[0].float(), SHAPE, SHAPE) for k in (0, 1)
    )
    z = sample_prior(PRIOR, SHAPE, rows)
    y = measure(right.decode(z), operator, NOISE, rows)
    flow = fit(lambda: (z, y), operator, NOISE, tmp_path / "flow", QUICK, source="few", prior=right)
    problem = Problem(operator, NOISE, y[:1])
    flow.check(problem, right)
    for other in (wrong, PRIOR):
        with pytest.raises(ValueError, match="another decoder"):
            load_fitted(tmp_path / "flow").check(problem, other)


BAD = {
    "no input and no prior": (FIT, "one of the two"),
    "both": ([*FIT, "a.png", "--prior", "gaussian"], "one of the two"),
    "missing picture": ([*FIT, "none.png"], "none.png does not exist"),
    "unknown prior": ([*FIT, "--prior", "imagenet"], "Unknown prior"),
    "unknown operator": ([*FIT, "a.png", "--operator", "blurr"], "did you mean 'blur'"),
    "no operator": (["fit", "a.png"], "--operator"),
    "automatic noise": ([*FIT, "a.png", "--sigma", "auto"], "one level"),
    "pairs": ([*FIT, "a.png", "--pairs", "1"], "--pairs must be at least 2"),
    "size": ([*FIT, "a.png", "--size", "0"], "--size must be at least 1"),
    "size and operator": ([*FIT, "a.png", "--operator", "inpaint-box(top=0,left=0,height=99,width=9)"], "inside"),
    "size and levels": ([*FIT, "--prior", "gaussian", "--levels", "5"], "multiples of 16"),
    "width": ([*FIT, "--prior", "gaussian", "--size", "32", "--width", "12"], "multiple of 8"),
    "canvas": ([*FIT, "--prior", "gaussian", "--canvas", "4"], "--canvas must be at least 8"),
    "prior steps": ([*FIT, "--prior", "gaussian", "--prior-steps", "0"], "--prior-steps must be at least 1"),
    "learning rate": ([*FIT, "a.png", "--lr", "-1"], "lr must be at least 0"),
    "device": ([*FIT, "a.png", "--device", "toaster"], "'toaster' is not supported"),
    "output is a file": ([*FIT, "a.png", "-o", "a.png"], "is a file"),
    "output is used": ([*FIT, "--prior", "gaussian", "-o", "mine"], "mine.txt"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_sentence_and_nothing_written(name, tmp_path, monkeypatch):
    words, expected = BAD[name]
    monkeypatch.chdir(tmp_path)
    save_png(torch.zeros(3, 16, 16), "a.png")
    Path("mine").mkdir()
    Path("mine/mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    run = command(*words, *([] if "-o" in words else ["-o", "flow"]))
    assert run.exit_code == 2, run.output
    assert run.stderr.count("Error: ") == 1
    assert expected in run.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_folder_a_large_picture_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_png(torch.zeros(3, 32, 32), "a.png")
    run = command("restore", "a.png", "--operator", "identity", "--sigma", "0.1", "--solver", "mmdflow")
    assert run.exit_code == 2
    assert "fit a flow with `invsolve fit`" in run.stderr
