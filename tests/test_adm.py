"""ADM checkpoints: a second writing of the network, by the official names of its parameters, against the converted."""

import hashlib
import math
import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from invsolve.priors import load_prior
from invsolve.priors.adm import ADM_MODELS, AdmConfig, convert_adm, unet_weights


class Residual(nn.Module):
    """Normalise, SiLU, convolve; scale and shift by the time; SiLU, convolve; with a change of resolution or none."""

    def __init__(self, width, out, time, change=None):
        super().__init__()
        self.change = change or (lambda x: x)
        self.in_layers = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x, emb):
        norm, act, conv = self.in_layers
        h = conv(self.change(act(norm(x))))
        scale, shift = self.emb_layers(emb)[:, :, None, None].tensor_split(2, dim=1)
        norm, *rest = self.out_layers
        h = norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.change(x)) + h


class Attention(nn.Module):
    """Heads one after the other; the rows of a head are its queries, its keys and its values."""

    def __init__(self, width, head):
        super().__init__()
        self.head = head
        self.norm, self.qkv = nn.GroupNorm(32, width), nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x, _):
        out = []
        for rows in self.qkv(self.norm(x).flatten(2)).split(3 * self.head, dim=1):
            q, k, v = rows.split(self.head, dim=1)
            weight = (q.mT @ k / self.head**0.5).softmax(-1)  # (B, query, key)
            out.append(v @ weight.mT)
        return x + self.proj_out(torch.cat(out, dim=1)).view_as(x)


class Convolution(nn.Conv2d):
    def forward(self, x, _):
        return super().forward(x)


def halve(x):
    return F.avg_pool2d(x, 2)


def double(x):
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


class Adm(nn.Module):
    """The U-Net; `plan` follows what is pushed on the stack of skips on the way down."""

    def __init__(self, config: AdmConfig):
        super().__init__()
        c, time, head = config.channels, 4 * config.channels, config.head_channels
        self.channels = c
        self.time_embed = nn.Sequential(nn.Linear(c, time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks = nn.ModuleList([nn.ModuleList([Convolution(3, c, 3, padding=1)])])
        side, width, plan, last = config.image_size, c, [c], len(config.channel_multiples) - 1
        for level, multiple in enumerate(config.channel_multiples):
            for _ in range(config.blocks):
                layers = [Residual(width, width := c * multiple, time)]
                layers += [Attention(width, head)] * (side in config.attention_resolutions)
                self.input_blocks.append(nn.ModuleList(layers))
                plan.append(width)
            if level < last:
                self.input_blocks.append(nn.ModuleList([Residual(width, width, time, halve)]))
                plan.append(width)
                side //= 2
        self.middle_block = nn.ModuleList(
            [Residual(width, width, time), Attention(width, head), Residual(width, width, time)]
        )
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for block in range(config.blocks + 1):
                layers = [Residual(width + plan.pop(), width := c * config.channel_multiples[level], time)]
                layers += [Attention(width, head)] * (side in config.attention_resolutions)
                if level > 0 and block == config.blocks:
                    layers.append(Residual(width, width, time, double))
                    side *= 2
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, 6, 3, padding=1))

    def forward(self, x, timestep):
        half = self.channels // 2
        angles = timestep.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype))
        skips = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x, emb)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, emb)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in block:
                x = layer(x, emb)
        return self.out(x)


TINY = AdmConfig(16, 32, (1, 2), blocks=1, attention_resolutions=(8,), head_channels=16)
CONFIGS = {
    "two levels": TINY,
    "attention on the first and in the middle": AdmConfig(16, 32, (1, 2, 3), 2, (16, 8), head_channels=8),
    "no attention but in the middle": AdmConfig(32, 32, (1, 1, 2), 1, (), head_channels=64),
    "one head, four levels, as ImageNet": AdmConfig(32, 32, (1, 1, 2, 2), 2, (16, 8, 4), head_channels=32),
    "one level": AdmConfig(8, 64, (1,), 1, (8,), head_channels=16),
}


