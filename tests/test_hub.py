"""Hub priors, on small random models of every kind: predictions, samplers, prompts, and what is loaded when."""

import gc
import json
import logging
import math
import shutil
import weakref

import pytest
import torch
from combinations import SHORT, pairs_of
from diffusers import AutoencoderTiny
from hub import PIPELINES, keeper
from safetensors.torch import load_file, save_file

import invsolve.priors.folder
import invsolve.priors.text
from invsolve import SOLVERS, GaussianNoise, ImageRng, Problem, build_operator, build_solver, simulate, solve
from invsolve.priors import Prompts, load_folder, load_prior
from invsolve.priors.precision import finite_or_wider

KINDS = [*PIPELINES, "unet2d", "edm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    of = keeper(tmp_path_factory)
    return lambda name: of(name)[0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INVSOLVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def backbone_of(prior):
    """Of a latent prior: autoencoder, windows, network."""
    return prior.prior.prior.backbone


def shape_of(prior, size=32):
    return prior.latent_shape((3, size, size))


@pytest.mark.parametrize("name", KINDS)
def test_predictions_stay_on_the_path(name, folders):
    prior = load_prior(folders(name))
    z = torch.randn(2, *shape_of(prior, 20), generator=torch.Generator().manual_seed(0))
    for t in (0.02, 0.5, 0.98):
        t = torch.tensor(t)
        z_t = prior.at(t, 0.5 * z, z)
        ends = prior.predict(z_t, t)
        assert ends.clean.shape == z.shape and ends.clean.isfinite().all()
        torch.testing.assert_close(prior.at(t, *ends), z_t, rtol=1e-4, atol=1e-4 * float(z_t.abs().max()))


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_agrees(name, folders):
    whole, half = (load_folder(folders(name), dtype) for dtype in (torch.float32, torch.bfloat16))
    z, t = torch.randn(2, *shape_of(whole), generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)
    z = whole.at(t, 0.5 * z, z)
    a, b = whole.predict(z, t), half.predict(z, t)
    assert a.clean.dtype == b.clean.dtype == torch.float32
    assert 0 < (a.clean - b.clean).norm() < 0.03 * a.clean.norm()
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(whole.encode(x), half.encode(x))  # autoencoders stay in float32


FAMILIES = ["sd1.5", "sd2.1", "sdxl", "sd3", "flux-dev", "dit", "sana", "unet2d", "edm"]


@pytest.mark.parametrize(("name", "solver"), pairs_of(FAMILIES, list(SOLVERS), every=9))
def test_every_sampler_takes_five_steps(name, solver, folders):
    prior, sampler = load_prior(folders(name)), build_solver(SHORT.get(solver, solver))
    operator = build_operator("inpaint-random", (3, 14, 12), fraction=0.5)
    if not isinstance(operator, sampler.requires):
        pytest.skip("needs another operator")
    noise = GaussianNoise(0.1)
    x = torch.rand(1, 3, 14, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    problem = Problem(operator, noise, simulate(operator, noise, x, ImageRng([0])))
    samples = 2 if sampler.interacting else 1
    large = solver == "mmdflow" and math.prod(prior.latent_shape((3, 14, 12))) > 256  # for particles alone
    if large or (prior.has_decoder and not sampler.latents):
        with pytest.raises((TypeError, ValueError), match=r"fit a flow with|has a decoder") as caught:
            solve(problem, prior, sampler, steps=5, samples=samples)
        assert len(str(caught.value)) < 400 and str(caught.value).endswith(".")
        return
    result = solve(problem, prior, sampler, steps=5, samples=samples)
    assert result.ok and result.samples.shape == (1, samples, 3, 14, 12)
    assert result.stats["network"] >= 5


@pytest.mark.parametrize("name", ["sd1.5", "sd3", "sdxl", "flux-dev", "sana"])
def test_a_saved_prior_loads_the_same(name, folders, tmp_path):
    prior = load_prior(folders(name))
    part = "unet" if name.startswith("sd1") or name == "sdxl" else "transformer"
    copy = tmp_path / "copy"
    backbone_of(prior).network.save_pretrained(copy / part)
    prior.autoencoder.save_pretrained(copy / "vae")
    (copy / "scheduler").mkdir()
    for file in (folders(name) / "scheduler").iterdir():
        (copy / "scheduler" / file.name).write_bytes(file.read_bytes())
    z, t = torch.randn(1, *shape_of(prior)), torch.tensor(0.5)
    again = load_folder(copy, prompts=None)  # without text encoders: zeros stand for no prompt
    assert backbone_of(prior).zeros()
    torch.testing.assert_close(again.encode(again.decode(z)), prior.encode(prior.decode(z)))
    if name in ("sd3", "sdxl"):
        torch.testing.assert_close(again.predict(z, t), prior.predict(z, t))


def test_prompts_change_the_prediction_and_are_told_apart(folders):
    prior = load_folder(folders("sd3"), prompts=Prompts(texts=("a face", "a dog"), scale=3.0, negative="blur"))
    z, t = torch.randn(2, *shape_of(prior)), torch.tensor(0.9)
    face, dog = (prior.prompted(text).predict(z, t).clean for text in ("a face", "a dog"))
    torch.testing.assert_close(face, prior.predict(z, t).clean)
    assert (face - dog).norm() > 1e-4 * face.norm()
    one = prior.prompted("a dog").predict(z[:1], t).clean
    torch.testing.assert_close(one, dog[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="not loaded with the prompt 'a cat'"):
        prior.prompted("a cat")


def test_guidance_is_one_batched_call(folders, monkeypatch):
    prior = load_folder(folders("sd1.5"), prompts=Prompts(texts=("a face",), scale=3.0))
    network = backbone_of(prior).network
    rows = []
    monkeypatch.setattr(
        network, "forward", lambda x, *a, f=network.forward, **k: (rows.append(len(x)), f(x, *a, **k))[1]
    )
    z, t = torch.randn(3, *shape_of(prior)), torch.tensor(0.5)
    guided = prior.predict(z, t)
    assert rows == [6] and prior.calls_per_predict == 2
    alone = load_folder(folders("sd1.5"), prompts=Prompts(texts=("a face", ""))).prompted
    positive, negative = (alone(text).predict(z, t).noise for text in ("a face", ""))
    torch.testing.assert_close(guided.noise, negative + 3 * (positive - negative), rtol=1e-4, atol=1e-5)


def test_a_cached_prompt_loads_no_text_encoder(folders, monkeypatch, own_cache):
    prompts = Prompts(texts=("a face", "a dog"), scale=2.0)
    first = load_folder(folders("sd3"), prompts=prompts)
    files = sorted((own_cache / "prompts").iterdir())
    assert len(files) == 3 and all(load_file(path) for path in files)

    def never(*_):
        raise AssertionError("a text encoder was loaded")

    monkeypatch.setattr(invsolve.priors.text, "load_encoders", never)
    again = load_folder(folders("sd3"), prompts=prompts)
    z, t = torch.randn(1, *shape_of(first)), torch.tensor(0.5)
    torch.testing.assert_close(again.predict(z, t), first.predict(z, t), rtol=0, atol=0)
    with pytest.raises(AssertionError, match="was loaded"):  # another text is not in the cache
        load_folder(folders("sd3"), prompts=Prompts(texts=("a cat",)))
    files[0].write_bytes(b"damaged")
    with pytest.raises(AssertionError, match="was loaded"):
        load_folder(folders("sd3"), prompts=prompts)


@pytest.mark.parametrize("name", ["sd3", "sdxl", "dit", "unet2d"])
def test_without_a_prompt_no_text_encoder_is_loaded(name, folders, monkeypatch):
    def never(*_):
        raise AssertionError("a text encoder was loaded")

    monkeypatch.setattr(invsolve.priors.text, "load_encoders", never)
    load_folder(folders(name))


def test_text_encoders_are_gone_before_the_network_comes(folders, monkeypatch):
    events, encoders = [], []
    load_encoders, load_network = invsolve.priors.text.load_encoders, invsolve.priors.folder.load_network

    def watched_encoders(*args):
        pipeline = load_encoders(*args)
        encoders.extend(weakref.ref(part) for name, part in pipeline.components.items() if "text_encoder" in name)
        events.append("encoders")
        return pipeline

    def watched_network(*args):
        gc.collect()
        events.append(("network", sum(ref() is not None for ref in encoders)))
        return load_network(*args)

    monkeypatch.setattr(invsolve.priors.text, "load_encoders", watched_encoders)
    monkeypatch.setattr(invsolve.priors.folder, "load_network", watched_network)
    load_folder(folders("sd3"), prompts=Prompts(texts=("a face",)))
    assert len(encoders) == 3
    assert events == ["encoders", ("network", 0), ("network", 0)]


def test_a_tiny_autoencoder_can_take_the_place_of_the_full_one(folders, tmp_path):
    tiny = AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=1.0,
    )  # fmt: skip
    tiny.save_pretrained(tmp_path / "tiny")
    prior = load_folder(folders("sd3"), autoencoder=tmp_path / "tiny")
    x = torch.rand(1, 3, 20, 12) * 2 - 1
    z = prior.encode(x)
    torch.testing.assert_close(z, tiny.eval().encode(x).latents)
    assert prior.sized((3, 20, 12)).decode(z).shape == x.shape


SENTENCES = {
    "guidance of flux": ("flux-dev", {"negative": "blur", "scale": 3.0}, "takes the guidance scale as an input"),
    "prompt of pixels": ("unet2d", {"texts": ("a face",)}, "takes no prompt, got 'a face'"),
    "guidance of pixels": ("unet2d", {"scale": 3.0}, "takes no prompt, hence no guidance scale of 3.0"),
    "negative without guidance": (
        "sd3",
        {"negative": "blur"},
        "has no effect at a guidance scale of 1; raise the scale",
    ),
    "words for a class": ("dit", {"texts": ("a dog",)}, "the prompt must be 0 to 999, got 'a dog'"),
    "class out of range": ("dit", {"texts": ("1000",)}, "the prompt must be 0 to 999, got '1000'"),
}


@pytest.mark.parametrize(("name", "fields", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_prompts_that_cannot_be_are_one_sentence(name, fields, sentence, folders):
    with pytest.raises(ValueError, match=sentence):
        load_folder(folders(name), prompts=Prompts(**fields))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"scale": 0.5}, "must be 1 to 100, got 0.5"),
        ({"scale": float("nan")}, "must be 1 to 100, got nan"),
        ({"texts": ("a", "a")}, "must hold each prompt once"),
        ({"texts": ()}, "must hold each prompt once"),
    ],
)
def test_bad_prompts_are_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Prompts(**fields)


def test_a_folder_without_text_encoders(folders, tmp_path, caplog):
    for part in ("unet", "vae", "scheduler"):
        (tmp_path / part).mkdir()
        for file in (folders("sd1.5") / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="has no text encoder, so it takes no prompt"):
        load_folder(tmp_path, prompts=Prompts(texts=("a face",)))
    load_folder(tmp_path)
    assert "zeros stand for it" in caplog.text


def test_what_overflows_is_named_and_tried_again_in_float32(caplog):
    linear = torch.nn.Linear(4, 4).half()
    torch.nn.init.constant_(linear.weight, 60000.0)
    call = lambda x: linear(x.to(linear.weight.dtype)).float()  # noqa: E731
    x = torch.full((2, 4), 10.0)
    with caplog.at_level(logging.WARNING, "invsolve"):
        out = finite_or_wider("decoder", linear, x, call)
    assert out.isfinite().all() and linear.weight.dtype == torch.float32
    assert "The decoder gave values that are not finite in float16; it goes on in float32." in caplog.text
    caplog.clear()
    finite_or_wider("decoder", linear, torch.full((2, 4), float("nan")), call)  # not the stage's fault
    assert caplog.text == ""
    finite_or_wider("decoder", linear, torch.full((2, 4), 3e38), call)
    assert "The decoder gave values that are not finite; lower the solver's step size" in caplog.text


def rewritten(folders, tmp_path, name, file, **changes):
    """A copy of a prior with other values in one of its JSON files; None takes a value out."""
    copy = tmp_path / "copy"
    shutil.copytree(folders(name), copy)
    values = json.loads((copy / file).read_text()) | changes
    (copy / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return copy


UNET, SCHEDULER, VAE = "unet/config.json", "scheduler/scheduler_config.json", "vae/config.json"
CONFIGS = {
    "another scheduler": (
        "sd1.5",
        SCHEDULER,
        {"_class_name": "ScoreSdeVeScheduler"},
        "known are flow-matching and EDM",
    ),
    "no scheduler class": ("sd1.5", SCHEDULER, {"_class_name": None}, "known are flow-matching and EDM"),
    "betas": ("sd1.5", SCHEDULER, {"beta_schedule": ["linear"]}, "has beta_schedule \\['linear'\\]"),
    "steps": ("sd1.5", SCHEDULER, {"num_train_timesteps": True}, "has num_train_timesteps True"),
    "size": ("sd1.5", UNET, {"sample_size": "big"}, "has sample_size 'big'; expected is a whole number"),
    "no size": ("sd1.5", UNET, {"sample_size": []}, "has sample_size \\[\\]; expected"),
    "scale": ("sd1.5", VAE, {"scaling_factor": "a"}, "has scaling_factor 'a'; expected is a positive number"),
    "zero scale": ("sd1.5", VAE, {"scaling_factor": 0}, "has scaling_factor 0; expected is a positive number"),
    "shift": ("sd3", VAE, {"shift_factor": "b"}, "has shift_factor 'b'; expected is a number"),
    "sigma": ("edm", "scheduler_config.json", {"sigma_max": -1}, "has sigma_max -1; expected is a positive number"),
    "data": ("edm", "scheduler_config.json", {"sigma_data": 0}, "has sigma_data 0; expected is a positive number"),
    "classes": ("unet2d", "config.json", {"num_class_embeds": 10}, "UNet2DModel that needs a class"),
    "encoder": (
        "sd3",
        "model_index.json",
        {"text_encoder": ["transformers", "BertModel"]},
        "has \\['transformers', 'BertModel'\\] for text_encoder; the StableDiffusion3Pipeline has",
    ),
}


@pytest.mark.parametrize(("name", "file", "changes", "sentence"), CONFIGS.values(), ids=CONFIGS)
def test_configs_that_make_no_sense_are_one_sentence(name, file, changes, sentence, folders, tmp_path):
    prompts = Prompts(texts=("a",)) if file == "model_index.json" else None
    with pytest.raises(ValueError, match=sentence) as raised:
        load_folder(rewritten(folders, tmp_path, name, file, **changes), prompts=prompts)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")


def test_parts_that_are_missing_are_one_sentence(folders, tmp_path):
    copy = rewritten(folders, tmp_path, "sd3", "model_index.json")
    with pytest.raises(ValueError, match=r"config.json is missing; it needs unet/ or transformer/, scheduler/"):
        load_folder(copy, autoencoder=tmp_path / "nowhere")
    shutil.rmtree(copy / "tokenizer_3")
    with pytest.raises(ValueError, match="has text_encoder_3 without tokenizer_3; download the prior again"):
        load_folder(copy, prompts=Prompts(texts=("a",)))
    shutil.rmtree(copy / "vae")
    with pytest.raises(ValueError, match=r"vae/config.json is missing"):
        load_folder(copy)
    (copy / "transformer" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"transformer/config.json in .* is damaged"):
        load_folder(copy)


def test_an_index_names_safetensors_beside_it_only(folders, tmp_path):
    copy = rewritten(folders, tmp_path, "sd1.5", "model_index.json")
    for name in ("x.bin", "../unet/diffusion_pytorch_model.safetensors", 3):
        index = copy / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}}))
        with pytest.raises(ValueError, match="names files that are not safetensors beside it"):
            load_folder(copy)


