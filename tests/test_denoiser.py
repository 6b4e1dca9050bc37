"""Denoisers as priors, and the preconditioning of EDM."""

import pytest
import torch
from diffusers import EDMEulerScheduler, UNet2DModel
from hub import edm

from invsolve import GaussianNoise, ImageRng, Problem, build_operator, build_solver, simulate, solve
from invsolve.priors import DenoiserPrior, GaussianPrior, PowerLaw, load_folder
from invsolve.sample import follow_flow


def exact(x, sigma):
    """The posterior mean of a Gaussian prior, in the units of pictures in [0, 1]."""
    prior, ratio = GaussianPrior(PowerLaw()), 2 * sigma  # in [-1, 1] units
    alpha = 1 / (1 + ratio)  # of the flow at this ratio
    z = (2 * x - 1) * alpha[:, None, None, None]
    return (prior.predict(z, ratio * alpha).clean + 1) / 2


def test_an_exact_denoiser_is_the_exact_prior():
    prior = DenoiserPrior(exact, sigma_max=40.0, image_range=(0, 1))
    gaussian = GaussianPrior(PowerLaw())
    z = torch.randn(2, 3, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0.001, 0.1, 0.5, 1.0):
        t = torch.tensor(t, dtype=torch.float64)
        ends = prior.predict(z, t)
        torch.testing.assert_close(prior.at(t, *ends), z, rtol=1e-10, atol=1e-10)
        flow_t = 40 * t / (1 + 40 * t)
        torch.testing.assert_close(ends.clean, gaussian.predict(z * (1 - flow_t), flow_t).clean, rtol=1e-8, atol=1e-8)


def test_a_denoiser_restores():
    prior = DenoiserPrior(exact, sigma_max=40.0, image_range=(0, 1))
    operator, noise = build_operator("blur", (3, 16, 16), sigma=1.0, boundary="circular"), GaussianNoise(0.05)
    x = GaussianPrior(PowerLaw()).sample((3, 16, 16), ImageRng([0]), torch.float64)
    problem = Problem(operator, noise, simulate(operator, noise, x, ImageRng([1])))
    for spec in ("diffpir", "pigdm"):
        result = solve(problem, prior, build_solver(spec), steps=20, samples=8)
        assert result.ok
        assert (result.mean - x).square().mean() < 0.8 * (problem.y - x).square().mean(), spec


def test_denoisers_of_some_sizes_are_given_those():
    shapes = []
    prior = DenoiserPrior(lambda x, _: (shapes.append(x.shape[-2:]), x / 2)[1], sigma_max=1.0, size_multiple=8)
    z, t = torch.randn(2, 3, 13, 9), torch.tensor(0.5)
    torch.testing.assert_close(prior.predict(z, t).clean, z / 2)
    assert shapes == [(16, 16)]


def test_below_its_lowest_level_a_denoiser_is_asked_at_it():
    levels = []
    prior = DenoiserPrior(lambda x, sigma: (levels.append(sigma), x)[1], sigma_max=1.0, sigma_min=0.1)
    ends = prior.predict(torch.ones(2, 3, 4, 4), torch.tensor(0.0))
    torch.testing.assert_close(levels[0], torch.full((2,), 0.1))
    assert ends.noise.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sigma_max": 0.001}, "0 < sigma_min < sigma_max, got 0.002 and 0.001"),
        ({"sigma_max": 1.0, "sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        ({"sigma_max": 1.0, "image_range": (1, 0)}, "must be \\(lowest, highest\\)"),
    ],
)
def test_bad_denoisers_are_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        DenoiserPrior(exact, **fields)


def test_deepinv_denoisers_fit():
    models = pytest.importorskip("deepinv.models")
    prior = DenoiserPrior(models.DRUNet(pretrained=None), sigma_max=0.5, image_range=(0, 1))
    z, t = torch.randn(2, 3, 16, 16), torch.tensor(0.5)
    ends = prior.predict(z, t)
    torch.testing.assert_close(prior.at(t, *ends), z, rtol=1e-4, atol=1e-4)
    ours = 2 * prior.denoiser((z + 1) / 2, torch.full((2,), 0.125)) - 1
    torch.testing.assert_close(ends.clean, ours, rtol=1e-4, atol=1e-4)


def test_edm_networks_are_preconditioned_as_diffusers_does(tmp_path):
    edm(tmp_path)
    network, scheduler = UNet2DModel.from_pretrained(tmp_path).eval(), EDMEulerScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(5)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    start = x.clone()
    with torch.no_grad():
        for t in scheduler.timesteps:
            out = network(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(out, t, x).prev_sample
        prior = load_folder(tmp_path)
        times = scheduler.sigmas / prior.schedule.sigma_max
        ours = follow_flow(prior, start, times)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)
