"""Real checkpoints of the model hub: for someone with an accelerator, a network and the licences.

    pytest -m gpu tests/test_hub_real.py -k sd1.5

Every card: its sizes, samples with and without a prompt, and FlowDPS on one picture.
"""

import pytest
import torch

from invsolve import GaussianNoise, ImageRng, Problem, build_operator, build_solver, simulate, solve
from invsolve.priors import Prompts, load_cards, load_prior
from invsolve.sample import sample_prior
from invsolve.times import make_times

CARDS = load_cards()
PROMPT = "a photograph of an astronaut riding a horse"
pytestmark = [pytest.mark.slow, pytest.mark.gpu]


def on_device(name, **fields):
    if not torch.cuda.is_available():
        pytest.skip("needs an accelerator")
    return load_prior(name, torch.bfloat16, memory="auto", device=torch.device("cuda"), **fields)


def sample(prior, card, seed=0):
    times = make_times("shifted" if card.schedule == "flow" else "vp", 28, prior.schedule)
    shape = (3, card.size, card.size)
    z = sample_prior(prior.sized(shape), shape, ImageRng([seed]), times, device="cuda")
    return prior.sized(shape).decode(z).float().cpu()


@pytest.mark.parametrize("name", CARDS)
def test_the_checkpoint_is_what_the_card_says(name):
    card, prior = CARDS[name], on_device(name)
    parameters = sum(p.numel() for part, p in prior.named_parameters() if "autoencoder" not in part)
    assert parameters == pytest.approx(card.parameters.network, rel=0.01) or prior.placed  # few bits are packed
    if card.latent_channels is not None:
        assert (prior.factor, prior.latent_channels) == (card.factor, card.latent_channels)
        x = torch.rand(1, 3, 256, 256, device="cuda") * 0.5 - 0.25
        smooth = torch.nn.functional.interpolate(x[..., ::32, ::32], scale_factor=32, mode="bicubic")
        error = (prior.decode(prior.encode(smooth)) - smooth).square().mean().sqrt()
        assert error < 0.1, "the autoencoder does not give a smooth picture back: wrong scale or shift?"


@pytest.mark.parametrize("prompt", ["", PROMPT], ids=["unguided", "with a prompt"])
@pytest.mark.parametrize("name", CARDS)
def test_samples_look_like_pictures(name, prompt):
    """Of natural pictures neighbours are alike, and values fill the range without piling up at its ends."""
    card = CARDS[name]
    if prompt and not card.parameters.text:
        pytest.skip("takes no prompt")
    x = sample(on_device(name, prompts=Prompts(texts=(prompt,), device=torch.device("cuda"))), card)
    assert x.isfinite().all() and 0.1 < x.std() < 1.0
    flat = x.clamp(-1, 1)
    neighbours = torch.corrcoef(torch.stack([flat[..., 1:].flatten(), flat[..., :-1].flatten()]))[0, 1]
    assert neighbours > 0.8
    assert (x.abs() > 1.2).float().mean() < 0.05


@pytest.mark.parametrize("name", CARDS)
def test_flowdps_restores_a_picture(name):
    from skimage import data

    card, prior = CARDS[name], on_device(name)
    picture = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 127.5 - 1
    x = torch.nn.functional.interpolate(picture, size=(card.size, card.size), mode="area").cuda()
    operator, noise = build_operator("downsample", (3, card.size, card.size), factor=8).to("cuda"), GaussianNoise(0.03)
    problem = Problem(operator, noise, simulate(operator, noise, x, ImageRng([0])))
    result = solve(problem, prior, build_solver("flowdps"), steps=28)
    assert result.ok
    blocks = torch.nn.functional.interpolate(problem.y, scale_factor=8)
    assert (result.images - x).square().mean() < 1.1 * (blocks - x).square().mean()
