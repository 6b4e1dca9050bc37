"""DiT and SiT checkpoints: a second writing of the network, by the official names, against the converted."""

import hashlib
import json
import math
import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import nn
from typer.testing import CliRunner

from invsolve.cli.app import app
from invsolve.priors import LinearFlow, Prompts, load_prior
from invsolve.priors.dit import DIT_MODELS, DitConfig, convert_dit, transformer_weights
from invsolve.sample import follow_flow


def normal(x, shift, scale):
    """Normalised tokens, scaled and shifted by the condition."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def conditioner(width, count):
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        weight = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weight @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and two layers for each token, each between a scale and a gate of the condition."""

    def __init__(self, width, heads):
        super().__init__()
        self.attn, self.mlp, self.adaLN_modulation = Attention(width, heads), Mlp(width), conditioner(width, 6)

    def forward(self, x, c):
        shift, scale, gate, shift_2, scale_2, gate_2 = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate[:, None] * self.attn(normal(x, shift, scale))
        return x + gate_2[:, None] * self.mlp(normal(x, shift_2, scale_2))


class Named(nn.Module):
    """Layers under the names that they have in the checkpoint."""

    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class Dit(nn.Module):
    """The network of both; SiT leaves out the second half of the output, DiT has its variance there."""

    def __init__(self, config: DitConfig):
        super().__init__()
        width, self.patch, self.flow = config.width, config.patch, config.flow
        self.x_embedder = Named(proj=nn.Conv2d(4, width, config.patch, config.patch))
        self.t_embedder = Named(mlp=nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)))
        self.y_embedder = Named(embedding_table=nn.Embedding(config.classes + 1, width))
        self.pos_embed = nn.Parameter(positions(config.image_size // 8 // config.patch, width), requires_grad=False)
        self.blocks = nn.ModuleList([Block(width, config.heads) for _ in range(config.depth)])
        self.final_layer = Named(linear=nn.Linear(width, config.patch**2 * 8), adaLN_modulation=conditioner(width, 2))

    def forward(self, x, t, y):
        side = x.shape[-1] // self.patch
        angles = t.float()[:, None] * torch.exp(-math.log(10000) / 128 * torch.arange(128))
        time = torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype)
        c = self.t_embedder.mlp(time) + self.y_embedder.embedding_table(y)
        x = self.x_embedder.proj(x).flatten(2).mT + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer.linear(normal(x, *self.final_layer.adaLN_modulation(c).chunk(2, -1)))
        x = x.unflatten(1, (side, side)).unflatten(-1, (self.patch, self.patch, 8))
        x = x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # channel, (row, p), (column, q)
        return x[:, :4] if self.flow else x


def positions(side, width):
    """Sines and cosines of the column, then of the row (1, side * side, width)."""
    angles = torch.arange(side).double()[:, None] * 10000.0 ** -(torch.arange(width // 4).double() / (width // 4))
    one = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([one.repeat(side, 1), one.repeat_interleave(side, 0)], 1).float()[None]


TINY = DitConfig(64, depth=2, width=32, heads=2, classes=10)
FLOW = replace(TINY, flow=True)
CONFIGS = {
    "as published": TINY,
    "one block, one head, patches of one": DitConfig(32, depth=1, width=16, heads=1, patch=1, classes=3),
    "wide patches, more heads": DitConfig(128, depth=3, width=48, heads=4, patch=4, classes=5),
}


def dit(config, path):
    """A random network and its checkpoint; every parameter matters."""
    torch.manual_seed(0)
    network = Dit(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(network.state_dict(), path)
    return network


@pytest.fixture(scope="session")
def coder(tmp_path_factory):
    """The folder of a small autoencoder with the latents of Stable Diffusion 1."""
    return autoencoder(tmp_path_factory.mktemp("vae"))


def autoencoder(folder, levels=4, **fields):
    torch.manual_seed(1)
    AutoencoderKL(
        block_out_channels=(8,) * levels, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, norm_num_groups=4, **{"latent_channels": 4} | fields,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def converted(config, tmp_path, coder, dtype=torch.float32, **prompts):
    """The network as it was written down here, and as a prior."""
    reference = dit(config, tmp_path / "dit.pt").to(dtype)
    folder = convert_dit(tmp_path / "dit.pt", tmp_path / "deep" / "prior", config, autoencoder=coder)
    return reference, load_prior(folder, dtype, prompts=Prompts(**prompts))


PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_dit_is_the_same_function(config, dtype, tolerance, tmp_path, coder):
    texts = ("", "0", str(config.classes - 1))
    reference, prior = converted(config, tmp_path, coder, dtype, texts=texts)
    z = torch.randn(2, 4, config.image_size // 8, config.image_size // 8, dtype=dtype)
    seen = []
    with torch.no_grad():
        for text in texts:
            label = torch.tensor([int(text) if text else config.classes] * 2)
            for step in (0, 1, 250, 999):
                noise = prior.prompted(text).predict(z, torch.tensor((step + 1) / 1000, dtype=dtype)).noise
                expected = reference(z, torch.tensor([step, step]), label)[:, :4]
                assert expected.std() > 0.1
                assert (noise - expected).abs().max() < tolerance * expected.abs().max()
                seen.append(expected)
    assert all((a - b).abs().max() > 0.01 for k, a in enumerate(seen) for b in seen[:k])  # time and class matter


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("text", ["", "7"])
def test_sit_is_the_same_flow(text, dtype, tolerance, tmp_path, coder):
    """SiT: x = s data + (1 - s) noise, the network gives data - noise; here t = 1 - s."""
    reference, prior = converted(FLOW, tmp_path, coder, dtype, texts=(text,))
    assert isinstance(prior.schedule, LinearFlow)
    x, label = torch.randn(2, 4, 8, 8, dtype=dtype), torch.tensor([int(text or 10)] * 2)
    with torch.no_grad():
        for s in (0.0, 0.125, 0.5, 0.75, 1.0):
            clean, noise = prior.predict(x, torch.tensor(1 - s, dtype=dtype))
            drift = reference(x, torch.tensor([s, s]), label)
            assert drift.std() > 0.1
            for got, expected in ((clean, x + (1 - s) * drift), (noise, x - s * drift)):
                assert (got - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("config", [TINY, FLOW], ids=["dit", "sit"])
def test_guidance(config, tmp_path, coder):
    reference, prior = converted(config, tmp_path, coder, texts=("3",), scale=4.0)
    x = torch.randn(2, 4, 8, 8)
    time = torch.tensor([0.25] * 2 if config.flow else [749] * 2)  # of the reference; here both are t = 0.75
    with torch.no_grad():
        nothing, wanted = (reference(x, time, torch.tensor([label] * 2))[:, :4] for label in (10, 3))
        clean, noise = prior.predict(x, torch.tensor(0.75))
    guided = nothing + 4 * (wanted - nothing)
    torch.testing.assert_close(noise - clean if config.flow else noise, -guided if config.flow else guided)


def test_a_sample_of_sit_is_an_euler_loop_in_its_own_time(tmp_path, coder):
    reference, prior = converted(FLOW, tmp_path, coder, torch.float64, texts=("3",))
    noise, label = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.tensor([3, 3])
    x = noise
    with torch.no_grad():
        for k in range(8):
            x = x + reference(x, torch.tensor([k / 8] * 2), label) / 8
        z = follow_flow(prior, noise, torch.linspace(1, 0, 9, dtype=torch.float64))
    torch.testing.assert_close(z, x, atol=1e-10, rtol=0)
    assert (x - noise).abs().max() > 1
    assert prior.decode(z).shape == (2, 3, 64, 64)


def test_the_folder(tmp_path, coder, capfd):
    """Safetensors and configs, which diffusers reads without a word; as it was given where that exists already."""
    (tmp_path / "prior").mkdir()
    dit(TINY, tmp_path / "dit.pt")
    sha256 = hashlib.sha256((tmp_path / "dit.pt").read_bytes()).hexdigest()
    for config in (TINY, FLOW):
        name = "prior" if config is TINY else "flow"
        folder = convert_dit(
            str(tmp_path / "dit.pt"), str(tmp_path / name), config, autoencoder=str(coder), sha256=sha256.upper()
        )
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        model = ("config.json", "diffusion_pytorch_model.safetensors")
        assert files == {
            "scheduler/scheduler_config.json",
            *(f"{p}/{f}" for p in ("transformer", "vae") for f in model),
        }
        written = json.loads((folder / "transformer" / "config.json").read_text())["_class_name"]
        assert written == ("SiTTransformer2DModel" if config.flow else "DiTTransformer2DModel")
        assert (folder / "vae" / model[1]).read_bytes() == (coder / model[1]).read_bytes()
        capfd.readouterr()
        DiTTransformer2DModel.from_pretrained(folder / "transformer")
        assert "".join(capfd.readouterr()) == ""
    assert {path.name for path in tmp_path.iterdir()} == {"dit.pt", "prior", "flow"}
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha, sigma = load_prior(tmp_path / "prior").schedule(torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(alpha**2, (1 - betas[:300]).prod())
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


@pytest.mark.parametrize("name", DIT_MODELS)
def test_published_sizes(name):
    """Of meta tensors: all names and shapes fit; diffusers has the embedders of time and class in each block."""
    config = DIT_MODELS[name]
    with torch.device("meta"):
        reference, transformer = Dit(config), config.transformer()
    count = sum(parameter.numel() for parameter in reference.parameters() if parameter.requires_grad)
    assert round(count / 1e6, 1) == 674.8
    embedders = sum(p.numel() for part in (reference.t_embedder, reference.y_embedder) for p in part.parameters())
    assert sum(p.numel() for p in transformer.parameters()) == count + 27 * embedders == 749826464
    transformer.load_state_dict(transformer_weights(reference.state_dict(), config), assign=True)
    difference = positions(config.image_size // 16, 1152) - config.positions()
    assert difference.abs().max() < 1e-5


def test_half_precision_checkpoints_become_float32(tmp_path):
    weights = {name: value.half() for name, value in dit(TINY, tmp_path / "dit.pt").state_dict().items()}
    assert {value.dtype for value in transformer_weights(weights, TINY).values()} == {torch.float32}


# --- what is refused


def refused(tmp_path, sentence, coder, checkpoint="dit.pt", config=TINY, **fields):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=sentence) as caught:
        convert_dit(tmp_path / checkpoint, tmp_path / "prior", config, autoencoder=coder, **fields)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and ". " not in text
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


class Code:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_that_are_no_state_dicts(tmp_path, coder):
    refused(tmp_path, "dit.pt is not a file; give the checkpoint of a SiT network", coder, config=FLOW)
    torch.save({"x_embedder.proj.bias": Code(tmp_path / "run")}, tmp_path / "dit.pt")
    refused(tmp_path, "UnpicklingError.*: it is damaged, or holds code, which is never run", coder)
    refused(tmp_path, "has the sha256 [0-9a-f]{64}, expected is 00; download it again", coder, sha256="00")
    torch.save({"ema": {"x_embedder.proj.bias": torch.zeros(32)}}, tmp_path / "dit.pt")
    refused(tmp_path, "holds something else than named tensors; give the state dict of a DiT network", coder)


def test_checkpoints_of_other_networks(tmp_path, coder):
    weights = dit(TINY, tmp_path / "dit.pt").state_dict()
    refused(tmp_path, r"tensors are missing \(10, such as blocks.2.adaLN", coder, config=replace(TINY, depth=3))
    refused(
        tmp_path,
        r"pos_embed has the shape \(1, 16, 32\), expected is \(1, 64",
        coder,
        config=replace(TINY, image_size=128),
    )
    refused(
        tmp_path,
        r"not of the SiT network .*\(11, 32\), expected is \(21, 32\)",
        coder,
        config=replace(FLOW, classes=20),
    )
    torch.save(weights | {"projectors.0.weight": torch.zeros(8, 32)}, tmp_path / "dit.pt")
    refused(tmp_path, r"describes: tensors are unknown \(1, such as projectors.0.weight\); give", coder)
    del weights["blocks.1.attn.qkv.bias"]
    torch.save(weights, tmp_path / "dit.pt")
    refused(tmp_path, r"tensors are missing \(1, such as blocks.1.attn.qkv.bias\); give", coder)


def test_positions_of_another_kind(tmp_path, coder):
    """Rounding is let pass: that of the authors' running average amounts to 2e-4."""
    weights = dit(TINY, tmp_path / "dit.pt").state_dict()
    for shift, passes in ((2e-4, True), (2e-3, False), (math.nan, False)):
        torch.save(weights | {"pos_embed": weights["pos_embed"] + shift}, tmp_path / "dit.pt")
        if passes:
            convert_dit(tmp_path / "dit.pt", tmp_path / "rounded", TINY, autoencoder=coder)
        else:
            refused(tmp_path, "pos_embed is not the fixed one of DiT: it differs", coder)


def test_other_autoencoders(tmp_path, coder):
    dit(TINY, tmp_path / "dit.pt")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path, "is not the folder of an autoencoder: it has no config.json; give the folder of", tmp_path / "empty"
    )
    refused(tmp_path, "is not the folder of an autoencoder", tmp_path / "none")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    refused(tmp_path, "holds a 'UNet2DModel' where an autoencoder is expected", tmp_path / "unet")
    others = {
        "three levels": ({"levels": 3}, r"\(4, 4, 0.18215\)"),
        "SDXL": ({"scaling_factor": 0.13025}, r"\(4, 8, 0.13025\)"),
        "SD3": ({"latent_channels": 16}, r"\(16, 8, 0.18215\)"),
    }
    for name, (fields, got) in others.items():
        other = autoencoder(tmp_path / name, **fields)
        refused(tmp_path, rf"of other latents, with \(channels, factor, scale\) = {got} where \(4, 8, 0.18215\)", other)
    (tmp_path / "SD3" / "diffusion_pytorch_model.safetensors").unlink()
    refused(tmp_path, "does not hold the weights of the AutoencoderKL", tmp_path / "SD3")


@pytest.mark.parametrize("is_file", [False, True])
def test_nothing_is_overwritten(is_file, tmp_path, coder):
    dit(TINY, tmp_path / "dit.pt")
    kept = tmp_path / "prior" if is_file else tmp_path / "prior" / "notes.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    refused(tmp_path, "exists and is not an empty folder", coder)
    assert kept.read_text() == "mine"


def test_a_failure_while_writing_leaves_nothing(tmp_path, coder, monkeypatch):
    dit(TINY, tmp_path / "dit.pt")

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("diffusers.AutoencoderKL.save_pretrained", fail)
    with pytest.raises(OSError, match="No space"):
        convert_dit(tmp_path / "dit.pt", tmp_path / "prior", TINY, autoencoder=coder)
    assert [path.name for path in tmp_path.iterdir()] == ["dit.pt"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image_size": 72}, r"an image_size that 8 \* patch divides"),
        ({"heads": 3}, "a width that heads divides"),
        ({"width": 34}, "a width that 4 divides"),
    ],
)
def test_configs_that_cannot_be(fields, sentence):
    with pytest.raises(ValueError, match=f"give it {sentence}"):
        replace(TINY, **fields)


def test_convert_command(tmp_path, coder, monkeypatch):
    monkeypatch.setitem(DIT_MODELS, "sit-xl-256", FLOW)
    monkeypatch.chdir(tmp_path)
    dit(FLOW, tmp_path / "sit.pt")

    def convert(*words):
        run = CliRunner().invoke(app, ["prior", "convert", *map(str, words), "-o", "out"])
        return run.exit_code, " ".join(run.output.split())

    for words, sentence in {
        ("sit.pt", "--model", "sit-xl-256"): "The model sit-xl-256 is one of latents; say with --autoencoder where",
        ("sit.pt", "--model", "ffhq-256", "--autoencoder", coder): "is one of pixels and has no autoencoder; leave",
        (coder, "--autoencoder", coder): "--model, --sha256 and --autoencoder are for a .pt file",
        ("sit.pt", "--autoencoder", coder): "sit-xl-256; got None.",
        ("sit.pt", "--model", "dit-xl-256", "--autoencoder", coder): "not of the DiT network that the config describes",
    }.items():
        code, output = convert(*words)
        assert code == 2 and sentence in output and output.count("Error:") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["sit.pt"]
    code, output = convert("sit.pt", "--model", "sit-xl-256", "--autoencoder", coder)
    assert code == 0 and "converted sit.pt -> out; use it with --prior out" in output
    assert load_prior("out").predict(torch.randn(1, 4, 8, 8), torch.tensor(0.5)).clean.isfinite().all()