def adm(config, path):
    """A random network and its checkpoint; every parameter matters."""
    torch.manual_seed(0)
    network = Adm(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(network.state_dict(), path)
    return network


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_converted_network_is_the_same_function(config, dtype, tolerance, tmp_path):
    reference = adm(config, tmp_path / "adm.pt").to(dtype)
    folder = convert_adm(tmp_path / "adm.pt", tmp_path / "deep" / "prior", config)
    prior = load_prior(folder, dtype)
    z = torch.randn(2, 3, config.image_size, config.image_size, dtype=dtype)
    with torch.no_grad():
        for step in (0, 1, 250, 999):
            noise = prior.predict(z, torch.tensor((step + 1) / 1000, dtype=dtype)).noise
            expected = reference(z, torch.tensor([step, step]))[:, :3]
            assert expected.std() > 0.1
            assert (noise - expected).abs().max() < tolerance * expected.abs().max()


def test_the_folder_is_a_pipeline_in_safetensors_with_the_betas_of_the_training(tmp_path):
    adm(TINY, tmp_path / "adm.pt")
    sha256 = hashlib.sha256((tmp_path / "adm.pt").read_bytes()).hexdigest()
    (tmp_path / "prior").mkdir()
    folder = convert_adm(str(tmp_path / "adm.pt"), str(tmp_path / "prior"), TINY, sha256=sha256.upper())
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("model_index.json", "scheduler/scheduler_config.json"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    }
    assert {path.name for path in tmp_path.iterdir()} == {"adm.pt", "prior"}
    prior = load_prior(folder)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha, sigma = prior.schedule(torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(alpha**2, (1 - betas[:300]).prod())
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def test_half_precision_checkpoints_become_float32(tmp_path):
    weights = {name: value.half() for name, value in adm(TINY, tmp_path / "adm.pt").state_dict().items()}
    assert {value.dtype for value in unet_weights(weights, TINY).values()} == {torch.float32}


@pytest.mark.parametrize(("name", "millions"), [("ffhq-256", 93.6), ("imagenet-256", 552.8)])
def test_published_sizes(name, millions):
    """Of meta tensors: all names and shapes fit, and only the variance is lost."""
    config = ADM_MODELS[name]
    with torch.device("meta"):
        reference, unet = Adm(config), config.unet()
        out = unet(torch.zeros(1, 3, 256, 256), torch.zeros(1)).sample
    assert out.shape == (1, 3, 256, 256)
    count = sum(parameter.numel() for parameter in reference.parameters())
    assert round(count / 1e6, 1) == millions
    variance = 3 * (9 * config.channels + 1)
    assert sum(parameter.numel() for parameter in unet.parameters()) == count - variance
    unet.load_state_dict(unet_weights(reference.state_dict(), config), assign=True)


def refused(tmp_path, sentence, checkpoint="adm.pt", config=TINY, **fields):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=sentence) as caught:
        convert_adm(tmp_path / checkpoint, tmp_path / "prior", config, **fields)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and ". " not in text
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_another_checksum(tmp_path):
    adm(TINY, tmp_path / "adm.pt")
    refused(tmp_path, "has the sha256 [0-9a-f]{64}, expected is 00; download it again", sha256="00")


class Code:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"out.2.bias": Code(tmp_path / "run")}, tmp_path / "adm.pt")
    refused(tmp_path, "UnpicklingError.*: it is damaged, or holds code, which is never run")


def test_files_that_are_no_state_dicts(tmp_path):
    refused(tmp_path, "adm.pt is not a file")
    (tmp_path / "adm.pt").write_bytes(b"<html>quota exceeded</html>")
    refused(tmp_path, "cannot be read as tensors")
    torch.save({"state_dict": {"out.2.bias": torch.zeros(6)}}, tmp_path / "adm.pt")
    refused(tmp_path, "holds something else than named tensors")


def test_checkpoints_of_other_networks(tmp_path):
    weights = adm(TINY, tmp_path / "adm.pt").state_dict()
    refused(tmp_path, r"tensors are missing \(\d+, such as .* and unknown", config=replace(TINY, blocks=2))
    refused(tmp_path, r"has the shape \(128, 32\), expected is \(256, 64\)", config=replace(TINY, channels=64))
    torch.save(weights | {"label_emb.weight": torch.zeros(1000, 128)}, tmp_path / "adm.pt")
    refused(tmp_path, r"describes: tensors are unknown \(1, such as label_emb.weight\); give")
    del weights["out.0.bias"], weights["middle_block.1.qkv.weight"]
    torch.save(weights, tmp_path / "adm.pt")
    refused(tmp_path, r"tensors are missing \(2, such as middle_block.1.qkv.weight\); give")


@pytest.mark.parametrize("is_file", [False, True])
def test_nothing_is_overwritten(is_file, tmp_path):
    adm(TINY, tmp_path / "adm.pt")
    kept = tmp_path / "prior" if is_file else tmp_path / "prior" / "notes.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    refused(tmp_path, "exists and is not an empty folder")
    assert kept.read_text() == "mine"


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    adm(TINY, tmp_path / "adm.pt")

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("diffusers.DDPMScheduler.save_pretrained", fail)
    with pytest.raises(OSError, match="No space"):
        convert_adm(tmp_path / "adm.pt", tmp_path / "prior", TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["adm.pt"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"channel_multiples": (2, 2)}, "channel_multiples that begin with 1"),
        ({"channels": 48}, "channels that 32 divides"),
        ({"image_size": 17}, "an image_size that halves once per level"),
        ({"head_channels": 48}, "attention on widths that head_channels divides"),
    ],
)
def test_configs_that_cannot_be(fields, sentence):
    with pytest.raises(ValueError, match=f"give it {sentence}"):
        replace(TINY, **fields)
