"""Memory modes: what they mean, which one fits, and that none changes what comes out."""

import importlib.util
import logging

import pytest
import torch
from hub import PIPELINES, build, unet2d

from invsolve import GaussianNoise, ImageRng, Problem, build_operator, build_solver, simulate, solve
from invsolve.priors import VE, Prompts, Rescheduled, as_grey, load_folder
from invsolve.priors.folder import place
from invsolve.priors.memory import KEPT, RECOMPUTED, Memory, plan_memory, stored_parameters

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BILLIONS = {"network": 8_000_000_000, "autoencoder": 84_000_000, "itemsize": 2, "pixels": 1024**2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd3")
    build("sd3", path)
    return path


@pytest.fixture(autouse=True)
def no_quantiser(monkeypatch):
    monkeypatch.setattr("invsolve.priors.memory.find_spec", lambda _: None)


@pytest.mark.parametrize(
    ("free", "mode"), [(80e9, "fast"), (45e9, "balanced"), (24e9, "balanced"), (16e9, "low"), (8e9, "low")]
)
def test_auto_takes_the_first_that_fits_and_says_so(free, mode, caplog):
    caplog.set_level(logging.INFO, "invsolve")
    plan = plan_memory("auto", **BILLIONS, device=GPU, free=int(free))
    assert plan.mode == mode and f"Memory mode {mode}: about " in caplog.text
    assert f"{free / 1e9:.1f} GB free on the device." in caplog.text
    assert plan.offload == (mode == "low")
    assert (plan.tile, plan.checkpoint) == ((None, False) if mode == "fast" else (512, True))


def test_auto_says_when_nothing_fits(caplog):
    caplog.set_level(logging.INFO, "invsolve")
    assert plan_memory("auto", **BILLIONS, device=GPU, free=int(2e9)).mode == "low"
    assert "it may not fit: restore smaller pictures or take a smaller prior." in caplog.text


def test_needs_are_weights_and_the_decoders_gradient():
    fast = 2 * 8e9 + 4 * 84e6 + 1024**2 * KEPT
    balanced = 2 * 8e9 + 4 * 84e6 + 512**2 * RECOMPUTED
    for need, enough, less in ((fast, "fast", "balanced"), (balanced, "balanced", "low")):
        assert plan_memory("auto", **BILLIONS, device=GPU, free=int(need / 0.9) + 9).mode == enough
        assert plan_memory("auto", **BILLIONS, device=GPU, free=int(need / 0.9) - 9).mode == less


@pytest.mark.parametrize(
    ("device", "installed", "bits", "offload"),
    [
        (GPU, (), None, True),
        (GPU, ("torchao",), 8, False),
        (GPU, ("torchao", "bitsandbytes"), 4, False),
        (CPU, (), None, False),
        (CPU, ("bitsandbytes",), None, False),
        (CPU, ("torchao",), 8, False),
    ],
)
def test_low_takes_few_bits_where_they_can_be_had(device, installed, bits, offload, monkeypatch):
    monkeypatch.setattr("invsolve.priors.memory.find_spec", lambda name: name in installed or None)
    plan = plan_memory("low", **BILLIONS, device=device)
    assert (plan.bits, plan.offload) == (bits, offload)


def test_unknown_modes_are_one_sentence(folder):
    with pytest.raises(ValueError, match="Unknown memory mode 'tiny'; choose one of auto, fast, balanced, low"):
        load_folder(folder, memory="tiny")


def test_parameters_are_counted_from_headers(folder):
    prior = load_folder(folder)
    network = prior.prior.prior.backbone.network
    assert stored_parameters(folder / "transformer") == sum(p.numel() for p in network.state_dict().values())
    assert stored_parameters(folder / "vae") == sum(p.numel() for p in prior.autoencoder.state_dict().values())


@pytest.mark.parametrize("mode", ["balanced", "low", "auto"])
@pytest.mark.parametrize("solver", ["flowdps", "psld", "dps"])
def test_modes_give_the_same_pictures(mode, solver, folder):
    operator, noise = build_operator("downsample", (3, 24, 20), factor=2), GaussianNoise(0.1)
    x = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    problem = Problem(operator, noise, simulate(operator, noise, x, ImageRng([0])))
    results = [solve(problem, load_folder(folder, memory=m), build_solver(solver), steps=3) for m in ("fast", mode)]
    torch.testing.assert_close(results[0].samples, results[1].samples, rtol=1e-4, atol=1e-4)
    assert results[0].ok


def test_a_network_that_comes_block_by_block(folder):
    """On the CPU both places are the same, which is enough to run diffusers' hooks."""
    whole, offloaded = load_folder(folder), load_folder(folder)
    backbone = offloaded.prior.prior.backbone
    place(offloaded, backbone, offloaded.autoencoder, Memory(mode="low", offload=True, device=CPU))
    z, t = torch.randn(2, *whole.latent_shape((3, 32, 32))), torch.tensor(0.7)
    torch.testing.assert_close(offloaded.predict(z, t), whole.predict(z, t))
    assert offloaded.placed and not whole.placed
    with pytest.raises(ValueError, match=r"\(--memory low\) and has no gradient there; take --memory balanced"):
        offloaded.predict(z.requires_grad_(), t)


@pytest.mark.parametrize("name", [*PIPELINES, "unet2d"])
def test_every_kind_loads_in_every_mode(name, tmp_path):
    unet2d(tmp_path) if name == "unet2d" else build(name, tmp_path)
    whole = load_folder(tmp_path)
    z, t = (
        torch.randn(1, *whole.latent_shape((3, 32, 32)), generator=torch.Generator().manual_seed(0)),
        torch.tensor(0.5),
    )
    for mode in ("balanced", "low", "auto"):
        prior = load_folder(tmp_path, memory=mode)
        torch.testing.assert_close(prior.predict(z, t), whole.predict(z, t))
        torch.testing.assert_close(prior.decode(z), whole.decode(z))
        assert prior.memory_mode == ("fast" if mode == "auto" else mode)
    backbone = prior.prior.backbone if name == "unet2d" else prior.prior.prior.backbone
    place(prior, backbone, None, Memory(mode="low", offload=True, device=CPU))  # DiT stays: diffusers cannot
    torch.testing.assert_close(prior.predict(z, t), whole.predict(z, t))
    assert prior.placed == (name != "dit")


def test_what_stays_is_known_through_all_wrappers(folder):
    prior = load_folder(folder, prompts=Prompts(texts=("a", "b")))
    assert not prior.placed
    prior.prior.prior.backbone.stays = True
    for seen in (
        prior,
        prior.prompted("b"),
        as_grey(prior).prompted("b").sized((1, 9, 9)),
        Rescheduled(prior, VE(9.0)),
    ):
        assert seen.placed


def test_checkpoints_reach_the_windows(folder):
    prior = load_folder(folder)
    prior.checkpoint_gradients()
    assert prior.prior.checkpoint and prior.prompted("").prior.checkpoint and prior.sized((3, 64, 64)).prior.checkpoint


def test_text_encoders_that_do_not_fit_compute_on_the_cpu(folder, monkeypatch, tmp_path):
    devices = []

    class Encoders:
        dtype = torch.float32

        def to(self, device):
            devices.append(device)
            return self

        def encode_prompt(self, *_, **__):
            return torch.ones(1, 4, 32), None, torch.ones(1, 32), None

    monkeypatch.setattr("invsolve.priors.text.load_encoders", lambda *_: Encoders())
    for free, kind in ((10**4, "cpu"), (10**9, "meta")):
        monkeypatch.setattr("invsolve.priors.text.free_memory", lambda _, free=free: free)
        prompts = Prompts(texts=("a",), device=torch.device("meta"), cache=tmp_path / kind)
        load_folder(folder, prompts=prompts)
        assert devices[-1].type == kind


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
def test_eight_bits_agree_and_have_a_gradient(folder, monkeypatch):
    monkeypatch.setattr("invsolve.priors.memory.find_spec", importlib.util.find_spec)
    whole, eight = load_folder(folder, torch.bfloat16), load_folder(folder, torch.bfloat16, memory="low")
    assert eight.placed
    z, t = torch.randn(2, *whole.latent_shape((3, 32, 32))).requires_grad_(), torch.tensor(0.7)
    a, b = whole.predict(z, t).noise, eight.predict(z, t).noise
    assert 0 < (a - b).norm() < 0.05 * a.norm()
    (g,) = torch.autograd.grad(b.square().sum(), z)
    assert g.isfinite().all() and g.abs().max() > 0
