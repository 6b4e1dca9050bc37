"""Priors: the path identity, closed forms against brute force, wrappers, and loading through diffusers' own classes."""

import json
import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

from invsolve.operators import build_operator
from invsolve.priors import (
    VE,
    Diagonal,
    DiscreteVP,
    Full,
    GaussianMixture,
    GaussianPrior,
    GreyPrior,
    Guided,
    LinearFlow,
    Metered,
    PowerLaw,
    Rescheduled,
    Stationary,
    load_pixel_prior,
    load_prior,
)
from invsolve.priors.gaussian import dense_matrix
from invsolve.priors.network import ResidualUNet
from invsolve.priors.schedule import linear_betas, scaled_linear_betas
from invsolve.rng import ImageRng

SHAPE = (3, 4, 5)
SIZE = math.prod(SHAPE)
SCHEDULES = {
    "flow": LinearFlow(),
    "vp": DiscreteVP(linear_betas()),
    "sd": DiscreteVP(scaled_linear_betas()),
    "ve": VE(40.0),
}


def spd(size=SIZE, seed=0):
    """A random covariance."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def stationary(shape=SHAPE):
    """A random stationary covariance: the power spectrum of a random field."""
    field = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Stationary(torch.fft.rfft2(field).abs().square() / field[0].numel() + 0.1)


def mean_image():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def gmm(schedule=None, shared=False):
    g = torch.Generator().manual_seed(1)
    means = 2 * torch.randn(4, *SHAPE, generator=g, dtype=torch.float64)
    covariances = torch.stack([0.3 * spd(seed=k) for k in range(1 if shared else 4)])
    return GaussianMixture(torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), means, covariances, schedule)


EXACT = {
    "full": lambda s: GaussianPrior(Full(spd()), mean_image(), s),
    "diagonal": lambda s: GaussianPrior(Diagonal(torch.rand(SHAPE).double() + 0.1), mean_image(), s),
    "stationary": lambda s: GaussianPrior(stationary(), mean_image(), s),
    "power-law": lambda s: GaussianPrior(PowerLaw(), 0.1, s),
    "mixture": gmm,
    "mixture-shared": lambda s: gmm(s, shared=True),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("t", [0.0, 0.02, 0.3, 0.98, 1.0])
def test_path_identity(name, schedule, t):
    prior, t = EXACT[name](SCHEDULES[schedule]), torch.tensor(t, dtype=torch.float64)
    z = torch.randn(2, *SHAPE, dtype=torch.float64)
    ends = prior.predict(z, t)
    torch.testing.assert_close(prior.at(t, *ends), z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EXACT)
def test_time_per_image(name):
    """One time per row is the same as one call per row."""
    prior = EXACT[name](None)
    z, t = torch.randn(3, *SHAPE, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    together = prior.predict(z, t)
    for k in range(3):
        alone = prior.predict(z[k : k + 1], t[k])
        torch.testing.assert_close(together.clean[k : k + 1], alone.clean)
        torch.testing.assert_close(together.noise[k : k + 1], alone.noise)


@pytest.mark.parametrize("name", ["full", "diagonal", "stationary", "power-law"])
def test_gaussian_predict_is_the_conditional_mean(name):
    """Against the dense formula, with the covariance measured column by column."""
    prior = EXACT[name](None)
    c = prior.covariance.apply_function(lambda v: v, torch.eye(SIZE).double().reshape(-1, *SHAPE)).flatten(1)
    torch.testing.assert_close(c, c.T)
    assert torch.linalg.eigvalsh(c).min() > 0
    t, z = torch.tensor(0.4, dtype=torch.float64), torch.randn(2, *SHAPE, dtype=torch.float64)
    m = prior.mean.double().expand(SHAPE).flatten()
    clean = m + (0.6 * c @ torch.linalg.solve(0.36 * c + 0.16 * torch.eye(SIZE), (z.flatten(1) - 0.6 * m).T)).T
    torch.testing.assert_close(prior.predict(z, t).clean.flatten(1), clean)


def test_power_law_has_the_stated_std():
    for size in ((3, 32, 32), (3, 33, 40), (1, 16, 17)):
        c = PowerLaw(std=0.4)
        delta = torch.zeros(1, *size, dtype=torch.float64)
        variance = 0.0
        for channel in range(size[0]):
            delta.zero_()[0, channel, 0, 0] = 1
            variance += c.apply_function(lambda v: v, delta)[0, channel, 0, 0] / size[0]
        assert variance == pytest.approx(0.16, rel=0.02)


def test_mixture_predict_against_quadrature():
    """One pixel, two components: E[x0 | z] by numerical integration."""
    weights, means = torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.0, 2.0]).double().reshape(2, 1, 1, 1)
    prior = GaussianMixture(weights, means, torch.tensor([0.2, 0.5]).double().reshape(2, 1, 1))
    x = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    density = sum(
        w / v**0.5 * torch.exp(-((x - m) ** 2) / (2 * v))
        for w, m, v in zip([0.3, 0.7], [-1.0, 2.0], [0.2, 0.5], strict=True)
    )
    for t, z in ((0.3, 0.5), (0.7, -0.4)):
        posterior = density * torch.exp(-((z - (1 - t) * x) ** 2) / (2 * t**2))
        expected = (posterior * x).sum() / posterior.sum()
        got = prior.predict(torch.full((1, 1, 1, 1), z).double(), torch.tensor(t).double()).clean
        assert float(got) == pytest.approx(float(expected), rel=1e-6)


OPERATORS = [("inpaint-random", {"fraction": 0.5}), ("downsample", {"factor": 2}), ("blur-uniform", {"size": 3})]


@pytest.mark.parametrize(("row", "fields"), OPERATORS)
@pytest.mark.parametrize("name", ["full", "diagonal", "stationary", "power-law"])
def test_gaussian_posterior(name, row, fields):
    """Mean and covariance in information form, which shares no formula with the code; CG agrees."""
    prior, operator, sigma = EXACT[name](None), build_operator(row, SHAPE, **fields), 0.3
    a = dense_matrix(operator)
    y = operator(torch.randn(1, *SHAPE, dtype=torch.float64)) + 0.1
    posterior = prior.posterior(operator, sigma, y)
    c = prior.covariance.apply_function(lambda v: v, torch.eye(SIZE).double().reshape(-1, *SHAPE)).flatten(1)
    m = prior.mean.double().expand(SHAPE).flatten()
    expected = torch.linalg.inv(torch.linalg.inv(c) + a.T @ a / sigma**2)
    mean = expected @ (torch.linalg.solve(c, m) + a.T @ y.flatten() / sigma**2)
    got = posterior.covariance.apply_function(lambda v: v, torch.eye(SIZE).double().reshape(-1, *SHAPE)).flatten(1)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(posterior.mean.flatten(), mean, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(prior.posterior_mean(operator, sigma, y).flatten(), mean, rtol=1e-6, atol=1e-7)


def test_gaussian_posterior_samples_have_its_moments():
    prior, operator, sigma, n = EXACT["full"](None), build_operator("downsample", SHAPE, factor=2), 0.3, 4000
    y = operator(torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x = prior.posterior_sample(operator, sigma, y.expand(n, -1, -1, -1), ImageRng(range(n))).flatten(1)
    posterior = prior.posterior(operator, sigma, y)
    c = posterior.covariance.apply_function(lambda v: v, torch.eye(SIZE).double().reshape(-1, *SHAPE)).flatten(1)
    z_scores = (x.mean(dim=0) - posterior.mean.flatten()) / (c.diag() / n).sqrt()
    assert z_scores.abs().max() < 4.5
    assert (x.T.cov() - c).norm() / c.norm() < 0.1


@pytest.mark.parametrize("shared", [False, True])
def test_mixture_posterior_by_bayes_rule(shared):
    """log posterior - log prior - log likelihood is one constant."""
    prior, operator, sigma = gmm(shared=shared), build_operator("downsample", SHAPE, factor=2), 0.5
    y = operator(torch.randn(1, *SHAPE, dtype=torch.float64))
    posterior = prior.posterior(operator, sigma, y)

    def log_density(mixture, x):
        components = torch.distributions.MultivariateNormal(mixture.means.flatten(1), mixture.covariances)
        return torch.logsumexp(mixture.weights.log() + components.log_prob(x.flatten()), dim=0)

    constants = []
    for _ in range(5):
        x = torch.randn(1, *SHAPE, dtype=torch.float64)
        likelihood = -(y - operator(x)).square().sum() / (2 * sigma**2)
        constants.append(log_density(posterior, x) - log_density(prior, x) - likelihood)
    assert float(torch.stack(constants).std()) < 1e-8


def test_mixture_samples():
    prior = gmm()
    x = prior.sample(20000, torch.Generator().manual_seed(0)).flatten(1)
    expected = (prior.weights[:, None] * prior.means.flatten(1)).sum(dim=0)
    assert (x.mean(dim=0) - expected).abs().max() < 0.1


@pytest.mark.parametrize("inner", SCHEDULES)
@pytest.mark.parametrize("outer", SCHEDULES)
def test_rescheduled_keeps_the_endpoints(inner, outer):
    """E[x0 | z] depends on sigma/alpha only, so the same prior built on the other schedule must agree."""
    viewed = Rescheduled(EXACT["full"](SCHEDULES[inner]), SCHEDULES[outer])
    native = EXACT["full"](SCHEDULES[outer])
    z = torch.randn(2, *SHAPE, dtype=torch.float64)
    for t in (0.05, 0.3, 0.6):
        t = torch.tensor(t, dtype=torch.float64)
        limit = SCHEDULES[inner].ratio(torch.tensor(0.999).double())
        if SCHEDULES[outer].ratio(t) < limit:
            for got, expected in zip(viewed.predict(z, t), native.predict(z, t), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert all(end.isfinite().all() for end in viewed.predict(z, torch.tensor(1.0).double()))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedule_time_inverts_ratio(schedule):
    t = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.ratio(t)), t, rtol=0, atol=1e-9)
    assert (schedule.ratio(t).diff() > 0).all()


def test_discrete_vp_equals_diffusers():
    for name, betas, start, end in (
        ("linear", linear_betas, 1e-4, 0.02),
        ("scaled_linear", scaled_linear_betas, 0.00085, 0.012),
    ):
        reference = DDPMScheduler(1000, beta_start=start, beta_end=end, beta_schedule=name).alphas_cumprod.double()
        alpha, sigma = DiscreteVP(betas())((torch.arange(1000).double() + 1) / 1000)
        torch.testing.assert_close(alpha**2, reference, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000).double())


def test_guided_is_linear_and_metered_counts():
    low, high = GaussianPrior(Full(spd()), 0.0), GaussianPrior(Full(spd()), 1.0)
    z, t = torch.randn(2, *SHAPE, dtype=torch.float64), torch.tensor(0.5).double()
    torch.testing.assert_close(Guided(high, low, 1.0).predict(z, t).clean, high.predict(z, t).clean)
    torch.testing.assert_close(Guided(high, low, 0.0).predict(z, t).noise, low.predict(z, t).noise)
    twice = Guided(high, low, 2.0).predict(z, t)
    torch.testing.assert_close(twice.clean, 2 * high.predict(z, t).clean - low.predict(z, t).clean)
    metered = Metered(high)
    leaf = z.clone().requires_grad_(True)
    metered.predict(leaf, t).clean.sum().backward()
    metered.decode(metered.encode(z))
    guided = Metered(Guided(high, low, 2.0))
    guided.predict(z, t)
    assert guided.counts["network"] == 4  # two networks
    ends = metered.predict(leaf, t)
    (ends.clean + ends.noise).sum().backward()
    metered.counts["network"] -= 2
    metered.counts["network_vjp"] -= 2  # both ends, one gradient
    assert metered.counts == {"network": 2, "network_vjp": 2, "encode": 2, "decode": 2, "decode_vjp": 0}


def test_grey_prior_is_exact_for_a_colour_gaussian():
    """Grey pictures under a colour prior: same answer as the Gaussian of the brightness axis."""
    colour = GaussianPrior(PowerLaw(std=0.5))
    pixels = torch.eye(42).double().reshape(42, 1, 6, 7)
    response = colour.covariance.apply_function(lambda v: v, pixels.expand(-1, 3, -1, -1))  # C (e, e, e)
    exact = GaussianPrior(Full(response.mean(dim=1).flatten(1) / 3))  # covariance of the mean of the channels
    grey = GreyPrior(colour)
    for t in (0.1, 0.5, 0.9, 1.0):
        t, z = torch.tensor(t).double(), torch.randn(2, 1, 6, 7, dtype=torch.float64)
        torch.testing.assert_close(grey.at(t, *grey.predict(z, t)), z)
        torch.testing.assert_close(grey.predict(z, t).clean, exact.predict(z, t).clean)


def tiny_networks(folder):
    """Every kind of pixel pipeline folder, saved by diffusers' own code."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1, norm_num_groups=4, in_channels=3, out_channels=3, add_attention=False,
    )  # fmt: skip
    ours = ResidualUNet(widths=(8, 12), blocks=(1, 1))
    torch.nn.init.normal_(ours.conv_out.weight, std=0.1)
    stable = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    kinds = {
        "velocity": (ours, FlowMatchEulerDiscreteScheduler()),
        "unet-velocity": (unet, FlowMatchEulerDiscreteScheduler()),
        "epsilon": (unet, DDPMScheduler()),
        "sample": (unet, DDPMScheduler(prediction_type="sample")),
        "v_prediction": (unet, DDPMScheduler(prediction_type="v_prediction", **stable)),
    }
    for name, (network, scheduler) in kinds.items():
        network.save_pretrained(folder / name / "unet")
        scheduler.save_pretrained(folder / name / "scheduler")
    return {name: folder / name for name in kinds}


