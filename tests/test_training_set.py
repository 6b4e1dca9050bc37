"""The pictures of the training and their crops."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from training_pictures import picture, training_set


@pytest.fixture
def data(tmp_path):
    return training_set(tmp_path / "set")


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
