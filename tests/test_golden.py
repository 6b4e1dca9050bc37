"""Every sampler against a recorded run of its published implementation (float64, same draws, 1e-8)."""

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from toys import IsotropicPrior, ReplayRng, ToyLatentPrior

from invsolve.operators import build_operator
from invsolve.priors.schedule import DiscreteVP, linear_betas
from invsolve.problem import NoNoise, Problem
from invsolve.solvers import DPS, FlowDPS, REDDiff
from invsolve.times import flowdps_times

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
    solver = FlowDPS(step_size=0.5, inner_steps=3, data_term="pinv_norm")
    rng = ReplayRng(trace["noise"])
    z = trace["z_init"]
    for k, (t, s) in enumerate(pairwise(times)):
        torch.testing.assert_close(z, trace["z"][k], **TOLERANCE)
        z = solver.step(z, t, s, problem, prior, rng)
    torch.testing.assert_close(prior.decode(z), trace["image"], **TOLERANCE)


def test_reddiff():
    trace, prior, problem, times = pixel_toy("reddiff_avgpool2")
    solver = REDDiff(lr=0.1, weight=0.25, weighting="s_over_a")
    rng = ReplayRng(trace["noise"][1::2])  # the other half is multiplied by sigma_x0 = 0
    state = solver.init(times[0], problem, prior, rng)
    for k, (t, s) in enumerate(pairwise(times)):
        state = solver.step(state, t, s, problem, prior, rng)
        torch.testing.assert_close(solver.estimate(state), trace["trajectory"][k], **TOLERANCE)


def test_dps():
    trace, prior, problem, times = pixel_toy("dps_avgpool2")
    solver = DPS(step_size=2.0, eta=1.0)
    rng = ReplayRng(trace["noise"][1:])
    z = trace["trajectory"][0]
    for k, (t, s) in enumerate(pairwise(times)):
        z = solver.step(z, t, s, problem, prior, rng)
        torch.testing.assert_close(z, trace["trajectory"][k + 1], **TOLERANCE)