def test_pixel_prior_from_folders(tmp_path):
    for name, folder in tiny_networks(tmp_path).items():
        prior = load_prior(str(folder))
        z = torch.randn(2, 3, 13, 10)
        for t in (0.02, 0.5, 0.98):
            t = torch.tensor(t)
            ends = prior.predict(z, t)
            torch.testing.assert_close(prior.at(t, *ends), z, rtol=1e-3, atol=1e-3, msg=f"{name} at {t}")
            assert ends.clean.dtype == z.dtype
        batch, t = prior.predict(z, torch.tensor(0.5)), torch.tensor(0.5)
        torch.testing.assert_close(batch.clean[:1], prior.predict(z[:1], t).clean, rtol=1e-4, atol=1e-4)
        half = load_pixel_prior(folder, torch.bfloat16).predict(z, t).clean
        assert half.dtype == torch.float32
        assert (half - batch.clean).abs().mean() < 0.05


def test_learned_variance_is_dropped(tmp_path):
    unet = UNet2DModel(
        block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1, norm_num_groups=4, in_channels=3, out_channels=6, add_attention=False,
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    assert load_prior(str(tmp_path)).predict(torch.randn(1, 3, 8, 8), torch.tensor(0.5)).noise.shape == (1, 3, 8, 8)


def test_bad_folders_say_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"scheduler_config\.json is missing"):
        load_prior(str(tmp_path))
    with pytest.raises(ValueError, match="Unknown prior 'nature'"):
        load_prior("nature")
    folder = tiny_networks(tmp_path)["epsilon"]
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "_class_name": "os.system"}))
    with pytest.raises(ValueError, match="known pixel networks"):
        load_prior(str(folder))


def test_residual_unet_is_preconditioned_as_written():
    """Velocity against the EDM form D = c_skip y + c_out F(c_in y) of the same network."""
    torch.manual_seed(0)
    network = ResidualUNet(widths=(8, 12), blocks=(1, 1)).double()
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    x_t, t, d = torch.randn(2, 3, 8, 8).double(), 0.3, 0.5
    sigma = t / (1 - t)
    y = x_t / (1 - t)
    f = network.residual(y / (sigma**2 + d**2) ** 0.5, torch.full((2,), math.log(sigma)).double())
    clean = d**2 / (sigma**2 + d**2) * y + sigma * d / (sigma**2 + d**2) ** 0.5 * f
    torch.testing.assert_close(network(x_t, 1000 * t).sample, (x_t - clean) / t, rtol=1e-6, atol=1e-6)
