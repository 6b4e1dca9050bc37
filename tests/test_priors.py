"""Priors: the path identity, closed forms against brute force, wrappers, and loading through diffusers' own classes."""

import json
import math

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel

from invsolve import PoissonNoise
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
    LinearDecoder,
    LinearFlow,
    Metered,
    PowerLaw,
    Rescheduled,
    Stationary,
    TiledPrior,
    as_grey,
    load_prior,
)
from invsolve.priors.base import Wrapper
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


DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("of_t", DTYPES, ids=str)
@pytest.mark.parametrize("of_z", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*EXACT, "rescheduled", "grey", "natural", "natural-grey"])
def test_the_dtype_is_that_of_z(name, of_z, of_t):
    """Whatever that of t, one for all or one per image; and the path identity to the precision of z."""
    priors = {
        "rescheduled": lambda _: Rescheduled(EXACT["power-law"](VE(40.0)), LinearFlow()),
        "grey": lambda _: GreyPrior(EXACT["power-law"](None)),
        "natural": lambda _: load_prior("natural"),
        "natural-grey": lambda _: GreyPrior(load_prior("natural")),
        **EXACT,
    }
    prior = priors[name](None)
    z = torch.randn(2, 1 if "grey" in name else 3, *SHAPE[1:], generator=torch.Generator().manual_seed(2)).to(of_z)
    precision = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.05}[of_z]
    for t in (torch.tensor(0.3, dtype=of_t), torch.tensor([0.3, 0.6], dtype=of_t)):
        ends = prior.predict(z, t)
        back = prior.at(t, *ends)
        assert ends.clean.dtype == ends.noise.dtype == back.dtype == of_z
        if of_t != torch.bfloat16 or of_z == torch.bfloat16:
            torch.testing.assert_close(back, z, rtol=precision, atol=precision)


@pytest.mark.parametrize("name", ["stationary", "power-law"])
def test_half_precision_agrees(name):
    prior, t = EXACT[name](None), torch.tensor(0.4)
    z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    for half in (torch.bfloat16, torch.float16):
        got, expected = prior.predict(z.to(half), t.to(half)).clean.float(), prior.predict(z, t).clean
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


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


OPERATORS = [
    ("inpaint-random", {"fraction": 0.5}),
    ("downsample", {"factor": 2}),
    ("blur-uniform", {"size": 3}),
    ("blur-motion", {"length": 3.0, "boundary": "zero"}),
    ("blur", {"sigma": 0.7, "boundary": "reflect"}),
]


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


@pytest.mark.parametrize("sigma", [1e-8, 1e-4])
def test_posterior_of_nearly_noiseless_data(sigma):
    """y = x + sigma n: the variance is sigma^2, which a difference of covariances near 1 would lose to rounding."""
    operator, y = build_operator("identity", SHAPE), torch.randn(1, *SHAPE, dtype=torch.float64)
    for posterior in (EXACT["full"](None).posterior(operator, sigma, y), gmm().posterior(operator, sigma, y)):
        values = posterior.covariance.values if isinstance(posterior, GaussianPrior) else posterior.values
        torch.testing.assert_close(values, torch.full_like(values, sigma**2), rtol=1e-4, atol=0)


def test_posteriors_refuse_what_has_no_closed_form():
    identity, jpeg = build_operator("identity", SHAPE), build_operator("jpeg", SHAPE, quality=10)
    y = torch.zeros(2, *SHAPE, dtype=torch.float64)
    for prior in (EXACT["full"](None), gmm(), gmm(shared=True)):
        with pytest.raises(ValueError, match="needs a linear operator, got JPEG; use a solver instead"):
            prior.posterior(jpeg, 0.1, y[:1])
        for sigma in (PoissonNoise(50.0), "0.1", -0.1, math.nan, torch.ones(2)):
            with pytest.raises(ValueError, match="needs Gaussian noise, sigma being its standard deviation, got"):
                prior.posterior(identity, sigma, y[:1])
        with pytest.raises(ValueError, match=r"that of 1 measurement, got a batch of 2; call it for each row"):
            prior.posterior(identity, 0.1, y)
        with pytest.raises(ValueError, match=r"a measurement \(B, 3, 4, 5\), got \(3, 4, 5\)"):
            prior.posterior(identity, 0.1, y[0])
        assert prior.posterior(identity, torch.tensor(0.1), y[:1]).predict(y, torch.tensor(0.5)).clean.shape == y.shape
    prior, rng = EXACT["full"](None), ImageRng(range(2))
    with pytest.raises(ValueError, match="needs a linear operator, got JPEG"):
        prior.posterior_mean(jpeg, 0.1, y)
    with pytest.raises(ValueError, match="needs a linear operator, got JPEG"):
        prior.posterior_sample(jpeg, 0.1, y, rng)
    assert prior.posterior_mean(identity, 0.1, y).shape == prior.posterior_sample(identity, 0.1, y, rng).shape