def test_the_cache_keeps_only_what_is_right(folders, monkeypatch, own_cache, caplog):
    encode = invsolve.priors.text.ENCODE["StableDiffusionPipeline"]
    calls = []

    def overflows(pipeline, text, device):
        calls.append(pipeline.dtype)
        out = encode(pipeline, text, device)
        return {k: v * float("inf") for k, v in out.items()} if pipeline.dtype == torch.bfloat16 else out

    monkeypatch.setitem(invsolve.priors.text.ENCODE, "StableDiffusionPipeline", overflows)
    load_folder(folders("sd1.5"), torch.bfloat16, prompts=Prompts(texts=("a",)))
    assert calls == [torch.bfloat16, torch.float32] and "they go on in float32" in caplog.text
    (path,) = (own_cache / "prompts").iterdir()
    assert load_file(path)["encoder_hidden_states"].isfinite().all()
    for damage in (lambda: save_file({"other": torch.ones(1)}, path), lambda: (path.unlink(), path.mkdir())):
        damage()
        load_folder(folders("sd1.5"), torch.bfloat16, prompts=Prompts(texts=("a",)))
    assert len(calls) == 6 and not list((own_cache / "prompts").glob("*.part.*"))
    monkeypatch.setitem(
        invsolve.priors.text.ENCODE, "StableDiffusionPipeline", lambda *_: {"encoder_hidden_states": torch.ones(1) / 0}
    )
    with pytest.raises(ValueError, match=r"The text encoders in .* gave values that are not finite"):
        load_folder(folders("sd1.5"), prompts=Prompts(texts=("b",)))


def test_networks_are_told_the_time_exactly(folders):
    """Also between the steps of a table, and whatever the dtype of t."""
    prior = load_folder(folders("sd1.5")).prior.prior
    asked = []
    prior.backbone.network.register_forward_pre_hook(lambda _, args: asked.append(float(args[1][0])))
    z = torch.randn(1, 4, 8, 8)
    for t in (
        torch.tensor(0.5),
        torch.tensor(0.5).bfloat16(),
        torch.tensor(0.5004),
        torch.tensor(0.0),
        torch.tensor(1.0),
    ):
        prior.predict(z, t)
    assert asked == pytest.approx([499, 499, 499.4, 0, 999], abs=1e-3)


def test_guidance_needs_something_to_follow(folders):
    with pytest.raises(ValueError, match=r"A guidance scale of 3.0 has no effect without a prompt"):
        load_folder(folders("sd3"), prompts=Prompts(scale=3.0))
    assert float(load_folder(folders("flux-dev")).prior.prior.guidance.positive["guidance"]) == 3.5
