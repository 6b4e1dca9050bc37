"""The training of the bundled priors: the larger network, the loss, and a loop that can be stopped."""

import argparse
import math
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from training_pictures import training_set

from invsolve.priors import load_prior
from invsolve.priors.network import ResidualUNet

TINY = ["--widths", 8, 12, "--blocks", 1, 1, "--heads", 2, "--crop", 16, "--batch", 2, "--large", 1]


@pytest.fixture
def data(tmp_path):
    return training_set(tmp_path / "set")


def randomised(network):
    """Every parameter random, those that begin at zero, too."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("config", [{"blocks": (2, 2, 1, 1)}, {"blocks": (3, 2, 2, 1), "attention_heads": 2}])
def test_a_grown_network_gives_what_the_smaller_one_gives(scripts, config):
    from growing import grow

    small = randomised(ResidualUNet(widths=(8, 12, 16), blocks=(2, 2, 1)))
    large = ResidualUNet(widths=(8, 12, 16, 20), **config)
    half = {name: weight.half() for name, weight in small.state_dict().items()}
    grow(large, half)
    small.load_state_dict(half)
    x = torch.randn(2, 3, 32, 48)
    for t in (20.0, 600.0):
        torch.testing.assert_close(large(x, t).sample, small(x, t).sample)
    torch.nn.init.ones_(large.up[2].weight)  # the new level is there, and its features differ from zero
    assert not torch.allclose(large(x, 20.0).sample, small(x, 20.0).sample)


def test_growing_says_what_does_not_fit(scripts):
    from growing import grow

    weights = ResidualUNet(widths=(8, 12), blocks=(2, 1)).state_dict()
    with pytest.raises(ValueError, match=r"have encoder\.0\.1\..*of shape.*this network nothing; give --widths"):
        grow(ResidualUNet(widths=(8, 12, 16), blocks=(1, 1, 1)), weights)
    with pytest.raises(ValueError, match=r"have conv_in\.weight of shape \(8, .*this network \(10, "):
        grow(ResidualUNet(widths=(10, 12, 16), blocks=(2, 1, 1)), weights)


def test_attention_sees_the_whole_picture_and_begins_as_the_identity():
    torch.manual_seed(0)
    plain = ResidualUNet(widths=(8, 12), blocks=(1, 1))
    network = ResidualUNet(widths=(8, 12), blocks=(1, 1), attention_heads=3)
    network.load_state_dict(randomised(plain).state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(network(x, 300.0).sample, plain(x, 300.0).sample)
    torch.nn.init.normal_(network.attention[0].out.weight)
    other = x.clone()
    other[..., :4, :4] += 1
    changed = [(net(x, 300.0).sample != net(other, 300.0).sample)[..., 48:, 48:].any() for net in (plain, network)]
    assert changed == [False, True]
    with pytest.raises(ValueError, match=r"attention_heads must divide the last width, 12, got 5\."):
        ResidualUNet(widths=(8, 12), blocks=(1, 1), attention_heads=5)


def test_attention_is_that_of_its_formula():
    """Softmax of scaled cosines between positions, one head after the other."""
    from invsolve.priors.network import SelfAttention

    layer, x = randomised(SelfAttention(6, 2)).double(), torch.randn(1, 6, 2, 3).double()
    q, k, v = (layer.qkv.weight[:, :, 0, 0] @ x[0].flatten(1)).split(6)
    heads = []
    for i, part in enumerate((slice(0, 3), slice(3, 6))):
        cosines = (q[part] / q[part].norm(dim=0)).T @ (k[part] / k[part].norm(dim=0))
        heads.append(v[part] @ (layer.sharpness[i] * cosines).softmax(dim=1).T)
    wanted = x + (layer.out.weight[:, :, 0, 0] @ torch.cat(heads)).reshape(x.shape)
    torch.testing.assert_close(layer(x), wanted)


def test_weights_stored_in_half_precision_are_computed_in_float32(scripts, tmp_path):
    from train_natural import save

    network = randomised(ResidualUNet(widths=(8, 12), blocks=(1, 1), attention_heads=2))
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    save(network, tmp_path)
    stored = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    loaded = load_prior(tmp_path, "float32").backbone.network
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    network.load_state_dict({name: weight.float() for name, weight in stored.items()})
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(x, 300.0).sample, network(x, 300.0).sample)


def test_orthogonalised_matrices_have_singular_values_near_one(scripts):
    from muon import orthogonalise

    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8), (1, 16, 16)):
        g = torch.randn(shape)
        values = torch.linalg.svdvals(orthogonalise(g))
        assert values.shape[-1] == min(shape[1:])
        assert values.amax() < 1.25
        assert values[:, : values.shape[1] // 2].amin() > 0.65
        u, _, vh = torch.linalg.svd(g, full_matrices=False)
        assert (orthogonalise(g) * (u @ vh)).sum() > 0.85 * shape[0] * min(shape[1:])


def test_the_rates_are_constant_and_then_fall_to_zero(scripts):
    from training import decay

    assert [decay(t, 20, 60) for t in (0, 20, 30, 60, 70)] == [1, 1, 0.75, 0, 0]
    assert [decay(t, 0, 60) for t in (0, 30)] == [1, 0.5]
    assert decay(1e6, 0, math.inf) == 1


def test_the_clock_of_the_processor_stands_still_in_a_pause(scripts):
    from training import Clock

    clock = Clock(3.0, torch.device("cpu"))
    time.sleep(0.3)
    assert 3.0 <= clock.minutes() < 3.0 + 0.25 / 60
    until = time.process_time() + 0.3 * torch.get_num_threads()
    while time.process_time() < until:
        pass
    assert clock.minutes() >= 3.0 + 0.3 / 60


def test_the_loss_counts_easy_and_hard_crops_alike(scripts):
    from train_natural import errors, flow_loss

    hard, easy = torch.tensor([1.0, 0.5]), torch.tensor([0.01])
    better = flow_loss(hard, 0.9 * easy) - flow_loss(hard, easy)
    assert better == pytest.approx(math.log(0.9) / 3, rel=0.1)
    torch.manual_seed(0)
    x = 0.5 * torch.randn(64, 3, 16, 16)  # white: no network can beat F = 0
    assert errors(lambda x, _: torch.zeros_like(x), x, 0.5, -1.6, 1.2).mean() == pytest.approx(1, abs=0.05)


def train_natural(monkeypatch, *arguments):
    import train_natural as script

    monkeypatch.setattr("sys.argv", ["train_natural", *map(str, arguments)])
    script.main()


def test_a_training_stops_and_goes_on(scripts, data, tmp_path, monkeypatch, capsys):
    import training

    options = ["--data", data, "--out", tmp_path / "out", *TINY]
    train_natural(monkeypatch, *options, "--minutes", 0.02)
    file = tmp_path / "out.state" / "state.pt"
    state = torch.load(file, weights_only=True)
    assert state["step"] >= 2
    assert state["minutes"] >= 0.02
    out = capsys.readouterr().out
    assert "validation sigma 15: " in out
    assert load_prior(tmp_path / "out").backbone.network.config["attention_heads"] == 2
    one = training._Training.step

    def step(self, loss_of):
        one(self, loss_of)
        if self.n == state["step"] + 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training._Training, "step", step)
    handler = signal.getsignal(signal.SIGTERM)
    train_natural(monkeypatch, *options, "--minutes", "inf", "--resume")
    assert signal.getsignal(signal.SIGTERM) == handler
    later = torch.load(file, weights_only=True)
    assert later["step"] == state["step"] + 3
    assert later["minutes"] > state["minutes"]
    for name, weight in state["network"].items():
        if weight.ndim == 4:
            assert not torch.equal(weight, later["network"][name]), name
    moments = list(later["optimizers"][1]["state"].values())
    assert {int(entry["step"]) for entry in moments} == {later["step"]}


def test_a_training_from_weights_begins_with_them(scripts, data, tmp_path, monkeypatch):
    from train_natural import save

    small = randomised(ResidualUNet(widths=(8,), blocks=(1,)))
    save(small, tmp_path / "small")
    out = tmp_path / "out"
    train_natural(monkeypatch, "--data", data, "--out", out, *TINY, "--start", tmp_path / "small", "--minutes", 0)
    x = torch.randn(1, 3, 16, 16)
    old, new = (load_prior(folder, "float32").backbone.network(x, 300.0).sample for folder in (tmp_path / "small", out))
    torch.testing.assert_close(new, old)


def test_spikes_and_what_is_not_finite_are_left_out(scripts, tmp_path, capsys):
    from training import _Training

    network = torch.nn.Linear(2, 2)
    args = argparse.Namespace(
        out=tmp_path / "x", lr=0.01, lr_adam=0.01, resume=False, device=torch.device("cpu"), seed=0,
        minutes=math.inf, decay_from=0.0,
    )  # fmt: skip
    training = _Training(network, lambda name, _: name == "weight", lambda *_: None, args, 0.0)
    losses = [-2 + 0.1 * math.sin(i) for i in range(50)]
    for value in [*losses, math.nan, 5.0, -2.0, math.inf]:
        training.step(lambda value=value: value + 0 * network(torch.ones(2)).sum())
    assert training.n == 51
    assert capsys.readouterr().out.count("skipped") == 3


def test_options_that_cannot_be_are_a_sentence(scripts, data, tmp_path, monkeypatch, capsys):
    for arguments, words in (
        (["--device", "nonsense"], "torch cannot compute on 'nonsense' here; take cpu"),
        (["--data", tmp_path / "none"], "holds no photos/*; make it with scripts/make_training_set.py --out "),
    ):
        with pytest.raises(SystemExit) as exit_:
            train_natural(monkeypatch, "--data", data, "--out", tmp_path / "out", *TINY, *arguments)
        assert exit_.value.code == 2
        assert words in capsys.readouterr().err


def test_the_latent_prior_trains(scripts, random_lpips, data, tmp_path, monkeypatch):
    options = ["--data", str(data), "--crop", "32", "--batch", "1", "--minutes", "0.001"]
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)  # minutes of compiling
    monkeypatch.setattr("sys.argv", ["x", *options, "--out", str(tmp_path / "out" / "vae")])
    __import__("train_autoencoder").main()
    flow = ["--out", str(tmp_path / "out"), "--widths", "8", "--blocks", "1"]
    monkeypatch.setattr("sys.argv", ["x", *options, *flow])
    __import__("train_latent_flow").main()
    for file in (tmp_path / "out" / "vae.state" / "state.pt", tmp_path / "out.state" / "state.pt"):
        assert torch.load(file, weights_only=True)["step"] >= 1
    z = torch.randn(1, 8, 8, 8)  # a latent
    assert torch.isfinite(load_prior(tmp_path / "out").predict(z, torch.tensor(0.5)).clean).all()
