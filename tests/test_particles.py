"""Particle solvers: repulsive score distillation and the sequential Monte Carlo samplers MCGdiff and TDS."""

import dataclasses
import math
from itertools import pairwise
from pathlib import Path

import lpips as package
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from toys import IsotropicPrior, ReplayRng

from invsolve import GaussianNoise, NoNoise, Problem, build_operator, build_solver, make_times, metrics, simulate, solve
from invsolve.features import load_features
from invsolve.operators import Matrix
from invsolve.priors import DiscreteVP, GaussianMixture, GaussianPrior, LinearDecoder, PowerLaw
from invsolve.rng import ImageRng
from invsolve.solvers import RSD, TDS, MCGDiff, REDDiff
from invsolve.solvers._resampling import resample
from invsolve.solvers.rsd import repulsion

SHAPE = (3, 8, 8)
PRIOR = GaussianPrior(PowerLaw())
GOLDEN = Path(__file__).parent / "golden" / "gmm25"


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def toy(row="downsample", sigma=0.1, n=1, **fields):
    """Measurements of pictures of the power-law prior, in float64."""
    operator = build_operator(row, SHAPE, **(fields or {"factor": 2}))
    noise = GaussianNoise(sigma) if sigma else NoNoise()
    x = PRIOR.sample(SHAPE, ImageRng(range(n))).double()
    return Problem(operator, noise, simulate(operator, noise, x, ImageRng(range(100, 100 + n))))


def run(solver, problem, prior, times, rng):
    """The last state of a run without the driver."""
    state = solver.init(times[0], problem, prior, rng)
    for t, s in pairwise(times):
        state = solver.step(state, t, s, problem, prior, rng)
    return state


class Replay(ReplayRng):
    """Recorded normal numbers and uniform ones."""

    def __init__(self, draws, uniform):
        super().__init__(draws)
        self.uniform = list(uniform)

    def rand(self, shape, *, dtype, device="cpu"):
        return self.uniform.pop(0).reshape(-1, *shape).to(dtype)


# --- repulsion --------------------------------------------------------------------------------------------------------


def flat(z):
    return z.flatten(1)