ONES, EYE = torch.ones(2, 1, 1, 2).double(), torch.eye(2).double()
SKEW, INDEFINITE = torch.tensor([[1.0, 0.3], [0.1, 1.0]]).double(), torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double()
BAD_PRIORS = [
    (lambda: GaussianMixture(torch.tensor([-1.0, 2.0]), ONES, EYE[None]), r"not negative.* got \[-1.0, 2.0\]"),
    (lambda: GaussianMixture(torch.zeros(2), ONES, EYE[None]), "with a positive sum"),
    (lambda: GaussianMixture(torch.tensor([1.0, math.nan]), ONES, EYE[None]), "not negative"),
    (lambda: GaussianMixture(torch.ones(3), ONES, EYE[None]), r"got \(3,\), \(2, 1, 1, 2\) and \(1, 2, 2\)"),
    (lambda: GaussianMixture(torch.ones(2), ONES, EYE), r"and \(2, 2\); give all three"),
    (lambda: GaussianMixture(torch.ones(2), ONES, torch.stack([EYE, SKEW])), "differs from its transpose by 0.2"),
    (lambda: GaussianMixture(torch.ones(2), ONES, torch.stack([EYE, INDEFINITE])), "this one has -1; add"),
    (lambda: Full(SKEW), "A covariance is symmetric, this one differs from its transpose by 0.2; check it"),
    (lambda: Full(INDEFINITE), "no negative eigenvalues, this one has -1; add at least"),
    (lambda: Full(-EYE), "no negative eigenvalues"),
    (lambda: Full(torch.ones(2, 3)), r"finite square matrix \(d, d\), got \(2, 3\)"),
    (lambda: Full(EYE * math.nan), "finite square matrix"),
]


@pytest.mark.parametrize(("build", "sentence"), BAD_PRIORS)
def test_bad_exact_priors_give_the_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


def test_covariances_may_miss_by_rounding():
    a = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    values = Full(a @ a.T).values  # of rank 3: nine eigenvalues of either sign, about 1e-7
    assert (values >= 0).all() and (values > 1e-3).sum() == 3
    assert (Full(torch.zeros(2, 2)).values == 0).all()


