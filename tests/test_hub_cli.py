"""Cards, downloads without a network, prompts of pictures, and the command line of hub priors."""

import json
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from hub import build, unet2d
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from invsolve.calibrate import calibrate as calibrate_prior
from invsolve.cli.app import app
from invsolve.files.images import load_image
from invsolve.priors import Prompts, find_card, load_cards, load_folder, load_prior, pull
from invsolve.priors import text as text_module
from invsolve.priors.backbones import BACKBONES, SDXL
from invsolve.priors.folder import path_of
from invsolve.priors.hub import allowed_files, ignored_files
from invsolve.priors.latent import LatentPrior
from invsolve.priors.schedule import LinearFlow

CARDS = load_cards()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder, and an empty cache."""
    monkeypatch.setenv("INVSOLVE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def invsolve(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def picture(path, seed=0):
    values = np.random.default_rng(seed).integers(60, 200, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


# --- cards


@pytest.mark.parametrize("name", CARDS)
def test_cards_name_classes_that_are_there(name):
    card = CARDS[name]
    backbone = SDXL if name == "sdxl" else BACKBONES[card.network]
    assert hasattr(diffusers, card.pipeline) and hasattr(diffusers, card.network)
    assert backbone.pipeline in ("", card.pipeline)
    assert {"zeros": "zeros", "empty prompt": "empty", "none": "none"}[backbone.nothing] == card.unconditional
    assert card.licence_url.startswith("https://")
    assert card.multiple % card.factor == 0 and card.size % card.multiple == 0
    assert (card.factor == 1) == (card.latent_channels is None) == (card.parameters.autoencoder == 0)
    assert (card.schedule == "flow") == (card.parameterisation == "velocity")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("sd3", "sd3-medium"), ("flux-dev", "flux.1-dev"), ("sd1.5", "sd1.5"), ("sd2.1", "sd2.1"), ("sdxl", "sdxl")],
)
def test_cards_agree_with_what_a_folder_says(kind, name, folder):
    """The small models have the schedulers and scales of the real ones."""
    build(kind, folder / kind)
    prior, card = load_folder(folder / kind), CARDS[name]
    assert isinstance(prior, LatentPrior)
    assert prior.scale == pytest.approx(card.latent_scale) and prior.shift == pytest.approx(card.latent_shift or 0)
    config = json.loads((folder / kind / "scheduler" / "scheduler_config.json").read_text())
    schedule, parameterisation = path_of(config)
    assert parameterisation == card.parameterisation and isinstance(schedule, LinearFlow) == (card.schedule == "flow")


def test_dit_under_its_older_name(folder):
    build("dit", folder / "dit")
    config = folder / "dit" / "transformer" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"_class_name": "Transformer2DModel"}))
    assert load_prior(folder / "dit").predict(torch.randn(1, 4, 16, 16), torch.tensor(0.5)).clean.shape == (
        1,
        4,
        16,
        16,
    )


FILES = [
    "model_index.json", "README.md", "sd3_medium.safetensors", "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors",
    "scheduler/scheduler_config.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "unet/custom.py",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors", "text_encoder/model.fp16.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json", "text_encoder_3/model.safetensors",
    "text_encoders/t5xxl.safetensors", "text_encoder/model.fp16-00001-of-00002.safetensors",
    "tokenizer/merges.txt", "tokenizer_3/spiece.model", "tokenizer_3/tokenizer.json",
    "safety_checker/model.safetensors",
]  # fmt: skip


def test_only_what_is_needed_is_downloaded():
    def kept(name):
        patterns = allowed_files(find_card(name))
        return set(filter_repo_objects(FILES, allow_patterns=patterns, ignore_patterns=ignored_files(find_card(name))))

    common = {
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "tokenizer/merges.txt",
        "transformer/diffusion_pytorch_model.safetensors.index.json", "tokenizer_3/spiece.model",
        "tokenizer_3/tokenizer.json",
    }  # fmt: skip
    assert kept("sd1.5") == common | {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
    }
    assert kept("sd3-medium") == common | {
        "unet/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "text_encoder_3/model.safetensors",
    }
    for name in CARDS:
        assert not any(file.endswith((".py", ".bin", ".ckpt", ".md")) or "safety" in file for file in kept(name))
        assert "sd3_medium.safetensors" not in kept(name) and "v1-5-pruned-emaonly.safetensors" not in kept(name)


# --- downloads


class Response:
    """What the errors of the hub want to be made with."""

    headers, status_code, url, request = {}, 403, "https://hub", None


def fails(monkeypatch, error):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)


def hub_error(kind):
    error = kind.__new__(kind)
    Exception.__init__(error, "a long technical text")
    return error


SENTENCES = {
    "gated": (errors.GatedRepoError, "accept its licence (Stability AI Community, https://stability.ai/"),
    "login": (errors.GatedRepoError, "run `huggingface-cli login`, and try again, or use --prior natural"),
    "withdrawn": (errors.RepositoryNotFoundError, "is not on the hub, or only for those who are logged in"),
    "revision": (errors.RevisionNotFoundError, "has no revision"),
    "no network": (
        errors.LocalEntryNotFoundError,
        "is not in the cache and the hub is out of reach; run `invsolve prior",
    ),
    "broken": (ConnectionError, "its download failed (ConnectionError); run `invsolve prior pull sd3.5-medium` where"),
}


@pytest.mark.parametrize(("kind", "words"), SENTENCES.values(), ids=SENTENCES)
def test_what_cannot_be_had_is_one_sentence(kind, words, monkeypatch):
    fails(monkeypatch, hub_error(kind) if kind is not ConnectionError else ConnectionError("refused"))
    picture("photo.png")
    for command in (
        ["restore", "photo.png", "--operator", "identity", "--prior", "sd3.5-medium", "--device", "cpu"],
        ["prior", "pull", "sd3.5-medium"],
    ):
        run = invsolve(*command)
        assert run.exit_code == 2
        assert words in " ".join(run.output.split()) and "Traceback" not in run.output
        assert run.output.count("Error:") == 1
        assert "or use --prior natural" in run.output


def test_a_dry_run_downloads_nothing(monkeypatch):
    fails(monkeypatch, AssertionError("asked the hub"))
    picture("photo.png")
    run = invsolve("restore", "photo.png", "--operator", "identity", "--prior", "sd1.5", "--dry-run", "--device", "cpu")
    assert run.exit_code == 0 and "would restore photo.png" in run.output
    words = ["restore", "photo.png", "--operator", "identity", "--prior", "sd1.5", "--dry-run", "--guidance", "0.5"]
    run = invsolve(*words, "--device", "cpu")
    assert run.exit_code == 2 and "must be 1 to 100, got 0.5" in run.output
    calibrate = ["calibrate", "--prior", "sd1.5", "--device", "cpu"]
    for wrong, sentence in (
        (["nowhere.png"], "nowhere.png does not exist"),
        (["photo.png", "--guidance", "0.5"], "must be 1 to 100, got 0.5"),
        (["photo.png", "--prompt", " "], "--prompt is empty"),
    ):
        run = invsolve(*calibrate, *wrong)
        assert run.exit_code == 2 and sentence in run.output
    run = invsolve("restore", "photo.png", "--operator", "identity", "--prior", "sd9", "--dry-run", "--device", "cpu")
    assert run.exit_code == 2 and "Unknown prior 'sd9'" in run.output


def test_offline_asks_nobody(monkeypatch):
    def snapshot_download(*_, local_files_only, **__):
        assert local_files_only
        raise hub_error(errors.LocalEntryNotFoundError)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    picture("photo.png")
    run = invsolve("restore", "photo.png", "--operator", "identity", "--prior", "sd1.5", "--offline", "--device", "cpu")
    assert run.exit_code == 2 and "--offline or HF_HUB_OFFLINE forbids a download" in run.output


def test_offline_for_real(tmp_path):
    """Against huggingface_hub itself, with an empty cache."""
    with pytest.raises(ValueError, match="The prior sd3-medium is not in the cache and --offline"):
        pull("sd3-medium", offline=True, cache_dir=tmp_path / "hub")


def test_weights_that_are_code_are_not_read(monkeypatch, folder):
    (folder / "snapshot").mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder / "snapshot"))
    with pytest.raises(ValueError, match="as code only, which invsolve does not run; download it yourself"):
        pull("ddpm-celebahq-256")


def on_the_hub(monkeypatch, folder, name, kind):
    """A small model in the place of the snapshot of a hub prior."""
    snapshot = folder / "hub" / "snapshots" / ("0" * 40)
    unet2d(snapshot) if kind == "unet2d" else build(kind, snapshot)
    asked = []

    def snapshot_download(repo, **options):
        asked.append((repo, options))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def test_a_hub_prior_restores_with_a_prompt(monkeypatch, folder):
    asked = on_the_hub(monkeypatch, folder, "sd3.5-medium", "sd3")
    picture("photo.png")
    words = [
        "restore", "photo.png", "--operator", "downsample(factor=2)", "--sigma", "0.05", "--prior", "sd3.5-medium",
        "--prompt", "a photo of a face", "--negative-prompt", "a dog", "--guidance", "3", "--solver", "flowdps",
        "--steps", "2", "--device", "cpu", "--memory", "balanced", "--cache-dir", folder / "priors",
    ]  # fmt: skip
    run = invsolve(*words)
    assert run.exit_code == 0, run.output
    repo, options = asked[0]
    assert (
        repo == "stabilityai/stable-diffusion-3.5-medium" and options["revision"] == find_card("sd3.5-medium").revision
    )
    assert options["cache_dir"] == folder / "priors" and "transformer/*.safetensors" in options["allow_patterns"]
    assert options["ignore_patterns"] == ignored_files(find_card("sd3.5-medium"))
    record = json.loads((folder / "work" / "restored" / "photo.json").read_text())
    assert record["prior"]["prompt"] == "a photo of a face"
    for word in ("--prompt 'a photo of a face'", "--negative-prompt 'a dog'", "--guidance 3.0", "--memory balanced"):
        assert word in record["command"]
    assert record["stats"]["network"] == 16  # two steps in four windows, two rows each
    again = invsolve(*words)
    assert "done already" in again.output
    other = invsolve(*["a photo of a cat" if word == "a photo of a face" else word for word in words])
    assert other.exit_code == 0 and "done already" not in other.output


def test_a_hub_prior_is_calibrated_as_it_is_asked(monkeypatch, folder):
    """The calibration lies beside the weights, FLAIR uses it, and what was restored without it is not "done"."""
    on_the_hub(monkeypatch, folder, "sd3.5-medium", "sd3")
    picture("photo.png")
    snapshot = folder / "hub" / "snapshots" / ("0" * 40)
    restore = [
        "restore", "photo.png", "--operator", "identity", "--sigma", "0.2", "--prior", "sd3.5-medium", "--solver",
        "flair", "--steps", "2", "--device", "cpu",
    ]  # fmt: skip
    assert invsolve(*restore).exit_code == 0
    assert "done already" in invsolve(*restore).output
    calibrate = ["calibrate", "photo.png", "--prior", "sd3.5-medium", "--device", "cpu", "--size", "16"]
    asked = {"--prompt": "a face", "--guidance": "3", "--negative-prompt": "a dog"}
    run = invsolve(*calibrate, *(word for pair in asked.items() for word in pair))
    assert run.exit_code == 0, run.output
    assert str(snapshot / "calibration.safetensors") in run.output
    with safe_open(snapshot / "calibration.safetensors", framework="pt") as file:
        assert {"prompt": "a face", "guidance": "3.0", "negative_prompt": "a dog"}.items() <= file.metadata().items()
        error = file.get_tensor("velocity_error")
    prior = load_prior("sd3.5-medium", prompts=Prompts(texts=("a face",), negative="a dog", scale=3.0))
    torch.testing.assert_close(prior.calibration, error, rtol=0, atol=0)
    image = load_image(Path("photo.png")).tensor[:, 2:18, 4:20]
    torch.testing.assert_close(calibrate_prior(prior, [image]), error, rtol=1e-5, atol=1e-6)
    again = invsolve(*restore)  # with other weights of its steps
    assert again.exit_code == 0 and "done already" not in again.output
    plain = invsolve(*calibrate, "-o", "plain.json")
    assert plain.exit_code == 0, plain.output
    assert json.loads(Path("plain.json").read_text())["velocity_error"] != error.tolist()
    wrong = invsolve(*calibrate, "--negative-prompt", "a dog")
    assert wrong.exit_code == 2 and "no effect at a guidance scale of 1" in wrong.output


@pytest.mark.parametrize(("mode", "tiny"), [("fast", False), ("balanced", False), ("low", True), ("auto", True)])
def test_the_tiny_autoencoder_is_fetched_where_it_is_needed(mode, tiny, monkeypatch, folder):
    asked = on_the_hub(monkeypatch, folder, "sd3.5-medium", "sd3")
    monkeypatch.setattr("invsolve.priors.memory.free_memory", lambda _: 1_000_000_000)  # only low can fit
    monkeypatch.setattr("invsolve.priors.load_folder", lambda *_, **fields: fields)
    fields = load_prior("sd3.5-medium", torch.bfloat16, memory=mode)
    assert ("madebyollin/taesd3" in [repo for repo, _ in asked]) == tiny == (fields["autoencoder"] is not None)
    assert fields["memory"] == ("low" if mode == "auto" else mode)


def test_pull_says_where_a_prior_is(monkeypatch, folder):
    on_the_hub(monkeypatch, folder, "ddpm-cat-256", "unet2d")
    run = invsolve("prior", "pull", "ddpm-cat-256")
    assert run.exit_code == 0 and "ddpm-cat-256: 0.00 GB in" in run.output
    assert "part of invsolve" in invsolve("prior", "pull", "natural").output
    assert "Unknown hub prior 'sd4'" in invsolve("prior", "pull", "sd4").output


def test_info_and_list_know_the_cards():
    listed = invsolve("list", "priors").output
    for name in CARDS:
        assert f"  {name} " in listed
        told = invsolve("info", name)
        assert told.exit_code == 0
        assert CARDS[name].licence in told.output and CARDS[name].repo in told.output and "memory" in told.output
    assert "network 2.24 billion" in invsolve("info", "sd3.5-medium").output
    assert "weights 24.1 GB" in invsolve("info", "flux.1-dev").output


# --- prompts of pictures


def restored_with(monkeypatch, folder, *words):
    """The prompts that each picture was restored with, by the name in its record."""
    on_the_hub(monkeypatch, folder, "sd1.5", "sd1.5")
    run = invsolve(
        "restore", *words, "--operator", "downsample(factor=2)", "--prior", "sd1.5", "--solver", "diffpir",
        "--steps", "1", "--device", "cpu",
    )  # fmt: skip
    records = [json.loads(path.read_text()) for path in (folder / "work" / "restored").glob("*.json")]
    return run, {record["input"]["name"]: record["prior"].get("prompt") for record in records}


def test_prompts_from_a_file(monkeypatch, folder):
    for k, name in enumerate(("a.png", "b.png", "c.png")):
        picture(name, k)
    (folder / "work" / "prompts.txt").write_text("# comment\na.png: a cat: on a mat\nb.png\ta dog: brown\n\n")
    run, prompts = restored_with(
        monkeypatch, folder, "a.png", "b.png", "c.png", "--prompts", "prompts.txt", "--prompt", "x"
    )
    assert run.exit_code == 0, run.output
    assert prompts == {"a.png": "a cat: on a mat", "b.png": "a dog: brown", "c.png": "x"}


def test_prompts_beside_the_pictures(monkeypatch, folder):
    (folder / "work" / "in").mkdir()
    for k, name in enumerate(("a", "b")):
        picture(f"in/{name}.png", k)
        (folder / "work" / "in" / f"{name}.txt").write_text(f"prompt of\n{name}\n")
    run, prompts = restored_with(monkeypatch, folder, "in", "--prompts", "in")
    assert run.exit_code == 0, run.output
    assert prompts == {"a.png": "prompt of a", "b.png": "prompt of b"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.png: a cat\n", "prompts.txt has no prompt for b.png; add it, or give --prompt"),
        ("a.png: a\nb.png: b\na.png: c\n", "line 3: a.png has a prompt already"),
        ("a.png\n", "prompts.txt, line 1: expected 'NAME: PROMPT', got 'a.png'"),
        (b"\xff\xfe\x00", "is not a text file in UTF-8"),
        (None, "--prompts: prompts.txt does not exist"),
    ],
)
def test_bad_prompt_files_are_one_sentence(text, words, monkeypatch, folder):
    picture("a.png"), picture("b.png", 1)
    if text is not None:
        path = folder / "work" / "prompts.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setattr(text_module, "load_encoders", None)  # nothing is loaded before
    run, prompts = restored_with(monkeypatch, folder, "a.png", "b.png", "--prompts", "prompts.txt")
    assert run.exit_code == 2 and words in " ".join(run.output.split()) and prompts == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "a face"], "The prior natural takes no prompt and no guidance"),
        (["--guidance", "3"], "The prior natural takes no prompt and no guidance"),
        (["--prompt", " "], "--prompt is empty"),
        (["--guidance", "0"], "The guidance scale must be 1 to 100, got 0.0"),
        (["--negative-prompt", "x"], "The prior natural takes no prompt and no guidance"),
        (["--memory", "huge"], "Unknown memory mode 'huge'"),
        (["--memory", "huge", "--prior", "model"], "Unknown memory mode 'huge'"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(options, words, folder):
    picture("a.png")
    unet2d(folder / "work" / "model")
    run = invsolve("restore", "a.png", "--operator", "identity", "--device", "cpu", *options)
    assert run.exit_code == 2 and words in " ".join(run.output.split())


def test_folders_with_pickles_are_converted(folder):
    built = build("dit", folder / "dit")
    for part, module in {"transformer": built.transformer, "vae": built.vae}.items():
        (folder / "dit" / part / "diffusion_pytorch_model.safetensors").unlink()
        torch.save(module.state_dict(), folder / "dit" / part / "diffusion_pytorch_model.bin")
    assert invsolve("prior", "convert", folder / "dit", "-o", "out").exit_code == 0
    assert not list((folder / "work" / "out").rglob("*.bin"))
    z, t = torch.randn(1, 4, 16, 16), torch.tensor(0.5)
    alpha, sigma = load_prior("out").schedule(t)
    noise = built.transformer(z, timestep=torch.tensor([499]), class_labels=torch.tensor([1000])).sample[:, :4]
    torch.testing.assert_close(load_prior("out").predict(z, t).noise, noise)
    assert 0 < alpha < 1 and 0 < sigma < 1
    run = invsolve("prior", "convert", folder / "dit", "-o", "out")
    assert run.exit_code == 2 and "exists and is not an empty folder" in run.output
    torch.save({"weight": Image.Image}, folder / "dit" / "vae" / "diffusion_pytorch_model.bin")  # code
    run = invsolve("prior", "convert", folder / "dit", "-o", "other")
    assert run.exit_code == 2 and "holds code, which is never run" in " ".join(run.output.split())
    assert not (folder / "work" / "other").exists() and not list((folder / "work").glob(".other*"))


def test_guidance_is_that_of_the_card_where_there_is_a_prompt(monkeypatch, folder):
    on_the_hub(monkeypatch, folder, "sd1.5", "sd1.5")
    scale = lambda prior: prior.prior.prior.guidance.scale  # noqa: E731
    assert scale(load_prior("sd1.5")) == 1
    assert scale(load_prior("sd1.5", prompts=Prompts(texts=("a face",)))) == 7.5
    assert scale(load_prior("sd1.5", prompts=Prompts(texts=("a face",), scale=2.0))) == 2


def test_convert_command(folder):
    run = invsolve("prior", "convert", "no.pt", "--model", "ffhq-256", "-o", "out")
    assert run.exit_code == 2 and "no.pt" in run.output and "Traceback" not in run.output
    run = invsolve("prior", "convert", "no.pt", "--model", "ffhq", "-o", "out")
    assert "with --model, one of ffhq-256, imagenet-256, dit-xl-256, dit-xl-512, sit-xl-256; got ffhq" in run.output
    assert not (folder / "work" / "out").exists()


@pytest.mark.slow
def test_numbers_of_parameters_are_those_of_the_published_configs():
    script = Path(__file__).parent.parent / "scripts" / "hub_memory.py"
    run = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stdout == ""
