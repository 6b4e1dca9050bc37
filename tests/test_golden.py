"""Every sampler against a recorded run of its published implementation (float64, same draws, 1e-8)."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import IsotropicPrior, ReplayRng, ToyLatentPrior

from invsolve.noise import NoNoise
from invsolve.operators import build_operator
from invsolve.priors.schedule import DiscreteVP, linear_betas
from invsolve.problem import Problem
from invsolve.solvers import DPS, FlowDPS, PiGDM, REDDiff
from invsolve.solvers.flair import FLAIR, State
from invsolve.solvers.flowchef import FlowChef
from invsolve.solvers.psld import PSLD
from invsolve.times import flair_times, flowdps_times

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"rtol": 0, "atol": 1e-8}


def pixel_toy(name):
    """The recorded pixel problem: its tensors, prior, problem and times from t to s."""
    trace = load_file(GOLDEN / f"{name}.safetensors")
    schedule = DiscreteVP(linear_betas())
    abar = schedule.log_abar[1:].exp()
    torch.testing.assert_close(abar, trace["alphas_cumprod"].double(), rtol=1e-6, atol=1e-9)
    schedule.log_abar = torch.cat([torch.zeros(1).double(), trace["alphas_cumprod"].double().log()])
    prior = IsotropicPrior(trace["mean"], trace["std"], schedule)
    problem = Problem(build_operator("downsample", (3, 8, 8), factor=2), NoNoise(), trace["y"].reshape(1, 3, 4, 4))
    times = torch.cat([(trace["timesteps"].double() + 1) / 1000, torch.zeros(1).double()])
    return trace, prior, problem, times


def test_flowdps():
    trace = load_file(GOLDEN / "flowdps_sr_avgpool.safetensors")
    prior = ToyLatentPrior(trace["mean"], trace["std"], trace["W"])
    operator = build_operator("downsample", (3, 16, 16), factor=4)
    problem = Problem(operator, NoNoise(), trace["y"].reshape(1, 3, 4, 4))
    times = flowdps_times(6)
    torch.testing.assert_close(times[:-1], trace["sigmas"].double(), rtol=0, atol=1e-6)
    times = torch.cat([trace["sigmas"].double(), torch.zeros(1).double()])
    solver = FlowDPS.official(step_size=0.5)
    rng = ReplayRng(trace["noise"])
    z = trace["z_init"]
    for k, (t, s) in enumerate(pairwise(times)):
        torch.testing.assert_close(z, trace["z"][k], **TOLERANCE)
        z = solver.step(z, t, s, problem, prior, rng)
    torch.testing.assert_close(prior.decode(z), trace["image"], **TOLERANCE)


def test_reddiff():
    trace, prior, problem, times = pixel_toy("reddiff_avgpool2")
    solver = REDDiff.official()
    rng = ReplayRng(trace["noise"][1::2])  # the other half is multiplied by sigma_x0 = 0
    state = solver.init(times[0], problem, prior, rng)
    for k, (t, s) in enumerate(pairwise(times)):
        state = solver.step(state, t, s, problem, prior, rng)
        torch.testing.assert_close(solver.estimate(state), trace["trajectory"][k], **TOLERANCE)


def test_dps():
    trace, prior, problem, times = pixel_toy("dps_avgpool2")
    solver = DPS.official(step_size=2.0, clip=False)
    rng = ReplayRng(trace["noise"][1:])
    z = trace["trajectory"][0]
    for k, (t, s) in enumerate(pairwise(times)):
        z = solver.step(z, t, s, problem, prior, rng)
        torch.testing.assert_close(z, trace["trajectory"][k + 1], **TOLERANCE)


def test_pigdm():
    """Noiseless data are held to a tolerance here, which is zero in the recorded run."""
    trace, prior, problem, times = pixel_toy("pgdm_avgpool2")
    problem = replace(problem, noise=NoNoise(tolerance=1e-9))
    solver, rng = PiGDM.official(), ReplayRng(trace["noise"])
    z = solver.init(times[0], problem, prior, rng)
    torch.testing.assert_close(z, trace["trajectory"][0], **TOLERANCE)
    for k, (t, s) in enumerate(pairwise(times)):
        z = solver.step(z, t, s, problem, prior, rng)
        torch.testing.assert_close(z, trace["trajectory"][k + 1], **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("flowchef", FlowChef.official(step_size=0.5)),
        ("psld", PSLD.official(step_size=0.5, back="pinv")),
    ],
)
def test_flowchef_and_psld(name, solver):
    trace = load_file(GOLDEN / f"{name}_sr_avgpool.safetensors")
    prior = ToyLatentPrior(trace["mean"], trace["std"], trace["W"])
    operator = build_operator("downsample", (3, 16, 16), factor=4)
    problem = Problem(operator, NoNoise(), trace["y"].reshape(1, 3, 4, 4))
    times = torch.cat([trace["sigmas"].double(), torch.zeros(1).double()])
    z = trace["z_init"]
    for k, (t, s) in enumerate(pairwise(times)):
        torch.testing.assert_close(z, trace["z"][k], **TOLERANCE)
        z = solver.step(z, t, s, problem, prior, ReplayRng([]))
    torch.testing.assert_close(prior.decode(z), trace["image"], **TOLERANCE)


def test_flair():
    """The published weights, data steps and stop; a second run without data steps gives the regulariser's own step."""
    trace = load_file(GOLDEN / "flair_inpaint_box_calibrated.safetensors")
    prior = ToyLatentPrior(trace["mean"], trace["std"], trace["W"])
    prior.calibration = trace["calibration_raw"]
    operator = build_operator("inpaint-box", (3, 16, 16), top=4, left=6, height=8, width=8)
    problem = Problem(operator, NoNoise(), trace["y"])
    torch.testing.assert_close(flair_times(6)[:-1], trace["t"], **TOLERANCE)
    solver = FLAIR.official(data_steps=4)
    state = solver.init(trace["t"][0], problem, prior, ReplayRng([trace["start_noise"]]))
    torch.testing.assert_close(state.mu, trace["mu_init"], **TOLERANCE)
    for k, t in enumerate(trace["t"]):
        half = replace(solver, data_steps=0).step(state, t, 0 * t, problem, prior, ReplayRng([trace["noise"][k]]))
        torch.testing.assert_close(half.mu, trace["mu_after_reg"][k], **TOLERANCE)
        state = solver.step(state, t, 0 * t, problem, prior, ReplayRng([trace["noise"][k]]))
        torch.testing.assert_close(state.mu, trace["mu_after_data"][k], **TOLERANCE)
    torch.testing.assert_close(prior.decode(solver.estimate(state)), trace["image"], **TOLERANCE)
    assert isinstance(state, State)