def test_gaussian_posterior_samples_have_its_moments():
    prior, operator, sigma, n = EXACT["full"](None), build_operator("downsample", SHAPE, factor=2), 0.3, 4000
    y = operator(torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    x = prior.posterior_sample(operator, sigma, y.expand(n, -1, -1, -1), ImageRng(range(n))).flatten(1)
    posterior = prior.posterior(operator, sigma, y)
    c = posterior.covariance.apply_function(lambda v: v, torch.eye(SIZE).double().reshape(-1, *SHAPE)).flatten(1)
    z_scores = (x.mean(dim=0) - posterior.mean.flatten()) / (c.diag() / n).sqrt()
    assert z_scores.abs().max() < 4.5
    assert (x.T.cov() - c).norm() / c.norm() < 0.1


@pytest.mark.parametrize("schedule", [None, VE(80.0)], ids=["flow", "ve"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_of_flat_components_at_the_ends_of_the_path(schedule, dtype):
    """Covariances without full rank: at t = 0 a point of a component is itself, however far the others are."""
    g = torch.Generator().manual_seed(0)
    roots = torch.randn(3, 12, 2, generator=g, dtype=dtype)
    means = 5 * torch.randn(3, 3, 2, 2, generator=g, dtype=dtype)
    prior = GaussianMixture(torch.ones(3, dtype=dtype), means, roots @ roots.mT, schedule)
    z = means + (roots @ torch.randn(3, 2, 1, generator=g, dtype=dtype)).reshape(means.shape)
    for t in (torch.tensor(0.0, dtype=dtype), torch.zeros(3, dtype=dtype)):
        ends = prior.predict(z, t)
        torch.testing.assert_close(ends.clean, z, rtol=1e-4, atol=1e-4)
        assert ends.noise.isfinite().all()
    many = prior.predict(z, torch.tensor(1.0, dtype=dtype))
    assert all(end.isfinite().all() for end in many)


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


class Halved(Wrapper):
    """Latents that are pictures twice as bright, around a pixel prior, as an autoencoder is."""

    def around(self, prior):
        return Halved(prior)

    def predict(self, z, t):
        return self.prior.predict(z, t)

    def decode(self, z):
        return z / 2


@pytest.mark.parametrize(
    "wrap",
    [
        Metered,
        as_grey,
        lambda p: Rescheduled(p, VE()),
        lambda p: Guided(p, p, 2.0),
        lambda p: TiledPrior(p, size=8, overlap=2),
    ],
)
def test_wrappers_know_whether_there_is_a_decoder(wrap):
    pixels = GaussianPrior(PowerLaw())
    latents = LinearDecoder(pixels, torch.eye(12, 8).double(), (3, 2, 2), (2, 2, 2))
    assert not pixels.has_decoder
    assert not wrap(pixels).has_decoder
    assert latents.has_decoder
    assert wrap(latents).has_decoder
    assert wrap(wrap(latents)).has_decoder
    assert wrap(Halved(pixels)).has_decoder


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
        half = load_prior(folder, torch.bfloat16).predict(z, t).clean
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
    with pytest.raises(ValueError, match="known networks"):
        load_prior(str(folder))


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGE = {
    "other widths": (
        lambda f: rewrite(f / "unet" / "config.json", widths=[8, 16]),
        r"does not hold the weights of the ResidualUNet that its config.json describes \(.*expected shape.*\); save or",
    ),
    "other class": (
        lambda f: rewrite(f / "unet" / "config.json", _class_name="UNet2DModel"),
        r"does not hold the weights of the UNet2DModel that its config.json describes",
    ),
    "fewer blocks": (
        lambda f: rewrite(f / "unet" / "config.json", blocks=[1, 0]),
        r"config.json describes \(\d+ tensors are missing or too many, such as middle\.",
    ),
    "more blocks": (
        lambda f: rewrite(f / "unet" / "config.json", blocks=[1, 2]),
        r"config.json describes \(\d+ tensors are missing or too many, such as middle\.",
    ),
    "bad type": (lambda f: rewrite(f / "unet" / "config.json", widths="wide"), "that its config.json describes"),
    "list as config": (
        lambda f: (f / "unet" / "config.json").write_text("[1, 2]"),
        r"unet/config.json in .* is damaged \(it holds a list where names and values are expected\); save or download",
    ),
    "list as scheduler": (
        lambda f: (f / "scheduler" / "scheduler_config.json").write_text("[]"),
        r"scheduler/scheduler_config.json in .* is damaged \(it holds a list",
    ),
    "no json": (lambda f: (f / "unet" / "config.json").write_text("{"), r"unet/config.json in .* is damaged"),
    "no weights": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
        r"config.json describes \(Error no file named diffusion_pytorch_model.safetensors .*\); save or download",
    ),
    "cut weights": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(
            (f / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()[:5000]
        ),
        r"that its config.json describes \(.*\); save or download the prior again",
    ),
    **{
        f"{key} = {value}": (
            lambda f, key=key, value=value: (
                DDPMScheduler().save_pretrained(f / "scheduler"),
                rewrite(f / "scheduler" / "scheduler_config.json", **{key: value}),
            ),
            rf"has .*{key} {value!r}.*; expected are a whole number of at least 1 and two between 0 and 1",
        )
        for key, value in [
            ("num_train_timesteps", 0),
            ("num_train_timesteps", -3),
            ("num_train_timesteps", "many"),
            ("beta_start", -0.1),
            ("beta_end", 2.0),
        ]
    },
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_folders_give_one_sentence(damage, sentence, tmp_path, capfd, caplog):
    folder = tiny_networks(tmp_path)["velocity"]
    damage(folder)
    for dtype in ("bfloat16", "float32"):
        with pytest.raises(ValueError, match=sentence) as raised:
            load_prior(folder, dtype)
        assert torch.get_default_dtype() == torch.float32
    text = str(raised.value)
    assert "\n" not in text and len(text) < 700
    assert "".join(capfd.readouterr()) == "" and caplog.text == ""


def test_damaged_autoencoder_gives_one_sentence(tmp_path, capfd):
    folder = tiny_networks(tmp_path)["velocity"]
    (folder / "vae").mkdir()
    with pytest.raises(ValueError, match=r"vae/config\.json is missing"):
        load_prior(folder)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(folder / "vae")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"does not hold the weights of the AutoencoderKL that its config\.json"):
        load_prior(folder)
    assert "".join(capfd.readouterr()) == ""


def test_a_path_names_a_prior(tmp_path):
    folder = tiny_networks(tmp_path)["velocity"]
    z, t = torch.randn(1, 3, 8, 8), torch.tensor(0.5)
    assert torch.equal(load_prior(folder).predict(z, t).clean, load_prior(str(folder)).predict(z, t).clean)
    with pytest.raises(ValueError, match=r"Unknown prior '.*nowhere'; choose one of natural"):
        load_prior(tmp_path / "nowhere")


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


def test_a_prior_seen_another_way_keeps_what_is_known_of_it():
    """Sized, grey or under another schedule: name, memory mode and calibration stay."""
    prior = load_prior("natural-latent", "float32")
    prior.memory_mode, prior.calibration = "low", torch.ones(100)
    views = [prior.sized((3, 48, 40)), as_grey(prior), as_grey(prior).sized((1, 48, 40)), Rescheduled(prior, VE())]
    for view in [*views, Metered(prior), Metered(views[2])]:
        assert (view.name, view.memory_mode) == ("natural-latent", "low")
        assert view.calibration is prior.calibration
        assert view.has_decoder and view.latent_shape((3, 48, 40)) == prior.latent_shape((3, 48, 40))