@pytest.mark.parametrize("n", [2, 3, 5, 6])
def test_repulsion_equals_a_second_writing(n):
    """Two groups in a feature space that bends: loops, and the Jacobian by finite differences."""
    z, w = randn(2 * n, 1, 2, 2), randn(4, 7, seed=1)
    features = lambda u: torch.tanh(u.flatten(1) @ w)  # noqa: E731
    result = repulsion(z, features, n).flatten(1).numpy()
    f = features(z).numpy()
    for i in range(2 * n):
        others = [j for j in range(i // n * n, i // n * n + n) if j != i]
        d2 = {j: np.sum((f[i] - f[j]) ** 2) for j in others}
        h = sorted(d2.values())[(len(others) - 1) // 2] / math.log(n)

        def log_kernel(u, f=f, others=others, h=h):
            fu = np.tanh(u @ w.numpy())
            return -np.log(sum(np.exp(-np.sum((fu - f[j]) ** 2) / h) for j in others))

        base, e = z[i].flatten().numpy(), 1e-5
        expected = [(log_kernel(base + e * unit) - log_kernel(base - e * unit)) / (2 * e) for unit in np.eye(4)]
        np.testing.assert_allclose(result[i], expected, rtol=1e-6, atol=1e-8)


def test_few_particles_and_particles_in_one_place():
    z = randn(4, 1, 2, 2)
    assert torch.equal(repulsion(z, flat, 1), torch.zeros_like(z))
    two = repulsion(z, flat, 2)
    torch.testing.assert_close(two[0], -two[1])
    torch.testing.assert_close(two[0], 2 * math.log(2) * (z[0] - z[1]) / (z[0] - z[1]).square().sum())
    one_place = z[:1].expand(4, -1, -1, -1).clone()
    assert repulsion(one_place, flat, 4).abs().max() < 1e-6
    half = torch.cat([one_place[:3], z[3:]])
    assert repulsion(half, flat, 4).isfinite().all()
    near = one_place + 1e-12 * z
    assert repulsion(near, flat, 4).abs().max() < 1e-3  # not the inverse of their distance


def test_repulsion_points_away_and_falls_with_the_distance():
    z = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]).double().reshape(3, 1, 1, 2)
    push = repulsion(z, flat, 3).reshape(3, 2)
    assert push[0, 0] < 0 < push[1, 0]
    assert push[2, 1] > 0
    torch.testing.assert_close(repulsion(3 * z, flat, 3).reshape(3, 2), push / 3)
    torch.testing.assert_close(repulsion(z, lambda u: 5 * flat(u), 3).reshape(3, 2), push)  # whatever its units


# --- RSD --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["s_over_a", "trunc_linear"])
@pytest.mark.parametrize("sigma", [0.1, 0.0])
def test_rsd_without_repulsion_is_reddiff(weighting, sigma):
    problem, times = toy(sigma=sigma, n=2), make_times("vp", 12, PRIOR.schedule)
    plain = RSD(split=False, gamma=0.0, lr=0.1, weight=0.25, weighting=weighting)
    options = {"times": times, "samples": 3, "seed": 5}
    expected = solve(problem, PRIOR, REDDiff(lr=0.1, weight=0.25, weighting=weighting), **options)
    assert torch.equal(solve(problem, PRIOR, plain, **options).samples, expected.samples)
    other = solve(problem, PRIOR, dataclasses.replace(plain, gamma=0.01), **options)
    assert not torch.equal(other.samples, expected.samples)
    alone = solve(problem, PRIOR, dataclasses.replace(plain, gamma=0.01), **{**options, "samples": 1})
    assert torch.equal(alone.samples, expected.samples[:, :1])  # a single particle has nobody to avoid


class Adam:
    """Adam in four lines."""

    def __init__(self, lr):
        self.lr, self.m, self.v, self.k = lr, 0.0, 0.0, 0

    def step(self, x, g):
        self.k += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.99 * self.v + 0.01 * g**2
        return x - self.lr * self.m / (1 - 0.9**self.k) / (np.sqrt(self.v / (1 - 0.99**self.k)) + 1e-8)


@pytest.mark.parametrize("start", ["data", "noise"])
@pytest.mark.parametrize("split", [True, False])
def test_rsd_equals_a_second_writing(split, start):
    """Three particles through a linear decoder with more pixels than latent entries; repulsion in pixels."""
    n, d, p, m = 3, 8, 12, 5
    decoder, a, y = randn(p, d, seed=1), randn(m, p, seed=2), randn(m, seed=3)
    prior = LinearDecoder(IsotropicPrior(0.3, 0.7), decoder, (1, 3, 4), (2, 2, 2))
    problem = Problem(Matrix((1, 3, 4), matrix=a), GaussianNoise(0.2), y.expand(n, -1), n)
    solver = RSD(split=split, features="pixels", gamma=0.05, sigma_break=0.2, start=start, weight=0.4, coupling=0.3)
    times = torch.tensor([0.9, 0.6, 0.3, 0.1, 0.0]).double()
    draws = [randn(n, 2, 2, 2, seed=20), randn(n, 1, 3, 4, seed=21)] if start == "noise" else []
    draws += [randn(n, 2, 2, 2, seed=30 + k) for k in range(4)]
    state = run(solver, problem, prior, times, ReplayRng([q.clone() for q in draws]))  # Adam works in place

    w, a, y, draws = decoder.numpy(), a.numpy(), y.numpy(), [q.flatten(1).numpy() for q in draws]
    x = np.linalg.solve(a.T @ a + (0.2 / 0.5) ** 2 * np.eye(p), a.T @ y)[None].repeat(n, 0)
    z = x @ np.linalg.pinv(w).T
    if start == "noise":
        z, x = draws.pop(0), draws.pop(0)
    adam_z, adam_x, used = Adam(solver.lr), Adam(solver.lr_x), 0
    for t in times[:-1].numpy():
        noise = draws.pop(0)
        z_t = (1 - t) * z + t * noise
        eps = t * (z_t - (1 - t) * 0.3) / ((1 - t) ** 2 * 0.49 + t**2)
        g = (eps - noise) / d
        if t / (1 - t) >= 0.2:
            used += 1
            push = repulsion(torch.from_numpy(z @ w.T), flat, n).numpy() @ w
            g = g - 0.05 * t / math.hypot(t, 1 - t) * push
        g = 0.4 * min(t / (1 - t), 1.0) * g
        fit = (z @ w.T - x) @ w / p if split else (z @ w.T @ a.T - y) @ a @ w / m
        z = adam_z.step(z, fit + g)
        x = adam_x.step(x, (x @ a.T - y) @ a / m + 0.3 * (x - z @ w.T) / p)
    assert used == 3  # not at the lowest noise
    # From one place, the first push is made of rounding errors.
    tolerance = 1e-9 if start == "noise" else 1e-4
    torch.testing.assert_close(solver.estimate(state).flatten(1), torch.from_numpy(z), rtol=0, atol=tolerance)


def test_rsd_splits_where_there_is_a_decoder():
    times = torch.tensor([0.9, 0.5, 0.1, 0.0]).double()
    decoder = LinearDecoder(IsotropicPrior(0.3, 0.7), randn(12, 8, seed=1), (1, 3, 4), (2, 2, 2))
    picture = Problem(Matrix((1, 3, 4), matrix=randn(5, 12, seed=2)), GaussianNoise(0.2), randn(1, 5, seed=3))
    for problem, prior, split in ((picture, decoder, True), (toy(), PRIOR, False)):
        default, same, other = (
            solver.estimate(run(solver, problem, prior, times, ImageRng([0])))
            for solver in (RSD(), RSD(split=split), RSD(split=not split))
        )
        assert torch.equal(default, same)
        assert not torch.allclose(default, other)


def four_modes():
    """Four modes at the corners of a square that the data, the third number, say nothing about."""
    corners = torch.tensor([[x, y, 0.0] for x in (-1.0, 1.0) for y in (-1.0, 1.0)]).double()
    prior = GaussianMixture(torch.ones(4), corners.reshape(4, 1, 1, 3), 0.04 * torch.eye(3).double()[None])
    matrix = torch.tensor([[0.0, 0.0, 1.0]]).double()
    return prior, Problem(Matrix((1, 1, 3), matrix=matrix), GaussianNoise(0.1), torch.zeros(6, 1).double())


@pytest.mark.parametrize("split", [True, False])
def test_repulsion_finds_more_modes(split):
    """Eight particles for each of six measurements: with repulsion most of the four corners are taken."""
    prior, problem = four_modes()
    found = {}
    for gamma in (0.0, 0.3):
        solver = RSD(split=split, gamma=gamma)
        x = solve(problem, prior, solver, samples=8, batch_size=48, seed=1).samples.reshape(6, 8, 3)
        corner = 2 * (x[..., 0] > 0).long() + (x[..., 1] > 0).long()
        arrived = (x[..., :2].abs() - 1).abs().amax(dim=-1) < 0.5
        found[gamma] = sum(len(set(c[a].tolist())) for c, a in zip(corner, arrived, strict=True)) / 6
    assert found[0.3] > 3.2, found
    assert found[0.3] > found[0.0] + 0.5, found


@pytest.mark.parametrize("split", [True, False])
def test_particles_in_another_order(split):
    """The same draws for exchanged particles: the same particles, exchanged."""
    problem, times = toy().rows(torch.zeros(4, dtype=torch.long), 4), make_times("vp", 6, PRIOR.schedule)
    solver, order = RSD(gamma=0.05, split=split), [2, 0, 3, 1]
    first = solver.estimate(run(solver, problem, PRIOR, times, ImageRng(range(4))))
    other = solver.estimate(run(solver, problem, PRIOR, times, ImageRng(order)))
    torch.testing.assert_close(other, first[order], rtol=1e-9, atol=1e-9)
    assert (first[0] - first[1]).norm() > 0.1


PARTICLE_SOLVERS = {
    "rsd": RSD(gamma=0.05),
    "rsd split": RSD(gamma=0.05, split=True),
    "mcgdiff": MCGDiff(),
    "tds": TDS(),
}


@pytest.mark.parametrize("name", PARTICLE_SOLVERS)
def test_groups_do_not_see_each_other(name):
    """Whatever the second measurement is and whether it is in the batch, the particles of the first are the same."""
    solver, problem = PARTICLE_SOLVERS[name], toy(n=2)
    times = make_times(solver.times, 6, PRIOR.schedule)
    options = {"times": times, "samples": 3}
    together = solve(problem, PRIOR, solver, **options, batch_size=6).samples
    alone = solve(problem, PRIOR, solver, **options, batch_size=1).samples  # three at a time: a group is not divided
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    changed = dataclasses.replace(problem, y=torch.stack([problem.y[0], -problem.y[1]]))
    torch.testing.assert_close(solve(changed, PRIOR, solver, **options).samples[0], together[0], rtol=1e-9, atol=1e-9)
    eight, one = (solve(problem, PRIOR, solver, times=times, samples=n).samples for n in (8, 1))
    assert not torch.allclose(eight[:, :1], one)  # but those of one measurement do see each other


@pytest.mark.parametrize("name", PARTICLE_SOLVERS)
def test_all_particles_have_the_same_data(name):
    seen, problem = [], toy(n=2)
    original = type(PARTICLE_SOLVERS[name]).step

    class Watching(type(PARTICLE_SOLVERS[name])):
        def step(self, state, t, s, problem, prior, rng):
            seen.append((problem.particles, problem.y))
            return original(self, state, t, s, problem, prior, rng)

    solve(problem, PRIOR, Watching(), make_times("vp", 2, PRIOR.schedule), samples=3)
    for particles, y in seen:
        assert particles == 3
        assert torch.equal(y, problem.y.repeat_interleave(3, dim=0))
    assert seen


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def vision_transformer(tmp_path):
    """A tiny random vision transformer in a folder."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


def test_dino_features_are_the_class_token(vision_transformer):
    from transformers import ViTModel

    features, x = load_features("dino", vision_transformer), torch.tanh(randn(2, 3, 16, 16))
    network = ViTModel.from_pretrained(vision_transformer, add_pooling_layer=False).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = network(((x.float() + 1) / 2 - mean) / std).last_hidden_state[:, 0]
    assert features(x).dtype == torch.float64
    torch.testing.assert_close(features(x).float(), expected, rtol=1e-4, atol=1e-5)
    assert features(torch.tanh(randn(2, 1, 40, 24))).shape == (2, 12)  # grey, of any size
    push = repulsion(x, features, 2)
    assert push.abs().max() > 0
    assert push.isfinite().all()


def test_rsd_with_dino_features(vision_transformer):
    spec = f"rsd(features='dino', network={vision_transformer!r}, gamma=0.5)"
    problem, times = toy(), make_times("vp", 3, PRIOR.schedule)
    result = solve(problem, PRIOR, build_solver(spec), times, samples=2)
    assert result.ok
    without = solve(problem, PRIOR, build_solver("rsd(gamma=0)"), times, samples=2)
    assert not torch.allclose(result.samples, without.samples)


def test_a_wrong_trunk_is_one_sentence(monkeypatch, tmp_path):
    for content in (
        b"root:x:0:0",
        save({"a": torch.zeros(1)}),
        save({"0.weight": torch.zeros(1), "0.bias": torch.zeros(1)}),
    ):
        (tmp_path / "trunk.safetensors").write_bytes(content)
        monkeypatch.setenv("INVSOLVE_LPIPS_TRUNK", str(tmp_path / "trunk.safetensors"))
        metrics.lpips_network.cache_clear()
        with pytest.raises(ValueError, match=r"holds no AlexNet convolutions; set it to the file that"):
            metrics.lpips_network()


def test_lpips_features_have_lpips_as_squared_distance(monkeypatch):
    """With random convolutions, and the weights of the heads that the package has."""
    import lpips as package

    from invsolve import features

    torch.manual_seed(0)
    network = package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval().requires_grad_(False)
    for module in (features, metrics):
        monkeypatch.setattr(module, "lpips_network", lambda: network)
    features.load_features.cache_clear()
    x, y = (torch.tanh(randn(2, 3, 64, 64, seed=seed)).float() for seed in (0, 1))
    map_ = load_features("lpips")
    distance = (map_(x) - map_(y)).square().sum(dim=1)
    torch.testing.assert_close(distance, metrics.lpips(x, y), rtol=1e-3, atol=1e-5)
    assert distance.min() > 1e-3
    assert repulsion(x, map_, 2).isfinite().all()
    features.load_features.cache_clear()


def test_pixels_of_a_pixel_prior_are_its_latents():
    problem, times = toy(), make_times("vp", 4, PRIOR.schedule)
    a, b = (solve(problem, PRIOR, RSD(features=f), times, samples=3).samples for f in ("latent", "pixels"))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_bad_fields_give_the_sentence(tmp_path):
    for spec, sentence in (
        ("rsd(features='dyno')", "Unknown features 'dyno'; choose one of latent, pixels, lpips, dino"),
        ("rsd(features='dino')", "need a network"),
        ("rsd(network='somewhere')", "they alone"),
        ("rsd(weighting='linear')", "weighting of solver rsd must be"),
        ("rsd(gamma=-1)", "gamma must be"),
        ("mcgdiff(eta=0)", "eta must be"),
        ("tds(data_std=0)", "data_std must be"),
    ):
        with pytest.raises(ValueError, match=sentence):
            build_solver(spec)
    with pytest.raises(ValueError, match="start must be"):
        RSD(start="middle")
    with pytest.raises(ValueError, match="resampling must be one of systematic, multinomial"):
        MCGDiff(resampling="none")
    with pytest.raises(ValueError, match="Unknown features 'latent'"):
        load_features("latent")
    with pytest.raises(FileNotFoundError, match="neither a folder"):
        load_features("dino", str(tmp_path / "nothing"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert'; features='dino' takes the vision transformers vit, dinov2"):
        load_features("dino", str(tmp_path / "bert"))


# --- resampling -------------------------------------------------------------------------------------------------------


def group_of(n, groups=1):
    """A problem that only says how many particles there are."""
    return Problem(build_operator("identity", (1, 1, 1)), GaussianNoise(1.0), torch.zeros(n * groups, 1, 1, 1), n)


def test_systematic_resampling_gives_every_particle_its_share():
    log_w = randn(2 * 50)
    parents, after, ess = resample(log_w, group_of(50, 2), "systematic", 1.0, ImageRng(range(100)))
    assert (after == 0).all()
    for k in range(2):
        w = log_w[50 * k : 50 * k + 50].softmax(dim=0)
        count = torch.bincount(parents[50 * k : 50 * k + 50] - 50 * k, minlength=50)  # of the same group
        assert ((count - 50 * w).abs() < 1).all()
        torch.testing.assert_close(ess[k], 1 / w.square().sum())
    others = ImageRng([0, *range(500, 549), 50, *range(600, 649)])
    other = resample(log_w, group_of(50, 2), "systematic", 1.0, others).parents
    assert torch.equal(parents, other)  # only the first generator of a group matters
    equal = resample(torch.zeros(50), group_of(50), "systematic", 1.0, ImageRng(range(50))).parents
    assert torch.equal(equal, torch.arange(50))


def test_only_groups_with_few_effective_particles_are_resampled():
    log_w = torch.tensor([0.0, 0.1, 0.2, -0.1, 5.0, 0.0, 0.0, -torch.inf])
    parents, after, ess = resample(log_w, group_of(4, 2), "systematic", 0.5, ImageRng(range(8)))
    assert ess[0] > 2 > ess[1]
    assert torch.equal(parents[:4], torch.arange(4))
    assert torch.equal(after[:4], log_w[:4])
    assert torch.equal(parents[4:], torch.full((4,), 4))
    assert (after[4:] == 0).all()


@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_resampling_is_unbiased(resampling):
    log_w, n, runs = torch.tensor([0.0, 1.0, -1.0, 0.5]).double(), 4, 2000
    problem = group_of(n, runs)
    parents = resample(log_w.repeat(runs), problem, resampling, 1.0, ImageRng(range(n * runs))).parents
    share = torch.bincount(parents % n, minlength=n) / (n * runs)
    torch.testing.assert_close(share.double(), log_w.softmax(dim=0), rtol=0, atol=0.02)


def test_a_particle_that_is_not_finite_has_no_children():
    log_w = torch.tensor([0.0, torch.nan, 1.0, -torch.inf, 0.0, 0.0, torch.nan, 0.0])
    for resampling in ("systematic", "multinomial"):
        parents, _, ess = resample(log_w, group_of(4, 2), resampling, 1.0, ImageRng(range(8)))
        assert not {1, 3, 6} & set(parents.tolist())
        assert ess.isfinite().all()


# --- MCGdiff and TDS --------------------------------------------------------------------------------------------------


def log_normal(x, mean, variance):
    return -((x - mean) ** 2) / (2 * variance) - 0.5 * np.log(2 * np.pi * variance)


def pick(log_w, u):
    """Systematic resampling."""
    w = np.exp(log_w - log_w.max())
    return np.searchsorted(np.cumsum(w / w.sum()), (np.arange(len(w)) + u) / len(w), side="right")


@pytest.mark.parametrize(("sigma", "eta"), [(0.4, 1.0), (0.4, 0.6), (0.0, 1.0)])
def test_mcgdiff_equals_a_second_writing(sigma, eta):
    """Four particles in six dimensions, two of them unseen, from pure noise; one component at a time."""
    n, d = 4, 6
    u, _, vt = np.linalg.svd(randn(4, d).numpy())
    v = np.array([3.0, 1.0, 0.3, 0.05])  # noise ratios 0.13, 0.4, 1.3, 8: on all sides of the grid
    a, y = torch.from_numpy(u * v @ vt[:4]), randn(4, seed=1)
    problem = Problem(Matrix((1, 2, 3), matrix=a), GaussianNoise(sigma) if sigma else NoNoise(), y.expand(n, -1), n)
    prior, times = IsotropicPrior(0.3, 0.7), torch.tensor([1.0, 0.9, 0.6, 0.5, 0.2, 0.05, 0.0]).double()
    draws = [randn(n, 1, 2, 3, seed=20 + k) for k in range(7)]
    uniform = [torch.full((n,), 0.1 + 0.13 * k).double() for k in range(6)]
    state = run(MCGDiff(eta=eta), problem, prior, times, Replay(draws, uniform))

    noise, uniform = [q.flatten(1).numpy() @ vt.T for q in draws], [float(q[0]) for q in uniform]
    b, level = (u.T @ y.numpy()) / v, sigma or 1 / 255
    rho = np.concatenate([level / v, [np.inf, np.inf]])
    b = np.concatenate([b, [0, 0]])
    x, passed = noise.pop(0), set()  # in the coordinates z of the path, at alpha = 0: K = 1 / 2 and b of no weight
    x = x * np.where(np.isfinite(rho), np.sqrt(0.5), 1)
    centre = vt @ np.full(d, 0.3)
    for (t, s), point in zip(pairwise(times.numpy()), uniform, strict=True):
        r_t, r_s = t / (1 - t) if t < 1 else np.inf, s / (1 - s)
        var = (1 - t) ** 2 * 0.49 + t**2
        z0 = centre + (1 - t) * 0.49 / var * (x - (1 - t) * centre)
        eps = t / var * (x - (1 - t) * centre)
        m, k, q, log_w = np.zeros((n, d)), np.zeros(d), np.zeros(d), np.zeros(n)
        seen = rho < r_t
        for i in range(d):
            q[i] = max(r_s, rho[i]) if seen[i] else r_s
            k[i] = eta * q[i] * np.sqrt(1 - (q[i] / r_t) ** 2)
            m[:, i] = z0[:, i] + np.sqrt(q[i] ** 2 - k[i] ** 2) * eps[:, i]
            if seen[i]:
                passed.add((i, bool(rho[i] > r_s)))
                log_w += log_normal(b[i], m[:, i], k[i] ** 2 + q[i] ** 2 - rho[i] ** 2)
                log_w -= log_normal(x[:, i], (1 - t) * b[i], t**2 - ((1 - t) * rho[i]) ** 2)
        parents, fresh, new = pick(log_w, point), noise.pop(0), np.zeros((n, d))
        for i in range(d):
            gain = k[i] ** 2 / (k[i] ** 2 + (q[i] ** 2 - rho[i] ** 2)) if seen[i] else 0
            new[:, i] = gain * b[i] + (1 - gain) * m[parents, i] + k[i] * np.sqrt(1 - gain) * fresh[:, i]
            if q[i] > r_s:
                left = eta * r_s * np.sqrt(1 - (r_s / q[i]) ** 2)
                new[:, i] = z0[parents, i] + np.sqrt(r_s**2 - left**2) / q[i] * (new[:, i] - z0[parents, i])
                new[:, i] += left * fresh[:, i]
        x = (1 - s) * new
    assert {kind for _, kind in passed} == {True, False}  # some components passed their noise between two times
    torch.testing.assert_close(state.z.flatten(1), torch.from_numpy(x @ vt), rtol=1e-7, atol=1e-7)
    assert state.ess.shape == (1, 6)
    assert ((state.ess >= 1) & (state.ess <= n)).all()


@pytest.mark.parametrize(
    ("sigma", "eta", "krylov_steps", "below"),
    [(0.4, 1.0, 0, 1.0), (0.4, 0.6, 0, 1.0), (0.0, 1.0, 0, 1.0), (0.4, 1.0, 3, 1.0), (2.0, 0.8, 3, 0.6)],
)
def test_tds_equals_a_second_writing(sigma, eta, krylov_steps, below):
    """Four particles through a linear decoder, with the covariance of the twist written out."""
    n, d, p, m = 4, 4, 6, 3
    decoder, a, y = randn(p, d), randn(m, p, seed=1), randn(m, seed=2)
    prior = LinearDecoder(IsotropicPrior(0.3, 0.7), decoder, (1, 2, 3), (1, 2, 2))
    noise = GaussianNoise(sigma) if sigma else NoNoise()
    problem = Problem(Matrix((1, 2, 3), matrix=a), noise, y.expand(n, -1), n)
    times = torch.tensor([0.95, 0.8, 0.5, 0.2, 0.0]).double()
    draws = [randn(n, 1, 2, 2, seed=20 + k) for k in range(5)]
    uniform = [torch.full((n,), 0.1 + 0.2 * k).double() for k in range(4)]
    solver = TDS(eta=eta, data_std=0.8, krylov_steps=krylov_steps, resample_below=below)
    state = run(solver, problem, prior, times, Replay(draws, uniform))

    w, a, y, level = decoder.numpy(), a.numpy(), y.numpy(), sigma or 1 / 255
    draws, uniform = [q.flatten(1).numpy() for q in draws], [float(q[0]) for q in uniform]
    z, log_w, stayed = math.hypot(0.95, 0.05) * draws.pop(0), np.zeros(n), 0
    for (t, s), point in zip(pairwise(times.numpy()), uniform, strict=True):
        var = (1 - t) ** 2 * 0.49 + t**2
        z0 = 0.3 + (1 - t) * 0.49 / var * (z - (1 - t) * 0.3)
        eps = t / var * (z - (1 - t) * 0.3)
        r2 = (0.8 * t) ** 2 / ((0.8 * (1 - t)) ** 2 + t**2)
        spread = t**2 * 0.49 / var * w @ w.T if krylov_steps else r2 * np.eye(p)
        inverse = np.linalg.inv(a @ spread @ a.T + level**2 * np.eye(m))
        misfit = y - z0 @ w.T @ a.T
        log_twist = -0.5 * np.einsum("bi,ij,bj->b", misfit, inverse, misfit)
        g = (1 - t) * 0.49 / var * misfit @ inverse @ a @ w
        if s == 0:
            log_twist = -0.5 * (misfit**2).sum(1) / level**2
        log_w, fresh = log_w + log_twist, draws.pop(0)
        share = np.exp(log_w - log_w.max())
        if share.sum() ** 2 / (share**2).sum() <= below * n or s == 0:
            parents, log_w = pick(log_w, point), np.zeros(n)
        else:
            parents, stayed = np.arange(n), stayed + 1
        k = eta * s * math.sqrt(1 - (s / (1 - s) * (1 - t) / t) ** 2)
        mean = (1 - s) * z0 + math.sqrt(s**2 - k**2) * eps
        # The score as it enters z0 and eps: z0 = (z + t^2 score) / (1 - t), eps = -t score.
        guided = (1 - s) * (z0 + t**2 / (1 - t) * g) + math.sqrt(s**2 - k**2) * (eps - t * g)
        mean, guided, log_twist = mean[parents], guided[parents], log_twist[parents]
        if s == 0:
            z = mean
            break
        z = guided + k * fresh
        log_w += log_normal(z, mean, k**2).sum(1) - log_normal(z, guided, k**2).sum(1) - log_twist
    torch.testing.assert_close(state.z.flatten(1), torch.from_numpy(z), rtol=1e-7, atol=1e-7)
    assert (stayed > 0) == (below < 1)


def mixture_problem():
    """Three modes in two dimensions, of which one combination is measured, and its exact posterior."""
    means = torch.tensor([[-3.0, 0.0], [3.0, 0.5], [0.0, 4.0]]).double().reshape(3, 1, 1, 2)
    prior = GaussianMixture(torch.tensor([0.5, 0.3, 0.2]).double(), means, 0.5 * torch.eye(2).double()[None])
    operator = Matrix((1, 1, 2), matrix=torch.tensor([[0.3, 1.0]]).double())
    problem = Problem(operator, GaussianNoise(1.0), torch.tensor([[0.8]]).double())
    return prior, problem, prior.posterior(operator, 1.0, problem.y)


@pytest.mark.parametrize("name", ["mcgdiff", "tds"])
def test_more_particles_are_better(name):
    """Root mean square error of mean and covariance over ten runs."""
    prior, problem, exact = mixture_problem()
    many = dataclasses.replace(problem, y=problem.y.expand(10, -1))
    errors = []
    for n in (8, 200):
        solver = PARTICLE_SOLVERS[name]
        times = make_times("karras", 60, prior.schedule)
        x = solve(many, prior, solver, times, samples=n, batch_size=10 * n).samples.flatten(2)  # (10, n, 2)
        mean = (x.mean(dim=1) - exact.mean.flatten()).square().sum(dim=1).mean().sqrt()
        centred = x - x.mean(dim=1, keepdim=True)
        covariance = (centred.mT @ centred / n - exact.covariance).square().sum(dim=(1, 2)).mean().sqrt()
        errors.append((float(mean), float(covariance)))
    spread = float(exact.covariance.trace())
    assert errors[1][0] < 0.5 * errors[0][0], errors
    assert errors[1][1] < 0.5 * errors[0][1], errors
    assert errors[1][0] < 0.2 * spread**0.5, errors
    assert errors[1][1] < 0.15 * spread, errors


def test_tds_knows_the_posterior_of_an_operator_that_is_not_linear():
    """y = x_1^2 + noise in one dimension: two modes, against the posterior on a fine grid."""
    from invsolve.operators import Operator

    class Square(Operator):
        def forward(self, x):
            return x.square()

    prior = IsotropicPrior(torch.tensor(0.3).double(), 1.0)
    problem = Problem(Square((1, 1, 1)), GaussianNoise(0.5), torch.full((1, 1, 1, 1), 1.5).double())
    x = solve(problem, prior, TDS(), samples=1500, batch_size=1500).samples.flatten()
    grid = torch.linspace(-5, 5, 4001).double()
    p = (-((grid - 0.3) ** 2) / 2 - (grid**2 - 1.5) ** 2 / 0.5).softmax(dim=0)
    assert abs(float((x > 0).double().mean() - p[grid > 0].sum())) < 0.05
    assert abs(float(x.square().mean() - (p * grid**2).sum())) < 0.1
    assert abs(float(x.abs().std() - ((p * grid**2).sum() - (p * grid.abs()).sum() ** 2).sqrt())) < 0.05


@pytest.mark.parametrize("name", ["mcgdiff", "tds"])
def test_noiseless_data_are_met(name):
    """To about the tolerance, with the smallest time of the grid."""
    problem = toy(sigma=0.0)
    result = solve(problem, PRIOR, PARTICLE_SOLVERS[name], make_times("vp", 60, PRIOR.schedule), samples=8)
    misfit = problem.rows(torch.zeros(8, dtype=torch.long)).residual(result.samples[0]).square().mean().sqrt()
    assert misfit < 0.02


@pytest.mark.slow
def test_moments_keep_the_particles_of_tds_where_entries_depend_on_each_other():
    """A Gaussian with correlated entries and precise data: the exact twist keeps nearly all particles effective."""
    d, n = 12, 200
    factor = randn(d, d) / d**0.5
    covariance = factor @ factor.T + 0.1 * torch.eye(d).double()
    prior = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 1, 1, d).double(), covariance[None])
    operator = Matrix((1, 1, d), matrix=randn(8, d, seed=1) / d**0.5)
    problem = Problem(operator, GaussianNoise(0.05), operator(prior.sample(1, torch.Generator().manual_seed(2))))
    exact = prior.posterior(operator, 0.05, problem.y)
    times, errors = make_times("karras", 200, prior.schedule), []
    for krylov_steps in (0, 8):
        solver = TDS(krylov_steps=krylov_steps, resample_below=0.5)
        x = solve(problem, prior, solver, times, samples=n, batch_size=n).samples.flatten(0, 1).flatten(1)
        errors.append(float((x.mean(dim=0) - exact.mean.flatten()).norm() / exact.covariance.trace().sqrt()))
    assert errors[1] < 0.16 < 0.25 < errors[0], errors


def test_tds_refuses_moments_of_an_operator_that_is_not_linear():
    operator = build_operator("jpeg", (3, 16, 16), quality=10)
    problem = Problem(operator, NoNoise(), torch.zeros(1, *operator.data_shape).double())
    with pytest.raises(TypeError, match="krylov_steps=2 needs a linear operator, and JPEG is none"):
        solve(problem, PRIOR, TDS(krylov_steps=2), samples=2)


def test_mcgdiff_refuses_a_decoder():
    prior = LinearDecoder(IsotropicPrior(0.0, 1.0), randn(4, 4), (1, 2, 2), (1, 2, 2))
    problem = Problem(Matrix((1, 2, 2), matrix=randn(2, 4)), GaussianNoise(0.1), randn(1, 2))
    with pytest.raises(TypeError, match="prior of pixels"):
        solve(problem, prior, MCGDiff(), samples=4)
    assert solve(problem, prior, TDS(), samples=4).ok


# --- the stored problems with 25 modes --------------------------------------------------------------------------------


def stored(name):
    """The twenty problems of a setting with their prior, and the results of MCGdiff and of exact samples."""
    data = load_file(GOLDEN / f"{name}.safetensors")
    shape = (1, 1, data["means"].shape[1])
    schedule = DiscreteVP(torch.linspace(0.02, 1e-4, 999).double())
    means, identity = data["means"].double().reshape(-1, *shape), torch.eye(shape[2]).double()[None]
    return data, GaussianMixture(data["weights"].double(), means, identity, schedule)


def sliced_distance(x, reference):
    """Mean over the stored 100 directions of the one-dimensional Wasserstein-1 distance."""
    directions = torch.randn(100, x.shape[1], generator=torch.Generator().manual_seed(0))
    directions = (directions / directions.norm(dim=1, keepdim=True)).double()
    a, b = ((u @ directions.T).sort(dim=0).values for u in (x, reference))
    return float((a - b).abs().mean())


def distances(name, steps, solver, seed=0):
    """SW1 of 1000 particles for each of the twenty problems (20,)."""
    data, prior = stored(name)
    found = []
    for i in range(20):
        operator = Matrix(prior.latent_shape(tuple(prior.means.shape[1:])), matrix=data["A"][i].double())
        problem = Problem(operator, GaussianNoise(float(data["sigma"][i])), data["y"][i : i + 1].double())
        times = data[f"t{steps}"][i].double().flip(0) / 999
        x = solve(problem, prior, solver, times, samples=1000, batch_size=1000, seed=seed).samples[0].flatten(1)
        exact = prior.posterior(operator, float(data["sigma"][i]), problem.y)
        reference = exact.sample(1000, torch.Generator().manual_seed(77 + i)).flatten(1)
        found.append(sliced_distance(x, reference))
    return torch.tensor(found)


@pytest.mark.parametrize(("eta", "resampling"), [(0.6, "multinomial"), (1.0, "systematic")])
@pytest.mark.slow
def test_mcgdiff_on_stored_problems(eta, resampling):
    """Twenty steps: as the stored results where it is what they were made with, and better with our defaults."""
    data, _ = stored("d8_dy4")
    floor, reference = data["sw1_20"][:, 0], data["sw1_20"][:, 1]
    found = distances("d8_dy4", 20, MCGDiff(eta=eta, resampling=resampling))
    if eta < 1:
        assert abs(float((found - reference).mean())) < 0.1 * float(reference.mean())
    else:
        assert found.mean() < 3 * floor.mean() < reference.mean()


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "eta"), [(20, 0.6), (100, 0.85)])
@pytest.mark.parametrize("name", ["d8_dy1", "d8_dy2", "d8_dy4", "d80_dy1", "d80_dy2", "d80_dy4"])
def test_mcgdiff_agrees_with_stored_results(name, steps, eta):
    """Problem by problem, as closely as two runs of the same sampler do: three standard errors or a tenth."""
    data, _ = stored(name)
    reference = data[f"sw1_{steps}"][:, 1]
    gap = distances(name, steps, MCGDiff(eta=eta, resampling="multinomial")) - reference
    assert abs(float(gap.mean())) < max(3 * float(gap.std()) / 20**0.5, 0.1 * float(reference.mean()))


@pytest.mark.slow
def test_mcgdiff_is_near_exact_samples():
    data, _ = stored("d8_dy4")
    assert distances("d8_dy4", 100, MCGDiff()).mean() < 3 * data["sw1_100"][:, 0].mean()


def test_a_lost_particle_does_not_take_the_others_with_it():
    z = randn(6, *SHAPE, seed=3)
    lost = z.clone()
    lost[1] = torch.nan
    push = repulsion(lost, lambda u: u.flatten(1), 3)
    torch.testing.assert_close(push[[0, 2]], repulsion(z[[0, 2]], lambda u: u.flatten(1), 2))
    torch.testing.assert_close(push[3:], repulsion(z, lambda u: u.flatten(1), 3)[3:])


def test_close_particles_repel_each_other_alike_in_both_precisions():
    z = torch.zeros(2, *SHAPE, dtype=torch.float64)
    z[1, 0, 0, 0] = 1e-5
    double, single = (repulsion(u, lambda v: v.flatten(1), 2) for u in (z, z.float()))
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("name", "sentence"), [("lpips", "at least 31 x 31 pixels"), ("dino", "neither a folder")])
def test_features_that_cannot_be_had_are_refused_before_the_prior_runs(name, sentence, monkeypatch, tmp_path):
    class Silent(GaussianPrior):
        def predict(self, z, t):
            raise AssertionError

    monkeypatch.setattr(
        "invsolve.features.lpips_network", lambda: package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    )
    load_features.cache_clear()
    solver = RSD(features=name, network=str(tmp_path / "nothing") if name == "dino" else None)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        solve(toy(), Silent(PowerLaw()), solver, samples=2, steps=1)
    load_features.cache_clear()
