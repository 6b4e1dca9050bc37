"""The training of the bundled priors: pictures, crops, the larger network, and a loop that can be stopped."""

import argparse
import json
import math
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from invsolve.priors import load_prior
from invsolve.priors.network import ResidualUNet

TINY = ["--widths", 8, 12, "--blocks", 1, 1, "--heads", 2, "--crop", 16, "--batch", 2, "--large", 1]


def picture(seed, size=(320, 300)):
    """A picture without two equal neighbourhoods."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def data(tmp_path):
    """A training set of three photographs and a cut-out."""
    folder = tmp_path / "set"
    for kind in ("photos", "validation", "stamps"):
        (folder / kind).mkdir(parents=True)
    for i in range(3):
        picture(i).save(folder / "photos" / f"{i}.png")
    picture(3).save(folder / "validation" / "3.png")
    stamp = picture(4, (40, 60)).convert("RGBA")
    stamp.putalpha(255)
    stamp.save(folder / "stamps" / "stamp.png")
    return folder


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
    loaded = load_prior(tmp_path).backbone.network
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    network.load_state_dict({name: weight.float() for name, weight in stored.items()})
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(x, 300.0).sample, network(x, 300.0).sample)


def test_crops_are_windows_of_the_photographs_mirrored_and_turned(scripts, data, monkeypatch):
    import crops

    monkeypatch.setattr(crops, "SHORT_SIDES", (40, 50))
    for share in ("STAMPED", "PERMUTED"):
        monkeypatch.setattr(crops, share, 0)
    torch.manual_seed(0)
    source = crops.Crops(data)
    batch = (source.batch(40, 24) + 1) * 127.5
    levels = [
        source.bytes[start : start + 3 * h * w].reshape(h, w, 3).permute(2, 0, 1)
        for start, (h, w) in zip(source.starts.tolist(), source.sizes.tolist(), strict=True)
    ]
    turns = set()
    for crop in batch.round().to(torch.uint8):
        found = set()
        for k in range(4):
            for mirrored in (False, True):
                turned = torch.rot90(crop.flip(2) if mirrored else crop, k, (1, 2))
                for level in levels:
                    same = (level[:, :-23, :-23] == turned[:, :1, :1]).all(0).nonzero()
                    for top, left in same.tolist():
                        if torch.equal(level[:, top : top + 24, left : left + 24], turned):
                            found.add((k, mirrored))
        assert len(found) == 1
        turns |= found
    assert len(turns) == 8


def test_crops_hold_what_they_promise(scripts, data, monkeypatch):
    import crops

    torch.manual_seed(0)
    source = crops.Crops(data)
    assert sorted(set(source.sizes.amin(1).tolist())) == [200, 225]  # 225 is SHARP of the 300 pixels
    first = source.batch(5, 32)
    assert first.shape == (5, 3, 32, 32)
    assert -1 <= first.min() < -0.5 < 0.5 < first.max() <= 1
    torch.manual_seed(0)
    again = crops.Crops(data)  # from the cache
    assert torch.equal(again.bytes, source.bytes)
    assert torch.equal(again.batch(5, 32), first)
    with pytest.raises(ValueError, match=r"No training picture holds a crop of 256 pixels; take smaller crops\."):
        source.batch(1, 256)
    monkeypatch.setattr(crops, "SMALL", 210)
    small = source._windows(200, 32, small=True).flatten()
    assert len(small) == 200 * 3 * 32 * 32
    assert (source._weight(33, small=True) > 0).tolist() == (source.sizes.amin(1) == 200).tolist()
    picture(9).save(data / "photos" / "9.png")
    assert len(crops.Crops(data).sizes) == len(source.sizes) + 2
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no photos/\*; make it with"):
        crops.Crops(data / "nowhere")


def test_cut_outs_lie_on_top_where_they_are_opaque(scripts, data):
    import crops

    torch.manual_seed(0)
    source = crops.Crops(data)
    source.stamps[:, :3], source.stamps[:, 3, :, 30:] = 200, 0  # opaque in 60 rows and 30 columns
    under = torch.full((64, 3, 48, 48), 10, dtype=torch.uint8)
    pasted = source._paste(under)
    assert set(pasted.unique().tolist()) == {10, 200}
    share = (pasted == 200).float().mean(dim=(1, 2, 3))
    assert share.min() >= 24 * 14 / 48**2  # at least half a crop of rows and of columns is used, 10 of them transparent
    assert share.max() <= 30 / 48
    assert (pasted == pasted[:, :1]).all()


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
    import time

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
    old, new = (load_prior(folder).backbone.network(x, 300.0).sample for folder in (tmp_path / "small", out))
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


def test_a_set_of_photographs_is_split_and_listed(scripts, tmp_path, monkeypatch, capsys):
    import make_training_set as script

    folder, entries = tmp_path / "given", []
    folder.mkdir()
    names = [f"{i}.png" for i in range(40)] + [f"{min(script.LEFT_OUT)}.png"]
    for i, name in enumerate(names):
        picture(i, (200, 180)).save(folder / name)
        entries.append({"file": name, "repository": "a/b", "path": f"p/{name}", "licence": "CC0-1.0", "size": [1, 2]})
    (folder / "unlisted.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "sources.json").write_text(json.dumps(entries))
    known = script.Picture("known.png", (folder / "3.png").read_bytes(), {"package": "mate-backgrounds"})
    tiny = script.Picture("tiny.png", stored(tmp_path, picture(0, (100, 80))), {"package": "mate-backgrounds"})
    flat = script.Picture("flat.png", stored(tmp_path, Image.new("RGB", (300, 300))), {"package": script.GCOMPRIS})
    broken = script.Picture("broken.png", b"RIFF", {"package": script.GCOMPRIS})
    monkeypatch.setattr(script, "first_pictures", lambda _: [known, tiny, flat, broken])
    monkeypatch.setattr(script, "new_pictures", lambda _: [])
    arguments = ["x", "--out", str(tmp_path / "set"), "--photos", str(folder)]
    monkeypatch.setattr("sys.argv", arguments)
    script.main()
    sources = json.loads((tmp_path / "set" / "sources.json").read_text())
    kept = {kind: {p.name for p in (tmp_path / "set" / kind).iterdir()} for kind in ("photos", "validation", "stamps")}
    assert kept["photos"] | kept["validation"] == {"known.png", *names[:-1]}
    assert "known.png" in kept["photos"]
    assert not kept["photos"] & kept["validation"]
    assert 1 <= len(kept["validation"]) <= 16
    assert kept["stamps"] == set()
    assert sorted(entry["file"].split("/")[1] for entry in sources) == sorted({"known.png", *names[:-1]})
    assert {entry["licence"] for entry in sources if "repository" in entry} == {"CC0-1.0"}
    with pytest.raises(SystemExit) as exit_:
        script.main()
    assert exit_.value.code == 2
    assert "photos exists, and a picture of an older set could stay in it; delete it first" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["x", "--out", str(tmp_path / "two"), "--photos", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main()
    assert "holds no sources.json" in capsys.readouterr().err


def stored(folder, image):
    image.save(folder / "stored.png")
    return (folder / "stored.png").read_bytes()


def test_pictures_are_found_inside_resource_files(scripts, tmp_path):
    import make_training_set as script

    image = picture(1, (200, 180))
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "a.webp")
    jpeg, webp = ((tmp_path / name).read_bytes() for name in ("a.jpg", "a.webp"))
    (tmp_path / "wanted.rcc").write_bytes(b"head" + webp + b"between" + jpeg + b"\xff\xd8\xff\xe0 by chance")
    (tmp_path / "other.rcc").write_bytes(webp)
    found = dict(script.in_resources(tmp_path, ("wanted",)))
    assert found[f"wanted-{4:08d}.webp"] == webp
    assert found[f"wanted-{11 + len(webp):08d}.jpg"] == jpeg
    pictures = [script.opened(data) for data in found.values()]
    assert [p.size for p in pictures if p] == [(200, 180)] * 2


def test_validation_pictures_are_middles_of_the_photographs(scripts, data):
    from pictures import validation

    picture(5, (700, 500)).save(data / "validation" / "5.png")
    x = validation(data)
    assert x.shape == (2, 3, 256, 256)
    photo = Image.open(data / "validation" / "5.png").resize((672, 480), Image.Resampling.LANCZOS)
    wanted = np.asarray(photo.crop((208, 112, 464, 368)))
    assert np.array_equal(((x[1] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), wanted)
    with pytest.raises(FileNotFoundError, match="holds no validation/"):
        validation(data / "photos")
