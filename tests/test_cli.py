"""The command line: what it writes, what it keeps, how it resumes, and one sentence for everything that goes wrong."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from typer.testing import CliRunner

import invsolve as package
from invsolve.bench import demo
from invsolve.cli import restore as cli_restore
from invsolve.cli.app import app
from invsolve.devices import find_device
from invsolve.errors import is_expected, sentence
from invsolve.files.images import load_image
from invsolve.operators import OPERATORS, build_operator
from invsolve.priors import PRIORS, load_prior
from invsolve.priors.identity import prior_sha256
from invsolve.solvers import SOLVERS, build_solver
from invsolve.spec import parse_spec

ROOT = Path(__file__).parent.parent
FAST = ["--prior", "gaussian", "--steps", "3", "--device", "cpu"]
SIZE = (24, 20)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invsolve(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def restore(*words: str) -> Any:
    return invsolve("restore", *words, *FAST)


def picture(path: str, channels: int = 3, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Write a smooth PNG with a little noise; returns its values."""
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    ramp = np.linspace(0.2, 0.8, SIZE[0])[:, None, None] + 0.05 * rng.standard_normal((*SIZE, channels))
    values = (ramp.clip(0, 1) * top).astype(dtype)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(imagecodecs.png_encode(values))
    return values


def mask(path: str, size: tuple[int, int] = SIZE) -> None:
    values = np.zeros(size, np.uint8)
    values[4:8, 3:9] = 255
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def files(root: str | Path = ".") -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def record(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


# --- what is written --------------------------------------------------------------------------------------------------


def test_one_picture_with_record_and_provenance(folder: Path) -> None:
    picture("a.png")
    result = restore(str(folder / "a.png"), "--operator", "blur(sigma=1)", "--sigma", "5/255", "--seed", "7")
    assert result.exit_code == 0, result.output
    assert sorted(files("restored")) == ["a.json", "a.png"]
    text = record("restored/a.json")
    assert text["operator"] == {"name": "blur", "sigma": 1.0, "boundary": "unknown"}
    assert text["solver"] == {"name": "diffpir", "weight": 0.6, "zeta": 1.0, "data_std": 1.0}
    assert text["sigma"] == pytest.approx(10 / 255)
    assert text["stats"]["network"] == 3
    assert text["outputs"] == {"a.png": hashlib.sha256(Path("restored/a.png").read_bytes()).hexdigest()}
    assert len(text["sha256"]["input"]) == 64
    with Image.open("restored/a.png") as out:
        out.load()
        provenance = json.loads(out.text["invsolve"])
    assert provenance["command"] == text["command"]
    for content in files("restored").values():
        assert str(folder).encode() not in content


@pytest.mark.parametrize(
    "words",
    [
        ["--operator", "blur(sigma=1)", "--sigma", "0.1"],
        ["--operator", "blur", "--sigma", "auto", "--samples", "2", "--seed", "5"],
        ["--operator", "downsample(factor=2)", "--noise", "gaussian(sigma=0.1)", "--solver", "flowdps(step_size=1)"],
        ["--mask", "masks/hole.png", "--solver", "ddnm"],
        ["--kernel", "masks/kernel.png", "--dtype", "float64"],
        ["--operator", "jpeg", "--solver", "dps"],
        ["--operator", "jpeg", "--max-pixels", "1000"],
    ],
)
def test_the_recorded_command_gives_the_same_bytes(words: list[str]) -> None:
    picture("a.png")
    with Image.open("a.png") as source:
        source.save("in.jpg", quality=30)
    mask("masks/hole.png")
    Image.fromarray(np.eye(5, dtype=np.uint8) * 255).save("masks/kernel.png")
    assert restore("in.jpg", *words, "-o", "one").exit_code == 0
    for name in ("hole.png", "kernel.png"):
        Path("masks", name).rename(name)  # the command is typed beside its files
    command = shlex.split(record("one/in.json")["command"])
    assert command[0] == "invsolve"
    assert invsolve(*command[1:], "-o", "two").exit_code == 0
    pictures = {name: data for name, data in files("one").items() if name.endswith(".png")}
    assert pictures == {name: data for name, data in files("two").items() if name.endswith(".png")}
    assert record("one/in.json")["key"] == record("two/in.json")["key"]


def test_samples_mean_and_spread() -> None:
    picture("a.png")
    assert restore("a.png", "--mask", "m.png", "--samples", "3", "--batch-size", "2").exit_code == 2
    mask("m.png")
    assert restore("a.png", "--mask", "m.png", "--samples", "3", "--batch-size", "2").exit_code == 0
    names = ["a.json", "a.png", "a_sample01.png", "a_sample02.png", "a_sample03.png", "a_std.png"]
    assert sorted(files("restored")) == names
    load = {name: load_image(f"restored/{name}").tensor for name in names[1:]}
    mean = (load["a_sample01.png"] + load["a_sample02.png"] + load["a_sample03.png"]) / 3
    assert (load["a.png"] - mean).abs().max() < 3 / 255
    assert load["a_std.png"].shape[0] == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_bit_depth_grey_and_alpha_stay(channels: int, dtype: type) -> None:
    values = picture("a.png", channels, dtype)
    assert restore("a.png", "--operator", "identity", "--sigma", "0.05").exit_code == 0
    out = imagecodecs.png_decode(Path("restored/a.png").read_bytes())
    assert out.dtype == dtype
    assert out.shape == values.squeeze().shape
    if channels in (2, 4):
        np.testing.assert_array_equal(out[..., -1], values[..., -1])


def test_16_bit_tiff_in_and_out() -> None:
    tifffile.imwrite("a.tif", picture("b.png", 3, np.uint16), photometric="rgb")
    assert restore("a.tif", "--operator", "identity", "--sigma", "0.05", "-o", "out/x.tif").exit_code == 0
    assert sorted(files("out")) == ["x.json", "x.tif"]
    assert tifffile.imread("out/x.tif").dtype == np.uint16


def test_alpha_is_resized_with_the_picture_and_the_record_says_so() -> None:
    picture("a.png", 4)
    assert restore("a.png", "--operator", "downsample(factor=2)").exit_code == 0
    assert imagecodecs.png_decode(Path("restored/a.png").read_bytes()).shape == (48, 40, 4)
    assert "Alpha" in record("restored/a.json")["notes"][0]


def test_a_picture_is_the_same_alone_and_in_a_folder() -> None:
    for k, name in enumerate(("in/a.png", "in/b.png", "in/sub/a.png")):
        picture(name, seed=k)
    assert restore("in", "--operator", "blur", "--sigma", "0.1", "-o", "all").exit_code == 0
    assert sorted(files("all")) == ["a.json", "a.png", "b.json", "b.png", "sub/a.json", "sub/a.png"]
    assert restore("in/b.png", "--operator", "blur", "--sigma", "0.1", "-o", "alone").exit_code == 0
    assert files("all")["b.png"] == files("alone")["b.png"]


@pytest.mark.parametrize("tool", ["restore", "degrade"])
def test_metadata_that_tells_of_a_person_is_copied_on_request_only(tool: str) -> None:
    picture("b.png")
    exif = Image.Exif()
    exif[0x010F] = "A maker"
    exif.get_ifd(0x8825)[0x001D] = "2026:01:02"
    exif.get_ifd(0x8769)[0xA430] = "Private Owner"
    with Image.open("b.png") as source:
        source.save("a.jpg", exif=exif)
    words = [tool, "a.jpg", "--operator", "identity", "--sigma", "0.1", *(FAST if tool == "restore" else [])]
    for more, owner in ([], None), (["--keep-metadata"], "Private Owner"):
        assert invsolve(*words, *more, "-o", "out").exit_code == 0
        with Image.open("out/a.png") as out:
            found = out.getexif()
            assert found[0x010F] == "A maker"
            assert found.get_ifd(0x8769).get(0xA430) == owner
            assert bool(found.get_ifd(0x8825)) == bool(more)
    if tool == "restore":
        assert "--keep-metadata" in shlex.split(record("out/a.json")["command"])
        assert "skipped" in invsolve(*words, "--keep-metadata", "-o", "out").stdout
        assert "restored" in invsolve(*words, "-o", "out").stdout


def test_a_name_that_is_no_picture_s_is_a_folder() -> None:
    picture("a.png")
    Path("old.jp2").mkdir()
    for out in ("results", "results.v2", "2026.11.30", "old.jp2"):
        assert restore("a.png", "--operator", "blur", "-o", out).exit_code == 0
        assert sorted(files(out)) == ["a.json", "a.png"]
    refused = invsolve("degrade", "a.png", "--operator", "blur", "-o", "x.jp2")
    assert (refused.exit_code, "x.jp2 cannot be written" in refused.stderr) == (2, True)


def test_globs_and_the_output_folder_inside_the_input_folder() -> None:
    picture("in/a.png")
    picture("in/b.png")
    for _ in range(2):  # the second time, in/out holds pictures too
        assert restore("in", "--operator", "blur", "-o", "in/out").exit_code == 0
    assert sorted(files("in/out")) == ["a.json", "a.png", "b.json", "b.png"]
    assert restore("in/*a.png", "--operator", "blur", "-o", "out").exit_code == 0
    assert sorted(files("out")) == ["a.json", "a.png"]


def test_a_folder_of_masks() -> None:
    for name in ("a", "b"):
        picture(f"in/{name}.png")
    mask("masks/a.png")
    result = restore("in", "--mask", "masks")
    assert result.exit_code == 2
    assert "no mask named b" in result.stderr
    mask("masks/b.png")
    result = restore("in", "--mask", "masks")
    assert result.exit_code == 0
    assert "1 restored, 1 skipped" in result.stdout
    assert record("restored/b.json")["operator"] == {"name": "inpaint", "mask": "b.png"}


def test_a_second_run_over_a_folder_reads_what_the_first_one_read(folder: Path) -> None:
    """Neither results nor samples nor spreads nor masks are pictures, under whatever name and in whatever format."""
    words = ["--operator", "identity", "--sigma", "0.1", "--samples", "2"]
    for name in ("in/a.png", "in/sub/b.png"):
        picture(name)
    assert "2 restored" in restore("in", *words, "-o", "in/out").stdout
    assert invsolve("degrade", "in/a.png", "--operator", "inpaint-random", "-o", "in/deg").exit_code == 0
    Path("in/deg/a.png").unlink()  # a measurement would be an input
    assert restore("in/a.png", *words[:4], "-o", "in/c.tif").exit_code == 0
    Path("in/out/a_std.png").rename("in/mine.jpg")
    again = restore("in", *words, "-o", "elsewhere")
    assert "2 restored" in again.stdout
    assert "left out 10 pictures of in that invsolve wrote itself (1 by degrade, 9 by restore)" in again.stdout
    globbed = restore("in/**/*", *words, "-o", "elsewhere")
    assert "2 skipped" in globbed.stdout
    assert "left out 10 pictures of in/**/*" in globbed.stdout
    assert "1 restored, 1 skipped" in restore("in", *words, "-o", "in/out").stdout  # whose spread was moved away
    nothing = restore("in/out", *words, "-o", "x")
    assert nothing.exit_code == 2
    assert "holds no picture to read: left out 8 pictures" in nothing.stderr
    named = restore("in/out/a.png", *words, "-o", "x")
    assert named.exit_code == 0
    assert "note: in/out/a.png was written by invsolve restore" in named.stdout


def test_what_other_commands_and_python_wrote_is_no_picture_of_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TASKS", (demo.Task("denoising", "identity", 0.1),))
    monkeypatch.setattr(demo, "SIZE", 32)
    assert invsolve("demo", "--prior", "gaussian", "--samples", "2", "-o", "in/demo").exit_code == 0
    result = package.restore(torch.zeros(1, 3, 16, 16), operator="identity", prior="gaussian", steps=1, samples=2)
    result.save("in/saved")
    picture("in/a.png")
    before = len([name for name in files("in") if name.endswith(".png")])
    told = restore("in", "--operator", "blur")
    assert sorted(files("restored")) == ["a.json", "a.png"]
    assert f"left out {before - 1} pictures of in that invsolve wrote itself" in told.stdout
    assert "(4 by Result.save, 6 by demo)" in told.stdout
    for name in ("x.png", "x.jp2"):
        with pytest.raises(ValueError, match="is the name of a picture, and several files are written; name a folder"):
            result.save(name)
        for command in (["demo"], ["validate", "gaussian-100"]):
            refused = invsolve(*command, "-o", name)
            assert (refused.exit_code, "name a folder" in refused.stderr) == (2, True)
        assert not Path(name).exists()


def test_the_measurements_of_degrade_are_inputs_of_restore_and_of_nothing_else() -> None:
    picture("in/a.png")
    assert invsolve("degrade", "in", "--operator", "identity", "--sigma", "0.1", "-o", "in/deg").exit_code == 0
    assert sorted(files("in/deg")) == ["a.json", "a.png"]
    told = invsolve("degrade", "in", "--operator", "identity", "--sigma", "0.1", "-o", "out")
    assert "left out 1 picture of in that invsolve wrote itself (1 by degrade)" in told.stdout
    assert sorted(files("out")) == ["a.json", "a.png"]
    assert restore("in/deg", "--operator", "identity", "--sigma", "0.1").exit_code == 0
    assert sorted(files("restored")) == ["a.json", "a.png"]


def test_masks_and_kernels_in_a_folder_of_pictures_are_no_pictures() -> None:
    picture("in/a.png")
    mask("in/masks/a.png")
    mask("in/m.png")
    Image.fromarray(np.eye(5, dtype=np.uint8) * 255).save("in/k.png")
    assert "1 restored" not in restore("in/masks", "--mask", "in/m.png", "-o", "x").stdout  # one picture: no summary
    for words in (["--mask", "in/masks"], ["--operator", "inpaint(mask='in/masks')"]):
        Path("in/m.png").unlink(missing_ok=True)
        Path("in/k.png").unlink(missing_ok=True)
        assert restore("in", *words, "-o", "out").exit_code == 0
        assert sorted(files("out")) == ["a.json", "a.png"]
    Image.fromarray(np.eye(5, dtype=np.uint8) * 255).save("in/k.png")
    assert restore("in/[ak].png", "--kernel", "in/k.png", "-o", "kernel").exit_code == 0
    assert sorted(files("kernel")) == ["a.json", "a.png"]


@pytest.mark.parametrize("out", ["deg", "deg/deep", "in/deg"])
@pytest.mark.parametrize("words", [["--operator", "inpaint-random(fraction=0.5)"], ["--mask", "masks"]])
def test_a_folder_goes_from_degrade_to_restore(words: list[str], out: str) -> None:
    for name in ("a.png", "sub/a.png", "sub/b.png"):
        picture(f"in/{name}", seed=len(name))
    mask("masks/a.png")
    mask("masks/sub/b.png")
    result = invsolve("degrade", "in", *words, "--sigma", "5/255", "-o", out)
    assert result.exit_code == 0, result.output
    names = ["a.png", "masks/a.png", "masks/sub/a.png", "masks/sub/b.png", "sub/a.png", "sub/b.png"]
    assert sorted(name for name in files(out) if name.endswith(".png")) == names
    last = result.stdout.splitlines()[-1]
    assert last == f"restore with: invsolve restore {out} --mask {out}/masks --sigma 5/255"
    command = shlex.split(last.removeprefix("restore with: "))
    done = invsolve(*command[1:], *FAST)
    assert done.exit_code == 0, done.output
    assert "3 restored" in done.stdout
    assert sorted(name for name in files("restored") if name.endswith(".png")) == ["a.png", "sub/a.png", "sub/b.png"]
    for name in ("a", "sub/a", "sub/b"):  # its own mask, not that of its namesake
        used = record(f"restored/{name}.json")["sha256"]["mask"]
        assert used == hashlib.sha256(Path(out, f"masks/{name}.png").read_bytes()).hexdigest()
    assert "3 skipped" in invsolve(*command[1:], *FAST).stdout


def test_what_lies_in_the_hole_has_no_influence() -> None:
    values = picture("in/a.png")
    values[4:8, 3:9] = 255
    Path("other").mkdir()
    Path("other/a.png").write_bytes(imagecodecs.png_encode(values))
    mask("m.png")
    for name in ("in", "other"):
        assert restore(f"{name}/a.png", "--mask", "m.png", "-o", f"out-{name}").exit_code == 0
    one, two = (load_image(f"out-{name}/a.png").tensor for name in ("in", "other"))
    assert one.equal(two)


def test_the_default_solver_fits_the_operator() -> None:
    picture("a.png")
    with Image.open("a.png") as source:
        source.save("a.jpg", quality=30)
    assert restore("a.jpg", "--operator", "jpeg").exit_code == 0
    assert record("restored/a.json")["solver"] == {"name": "ddnm", "eta": 0.85}
    assert record("restored/a.json")["operator"]["tables_from"] == "a.jpg"
    assert restore("a.jpg", "--operator", "blur").exit_code == 0
    assert record("restored/a.json")["solver"]["name"] == "diffpir"


def test_the_commands_of_the_readme_and_its_pages() -> None:
    for name in ("scan.png", "small/1.png", "noisy/1.png"):
        picture(name)
    for name in ("photo.jpg", "old.jpg"):
        with Image.open("scan.png") as source:
            source.save(name)
    mask("scratches.png")
    pages = [ROOT / "README.md", ROOT / "docs" / "photos.md", ROOT / "docs" / "priors.md"]
    lines = itertools.chain.from_iterable(page.read_text().splitlines() for page in pages)
    commands = [line for line in lines if line.startswith("invsolve ")]
    assert len(commands) >= 12
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        for option in ("--prompt", "--guidance"):  # of a hub prior, in whose place the Gaussian one is put
            if option in words:
                place = words.index(option)
                del words[place : place + 2]
        extra = ["--dry-run", "--prior", "gaussian", "--device", "cpu"] if words[0] == "restore" else []
        result = invsolve(*words, *extra)
        assert result.exit_code == 0, f"{command}: {result.output}"


def test_a_time_grid_is_part_of_the_record(folder: Path) -> None:
    picture("a.png")
    words = ["a.png", "--operator", "blur", "--sigma", "0.1"]
    assert restore(*words, "-o", "own").exit_code == restore(*words, "--times", "uniform", "-o", "given").exit_code == 0
    assert Path("own/a.png").read_bytes() != Path("given/a.png").read_bytes()
    assert record("own/a.json")["times"] == "restoration"
    assert "skipped" in restore(*words, "--times", "uniform", "-o", "given").stdout
    told = record("given/a.json")
    assert told["times"] == "uniform"
    again = invsolve(*shlex.split(told["command"])[1:], "-o", "again")
    assert again.exit_code == 0
    assert Path("again/a.png").read_bytes() == Path("given/a.png").read_bytes()
    assert restore(*words, "-o", "given").exit_code == 0  # another run: its own grid
    assert Path("given/a.png").read_bytes() == Path("own/a.png").read_bytes()


def test_one_step_is_for_the_grid_from_the_noise_of_the_data(folder: Path) -> None:
    picture("a.png")
    words = ["restore", "a.png", "--operator", "identity", "--sigma", "0.2", "--prior", "gaussian", "--device", "cpu"]
    for times, steps in ((None, 1), ("uniform", 20), ("from_data", 1)):
        given = [] if times is None else ["--times", times]
        assert invsolve(*words, *given, "-o", str(times)).exit_code == 0
        assert record(f"{times}/a.json")["stats"]["steps"] == steps


def test_the_record_knows_the_weights(folder: Path) -> None:
    assert prior_sha256("gaussian") is None
    assert len(prior_sha256("natural") or "") == 64
    Path("model").mkdir()
    Path("model/a.safetensors").write_bytes(b"one")
    before = prior_sha256("model")
    Path("model/a.safetensors").write_bytes(b"two")
    assert prior_sha256("model") != before
    picture("a.png")
    words = ["restore", "a.png", "--operator", "identity", "--sigma", "0.1", "--steps", "1", "--device", "cpu"]
    assert invsolve(*words).exit_code == 0
    assert record("restored/a.json")["sha256"]["prior"] == prior_sha256("natural")


# --- the same from Python ---------------------------------------------------------------------------------------------


def test_python_and_command_line_agree() -> None:
    picture("a.png")
    with Image.open("a.png") as source:
        source.save("a.jpg", quality=30)
    assert restore("a.jpg", "--operator", "jpeg", "--dtype", "float64").exit_code == 0
    result = package.restore("a.jpg", operator="jpeg", prior="gaussian", steps=3, dtype=torch.float64)
    expected = load_image("restored/a.png").tensor
    assert (result.samples[0, 0] - expected).abs().max() < 1.01 / 255
    assert result.record["operator"]["tables_from"] == "a.jpg"
    assert result.record["solver"] == {"name": "ddnm", "eta": 0.85}
    assert result.record["prior"] == {"name": "gaussian"}
    assert (result.record["sigma"], result.record["seed"], result.record["steps"]) == (0, 0, 3)
    result.save("result")
    assert package.Result.load("result").record == result.record
    told = record("restored/a.json")
    assert result.record.keys() <= told.keys()
    assert all(told[key] == result.record[key] for key in ("operator", "solver", "prior", "steps", "seed", "dtype"))


def test_numbers_of_numpy_are_numbers_and_booleans_are_none() -> None:
    options: dict[str, Any] = {"operator": "identity", "prior": "gaussian", "steps": 2}
    y = torch.zeros(3, 16, 16)
    ours = package.restore(y, sigma=0.5, seed=3, **options)
    theirs = package.restore(y, sigma=np.float32(0.5), seed=np.int64(3), **options)
    assert torch.equal(ours.samples, theirs.samples)
    with pytest.raises(ValueError, match="sigma must be a number"):
        package.restore(y, sigma=True, **options)
    with pytest.raises(TypeError, match="seed must be an integer"):
        package.restore(y, seed=True, **options)


@pytest.mark.parametrize("name", [name for name, kind in SOLVERS.items() if not kind.needs_fit])
def test_the_record_names_operator_and_solver_so_that_they_can_be_built_again(name: str) -> None:
    solver, options = build_solver(name), {"operator": "blur(sigma=1.0)", "prior": "gaussian", "sigma": 0.1}
    record = package.restore(torch.zeros(3, 16, 16), solver=solver, steps=1, samples=2, **options).record
    assert build_solver(record["solver"]) == solver
    assert parse_spec(record["operator"], OPERATORS, "operator") == ("blur", {"sigma": 1.0, "boundary": "unknown"})


def test_the_misfit_is_that_of_the_samples_as_they_are_handed_out() -> None:
    y = torch.full((1, 3, 16, 16), 3.0)  # beyond what a picture can hold
    options: dict[str, Any] = {"operator": "identity", "prior": "gaussian", "sigma": 0.1, "steps": 3, "samples": 2}
    result = package.restore(y, **options)
    assert result.samples.max() == 1
    expected = (result.samples - y[:, None]).square().flatten(2).mean(dim=2) / 0.1**2
    torch.testing.assert_close(result.chi2, expected)


def test_a_misfit_beyond_all_numbers_is_no_restoration() -> None:
    options: dict[str, Any] = {"operator": "identity", "prior": "gaussian", "sigma": 0.1, "steps": 3}
    for sigma in (0.1, 0):  # without noise there is no chi2 to tell
        result = package.restore(torch.zeros(1, 3, 16, 16), solver="dps(step_size=1e30)", **{**options, "sigma": sigma})
        assert not result.ok


def test_a_doubtful_result_is_told_and_recorded() -> None:
    picture("a.png")
    words = ["a.png", "--operator", "downsample(factor=2)"]
    for more, doubt in {
        ("--sigma", "0.001", "--solver", "flowchef(step_size=0.01)"): "chi2 is ",
        ("--solver", "flowchef(step_size=1e4)"): "% of the values lay far outside [-1, 1]",
    }.items():
        result = restore(*words, *more)
        assert result.exit_code == 0
        assert doubt in result.stdout
        assert any(doubt in note for note in record("restored/a.json")["notes"])
    assert "chi2" not in restore(*words, "--sigma", "0.1", "--solver", "ddrm").stdout
    told = record("restored/a.json")
    assert told["notes"] == []
    (low, high), (chi2,) = told["expected_chi2"], told["chi2"]
    assert 0.2 < low < chi2 < high < 4.5
    assert "hidden" not in record("restored/a.json")


def test_sigma_in_grey_levels_from_python_too() -> None:
    options: dict[str, Any] = {"operator": "identity", "prior": "gaussian", "steps": 2}
    y = torch.zeros(3, 16, 16)
    by_text, by_number = (package.restore(y, sigma=sigma, **options) for sigma in ("5/255", 10 / 255))
    assert torch.equal(by_text.samples, by_number.samples)
    loud = 8 * torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 4
    assert package.restore(loud, sigma="auto ", **options).record["sigma"] > 2  # an estimate has no bound
    with pytest.raises(ValueError, match=r"for grey levels of 8 bits write '25\.0/255'"):
        package.restore(y, sigma=25.0, **options)
    assert package.restore(y, sigma=0.1, **{**options, "steps": np.int64(2)}).ok


def test_sigma_auto_is_estimated_for_each_picture() -> None:
    x = torch.linspace(-0.5, 0.5, 32).expand(2, 3, 32, 32)
    y = x + torch.tensor([0.05, 0.4]).reshape(2, 1, 1, 1) * torch.randn(2, 3, 32, 32)
    options: dict[str, Any] = {"operator": "identity", "prior": "gaussian", "steps": 3, "sigma": "auto"}
    both = package.restore(y, samples=2, **options)
    assert both.samples.shape == (2, 2, 3, 32, 32)
    assert both.record["sigma"] == pytest.approx([0.05, 0.4], rel=0.3)
    torch.testing.assert_close(both.samples[:1], package.restore(y[:1], samples=2, **options).samples)
    assert not torch.equal(both.samples[0] - x[0], both.samples[1] - x[1])
    with pytest.raises(ValueError, match="hidden pixels"):
        package.restore(y, **{**options, "operator": "inpaint-random"})


def test_restore_refuses_before_it_computes() -> None:
    options: dict[str, Any] = {"prior": load_prior("gaussian"), "steps": 2}
    for sigma in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not a noise level"):
            package.restore(torch.zeros(1, 3, 8, 8), operator="identity", sigma=sigma, **options)
    operator = build_operator("inpaint-random", (3, 8, 8))
    with pytest.raises(ValueError, match=r"expects a measurement \(B, 3, 8, 8\)"):
        package.restore(torch.zeros(1, 3, 8, 9), operator=operator, **options)


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(3):
        picture(f"in/{k}.png", seed=k)
    words = ["in", "--operator", "blur", "--sigma", "0.1"]
    real, calls = cli_restore.Run.__call__, []

    def dies_at_the_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(cli_restore.Run, "__call__", dies_at_the_second)
    assert restore(*words).exit_code != 0
    assert sorted(files("restored")) == ["0.json", "0.png"]
    before = Path("restored/0.png").stat()
    result = restore(*words)
    assert "1 skipped" in result.stdout
    assert "2 restored" in result.stdout
    assert len(calls) == 4
    assert Path("restored/0.png").stat() == before
    assert "3 skipped" in restore(*words).stdout


def test_killed_between_picture_and_record(monkeypatch: pytest.MonkeyPatch) -> None:
    picture("a.png")
    real = Path.replace

    def die_at_the_record(self: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", die_at_the_record)
    assert restore("a.png", "--operator", "blur").exit_code != 0
    assert sorted(files("restored")) == ["a.png"]
    monkeypatch.setattr(Path, "replace", real)
    assert "restored a.png" in restore("a.png", "--operator", "blur").stdout


def test_what_changed_is_done_again() -> None:
    picture("a.png")
    words = ["a.png", "--operator", "blur"]
    assert "restored a.png" in restore(*words).stdout
    assert "skipped a.png" in restore(*words).stdout
    assert "skipped a.png" in restore(*words, "--batch-size", "1").stdout
    assert "restored a.png" in restore(*words, "--overwrite").stdout
    assert "restored a.png" in restore(*words, "--seed", "1").stdout
    picture("a.png", seed=1)
    assert "restored a.png" in restore(*words, "--seed", "1").stdout
    Path("restored/a.png").unlink()
    assert "restored a.png" in restore(*words, "--seed", "1").stdout
    Path("restored/a.json").write_text("{")
    assert "restored a.png" in restore(*words, "--seed", "1").stdout
    Path("restored/a.png").write_bytes(b"")
    assert "restored a.png" in restore(*words, "--seed", "1", "--overwrite").stdout


@pytest.mark.parametrize("tool", ["restore", "degrade"])
def test_what_others_wrote_is_kept(tool: str) -> None:
    picture("a.png")
    picture("out/a.png", seed=5)  # nobody's but the user's
    before = files()
    words = [tool, "a.png", "--operator", "blur", "-o", "out", *(FAST if tool == "restore" else [])]
    result = invsolve(*words)
    assert result.exit_code == 2
    assert "out/a.png exists and was not written by invsolve" in result.stderr
    assert files() == before
    Path("out/a.png").unlink()
    Path("out/a.json").write_text('{"mine": true}')
    assert "out/a.json exists" in invsolve(*words).stderr
    Path("out/a.json").unlink()
    assert invsolve(*words).exit_code == 0
    other = "degrade" if tool == "restore" else "restore"  # a measurement is not a restoration
    rest = [*words[1:6], *(FAST if other == "restore" else [])]
    assert f"not written by invsolve {other}" in invsolve(other, *rest).stderr
    if tool == "restore":
        picture("out/a.png", seed=5)
        assert "restored" in invsolve(*words, "--overwrite").stdout


def test_a_run_into_its_own_folder_goes_on() -> None:
    picture("d/a.png")
    Image.open("d/a.png").save("d/a.jpg")
    Path("d/a.png").unlink()
    words = ["d", "--operator", "blur", "-o", "d"]
    assert "restored a.jpg" in restore(*words).stdout
    assert "skipped a.jpg" in restore(*words).stdout
    Path("d/a.json").unlink()  # killed before its record
    again = restore(*words)
    assert "restored a.jpg" in again.stdout
    assert "a.png ->" not in again.stdout.replace("d/a.png", "")


def test_a_folder_in_the_way_is_found_before_the_work() -> None:
    picture("a.png")
    for name in ("a.png", "a.json", "a_std.png", "a_sample02.png"):
        Path("out", name).mkdir(parents=True)
        result = restore("a.png", "--operator", "blur", "--samples", "2", "-o", "out", "--overwrite")
        assert result.exit_code == 2
        assert f"out/{name} would be written, but is a folder" in result.stderr
        assert files("out") == {}
        Path("out", name).rmdir()


def test_samples_of_an_earlier_run_do_not_stay() -> None:
    picture("a.png")
    restore("a.png", "--operator", "blur", "--samples", "3")
    picture("restored/a_sample03.png")  # put there by the user meanwhile
    restore("a.png", "--operator", "blur", "--samples", "1")
    assert sorted(files("restored")) == ["a.json", "a.png", "a_sample03.png"]


@pytest.mark.parametrize("name", ["x" * 240 + ".png", "new\nline.png", "-dash.png", "é ü.png", "\udcff\udcfe.png"])
def test_names_of_every_kind(name: str) -> None:
    picture("plain.png")
    try:
        Path("plain.png").rename(name)
    except (OSError, UnicodeError):
        pytest.skip("the file system has no such name")
    picture("other.png")
    result = restore(".", "--operator", "blur", "-o", "out")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 3
    assert "2 restored" in result.stdout
    assert Path("out", name).is_file()
    words = shlex.split(record(f"out/{Path(name).stem}.json")["command"])
    before = Path("out", name).read_bytes()
    assert CliRunner().invoke(app, [*words[1:], "-o", "again"]).exit_code == 0
    assert Path("again", name).read_bytes() == before


def test_one_bad_picture_does_not_stop_the_others() -> None:
    picture("in/a.png")
    Path("in/b.png").write_bytes(b"no picture")
    picture("in/c.png")
    result = restore("in", "--operator", "blur")
    assert result.exit_code == 2
    assert result.stderr.count("Error:") == 1
    assert "2 restored, 1 failed" in result.stdout
    assert sorted(files("restored")) == ["a.json", "a.png", "c.json", "c.png"]


@pytest.mark.parametrize("tool", ["restore", "degrade"])
def test_what_one_picture_cannot_have_names_it(tool: str) -> None:
    picture("in/tiny/a.png")
    Image.new("RGB", (3, 3)).save("in/b.png")
    result = invsolve(
        tool,
        "in",
        "--operator",
        "blur-uniform(size=9, boundary=circular)",
        "-o",
        "out",
        *(FAST if tool == "restore" else []),
    )
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: in/b.png: ")
    assert result.stderr.count("\n") == 1
    assert Path("out/tiny/a.png").exists()


def test_dry_run_writes_nothing() -> None:
    picture("a.png", 1)
    mask("m.png")
    result = restore("a.png", "--mask", "m.png", "--dry-run")
    assert result.exit_code == 0
    assert "20 x 24, grey, 8 bit, 5 % hidden" in result.stdout
    assert not Path("restored").exists()
    result = restore("a.png", "--operator", "jpeg(quality=10)", "--solver", "ddrm", "--dry-run")
    assert result.exit_code == 2
    assert "needs a SpectralOperator" in result.stderr
    restore("a.png", "--mask", "m.png")
    before = files()
    assert "would skip a.png" in restore("a.png", "--mask", "m.png", "--dry-run").stdout
    assert "would restore a.png" in restore("a.png", "--mask", "m.png", "--dry-run", "--overwrite").stdout
    assert files() == before


# --- the other commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--operator", "blur(sigma=1)", "--sigma", "5/255"],
        ["--operator", "downsample(factor=2)", "--noise", "poisson(peak=100)"],
        ["--operator", "grayscale"],
        ["--mask", "m.png", "--sigma", "0.1"],
        ["--operator", "inpaint-random(fraction=0.5)"],
        ["--operator", "identity", "--sigma", "0.1"],
    ],
)
def test_degrade_names_the_command_that_undoes_it(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    picture("a.png")
    mask("m.png")
    assert invsolve("degrade", "a.png", *words, "--bit-depth", "16").exit_code == 0
    assert load_image("degraded/a.png").bit_depth == 16
    first = files("degraded")
    assert invsolve("degrade", "a.png", *words, "--bit-depth", "16").exit_code == 0
    assert files("degraded") == first
    monkeypatch.chdir("degraded")
    command = shlex.split(record("a.json")["restore_with"])
    result = invsolve(*command[1:], "--prior", "gaussian", "--device", "cpu")
    assert result.exit_code == 0, result.output
    rows, columns = record("a.json")["border"]
    assert (rows, columns) == ((4, 4) if "blur(sigma=1)" in words else (0, 0))
    assert load_image("restored/a.png").shape == (3, SIZE[0] - 2 * rows, SIZE[1] - 2 * columns)


def test_a_blur_has_no_border_unless_it_is_named() -> None:
    """`degrade` gives the interior and says so; `restore` gives a picture of the size of the file."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 36, 4), np.uint8)).save("a.png")
    told = invsolve("degrade", "a.png", "--operator", "blur(sigma=1)", "--sigma", "0.05").stdout
    assert "28 x 32 pixels: 4 rows and 4 columns less on every side" in told
    measured = load_image("degraded/a.png")
    assert measured.shape == (3, 32, 28)
    assert np.array_equal(measured.alpha, load_image("a.png").alpha[4:-4, 4:-4])
    told = restore("degraded/a.png", "--operator", "blur(sigma=1)", "--sigma", "0.05", "--dry-run").stdout
    assert "to 28 x 32" in told
    assert restore("degraded/a.png", "--operator", "blur(sigma=1)", "--sigma", "0.05").exit_code == 0
    restored = load_image("restored/a.png")
    assert restored.shape == measured.shape and np.array_equal(restored.alpha, measured.alpha)
    assert json.loads(Path("restored/a.json").read_text())["notes"] == []


def test_a_kernel_beside_its_middle_is_told() -> None:
    picture("a.png")
    np.save("k.npy", np.ones((2, 2)))
    result = restore("a.png", "--kernel", "k.npy", "--sigma", "0.1")
    assert result.exit_code == 0, result.output
    assert "0.50 rows below and 0.50 columns right of its middle" in result.stdout
    assert "0.50 rows below" in json.loads(Path("restored/a.json").read_text())["notes"][0]


def test_degrade_goes_on_after_a_bad_picture() -> None:
    picture("in/b.png")
    Path("in/a.png").write_bytes(b"no picture")
    result = invsolve("degrade", "in", "--operator", "jpeg(quality=10)")
    assert result.exit_code == 2
    assert result.stderr.count("Error:") == 1
    assert sorted(files("degraded")) == ["b.json", "b.png"]
    assert "--solver" not in record("degraded/b.json")["restore_with"]  # denoising has steps of its own without


def test_demo_prints_its_table_and_keeps_foreign_files(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = (demo.Task("denoising", "identity", 0.1), demo.Task("JPEG quality 10", "jpeg(quality=10)", 0.0))
    monkeypatch.setattr(demo, "TASKS", tasks)
    monkeypatch.setattr(demo, "SIZE", 32)
    result = invsolve("demo", "--prior", "gaussian", "--samples", "2")
    assert result.exit_code == 0, result.output
    header, first, second, *_ = result.stdout.splitlines()
    assert header == demo.HEADER
    assert "ddrm" in first
    assert "–" not in first
    assert "ddnm" in second
    assert "–" in second
    rows = json.loads(Path("invsolve-demo/table.json").read_text())
    assert [row["chi2"] is None for row in rows] == [False, True]
    Path("invsolve-demo/mine.txt").write_text("mine")
    again = invsolve("demo", "--prior", "gaussian")
    assert again.exit_code == 2
    assert "mine.txt" in again.stderr
    assert Path("invsolve-demo/mine.txt").read_text() == "mine"


def test_degrade_adds_the_noise_it_says() -> None:
    Path("a.png").write_bytes(imagecodecs.png_encode(np.full((64, 64), 32768, np.uint16)))
    assert invsolve("degrade", "a.png", "--operator", "identity", "--sigma", "25/255").exit_code == 0
    assert load_image("degraded/a.png").tensor.std().item() == pytest.approx(50 / 255, rel=0.05)


def test_list_and_info_cover_the_tables() -> None:
    everything = invsolve("list").stdout
    for kind, table in {"operators": OPERATORS, "priors": PRIORS, "solvers": SOLVERS}.items():
        listed = invsolve("list", kind)
        assert listed.exit_code == 0
        for name in table:
            assert name in listed.stdout
            assert name in everything
            assert invsolve("info", name).stdout.startswith(f"{name} ({kind[:-1]})")
    assert "sigma: float = 2.0" in invsolve("info", "blur").stdout
    assert "mask: str (required)" in invsolve("info", "inpaint").stdout
    tds, diffpir = (" ".join(invsolve("info", name).stdout.split()) for name in ("tds", "diffpir"))
    assert (
        "samples follow the posterior, given enough steps and samples; the samples of one picture see each other" in tds
    )
    assert "Takes a LinearOperator. Its samples need not follow the posterior." in diffpir


def test_version_and_help() -> None:
    assert invsolve("--version").stdout.startswith("invsolve ")
    text = invsolve("restore", "--help").stdout
    for option in shlex.split("operator mask kernel sigma solver prior samples steps times seed device dtype"):
        assert f"--{option}" in text
    assert "[-1, 1]" in text


# --- what goes wrong --------------------------------------------------------------------------------------------------

GOOD = ["a.png", "--operator", "blur"]
BAD: dict[str, tuple[list[str], str]] = {
    "missing file": (["none.png", "--operator", "blur"], "none.png does not exist"),
    "missing glob": (["none*.png", "--operator", "blur"], "matches none*.png"),
    "empty folder": (["empty", "--operator", "blur"], "holds no picture"),
    "not an image": (["text.png", "--operator", "blur"], "not a picture"),
    "empty file": (["zero.png", "--operator", "blur"], "not a picture"),
    "truncated jpeg": (["cut.jpg", "--operator", "blur"], "damaged or cut off"),
    "truncated 16-bit tiff": (["cut.tif", "--operator", "blur"], "damaged or cut off"),
    "truncated png": (["cut.png", "--operator", "blur"], "damaged or cut off"),
    "two pages": (["pages.tif", "--operator", "blur"], "2 pictures"),
    "nan": (["nan.tif", "--operator", "blur"], "not NaN"),
    "too many pixels": ([*GOOD, "--max-pixels", "100"], "--max-pixels"),
    "too many pixels in the result": (["a.png", "--operator", "downsample(factor=2000)"], "--max-pixels"),
    "no operator": (["a.png"], "--operator"),
    "no input": (["--operator", "blur"], "Missing argument"),
    "unknown operator": (["a.png", "--operator", "blurr"], "did you mean 'blur'"),
    "unknown operator field": (["a.png", "--operator", "blur(sigm=2)"], "sigma: float"),
    "operator field type": (["a.png", "--operator", "blur(sigma=wide)"], "must be float"),
    "operator field value": (["a.png", "--operator", "blur(sigma=-2)"], "positive"),
    "operator syntax": (["a.png", "--operator", "blur(sigma=2"], "Cannot read the operator"),
    "operator not fit for size": (["a.png", "--operator", "inpaint-box(top=0,left=0,height=99,width=9)"], "inside"),
    "inpaint without mask": (["a.png", "--operator", "inpaint"], "mask"),
    "unknown solver": ([*GOOD, "--solver", "difpir"], "did you mean 'diffpir'"),
    "unknown solver field": ([*GOOD, "--solver", "diffpir(wait=2)"], "weight: float"),
    "solver not fit": (["a.png", "--operator", "jpeg(quality=9)", "--solver", "diffpir"], "LinearOperator"),
    "unknown prior": ([*GOOD, "--prior", "imagenet"], "Unknown prior 'imagenet'"),
    "prior folder without a model": ([*GOOD, "--prior", "empty"], "not a diffusers pipeline folder"),
    "sigma negative": ([*GOOD, "--sigma", "-0.1"], "must not be negative"),
    "sigma not a number": ([*GOOD, "--sigma", "low"], "25/255"),
    "sigma in grey levels": ([*GOOD, "--sigma", "25"], "25/255"),
    "sigma nan": ([*GOOD, "--sigma", "nan"], "not a noise level"),
    "sigma and noise": ([*GOOD, "--sigma", "0.1", "--noise", "poisson(peak=9)"], "not both"),
    "unknown noise": ([*GOOD, "--noise", "speckle"], "gaussian, poisson, none"),
    "noise value": ([*GOOD, "--noise", "poisson(peak=-1)"], "peak must be a photon count"),
    "mask missing": (["a.png", "--mask", "none.png"], "none.png does not exist"),
    "mask of another size": (["a.png", "--mask", "wide.png"], "24 x 16 pixels"),
    "mask without holes": (["a.png", "--mask", "black.png"], "no hole"),
    "mask all hole": (["a.png", "--mask", "white.png"], "white everywhere"),
    "mask is a photograph": (["a.png", "--mask", "ramp.png"], "ramp.png is no mask: 66.7 % of its pixels are grey"),
    "mask is a photograph, spelt out": (["a.png", "--operator", "inpaint(mask='ramp.png')"], "ramp.png is no mask"),
    "folder of photographs as masks": (["a.png", "--mask", "photos"], "a.png is no mask"),
    "jpeg without a quality": (["a.png", "--operator", "jpeg"], "a.png: jpeg got no quality"),
    "jpeg without a quality on WebP": (["a.webp", "--operator", "jpeg(subsampling='4:4:4')"], "jpeg(quality=30)"),
    "jpeg with both": (["a.png", "--operator", "jpeg(quality=5, tables_from='a.jpg')"], "give one of the two"),
    "mask not an image": (["a.png", "--mask", "text.png"], "not a picture"),
    "mask with another operator": ([*GOOD, "--mask", "m.png"], "--operator inpaint"),
    "mask and kernel": (["a.png", "--mask", "m.png", "--kernel", "m.png"], "not both"),
    "kernel missing": (["a.png", "--kernel", "none.png"], "none.png does not exist"),
    "kernel black": (["a.png", "--kernel", "black.png"], "black"),
    "kernel not an image": (["a.png", "--kernel", "text.png"], "not a picture"),
    "samples zero": ([*GOOD, "--samples", "0"], "--samples must be at least 1"),
    "steps zero": ([*GOOD, "--steps", "0"], "--steps must be 1 to 1000"),
    "too many steps": (["none.png", "--operator", "blur", "--steps", "1001"], "--steps must be 1 to 1000"),
    "unknown grid": ([*GOOD, "--times", "evenly"], "choose one of uniform, shifted"),
    "auto with holes": (["a.png", "--mask", "m.png", "--sigma", "auto"], "give sigma as a number"),
    "device without float64": ([*GOOD, "--device", "mps"], "'mps' is not supported"),
    "seed not a number": ([*GOOD, "--seed", "x"], "--seed"),
    "unknown device": ([*GOOD, "--device", "toaster"], "'toaster' is not supported"),
    "unknown dtype": ([*GOOD, "--dtype", "float8"], "float32, float64"),
    "unknown option": ([*GOOD, "--simga", "1"], "--simga"),
    "output under a file": ([*GOOD, "-o", "text.png/out"], "is a file"),
    "output is a file": ([*GOOD, "-o", "text.png.bak"], "is a file"),
    **{
        f"output as {suffix}": (
            [*GOOD, "-o", f"x{suffix}"],
            f"x{suffix} cannot be written; name a file ending in .png, .tif or .tiff, or a folder",
        )
        for suffix in (".jpg", ".JP2", ".webp", ".bmp", ".gif", ".heic", ".avif", ".exr", ".npy")
    },
    "output name empty": ([*GOOD, "-o", ""], "empty"),
    "mask name empty": (["a.png", "--mask", ""], "empty"),
    "prior name empty": ([*GOOD, "--prior", ""], "empty"),
    "input name empty": (["", "--operator", "blur"], "empty"),
    "sigma empty": ([*GOOD, "--sigma", ""], "not a noise level"),
    "sigma in a noise model": ([*GOOD, "--noise", "gaussian(sigma=1e300)"], "sigma must be a number from 1e-08 to"),
    "tolerance": ([*GOOD, "--noise", "none(tolerance=0)"], "tolerance must be a positive"),
    "tolerance too large": ([*GOOD, "--noise", "none(tolerance=1e300)"], "tolerance must be a positive"),
    "a very deep spec": (["a.png", "--operator", f"blur(sigma={'-' * 1900}1)"], "Cannot read"),
    "a very long number": (["a.png", "--operator", f"blur(sigma=1{'0' * 1900})"], "sigma"),
    "device without data": ([*GOOD, "--device", "meta"], "'meta' is not supported"),
    "seed not whole": ([*GOOD, "--seed", "1.5"], "--seed"),
    "one output for two": (["a.png", "m.png", "--operator", "blur", "-o", "x.png"], "for 2 pictures"),
    "output replaces the input": ([*GOOD, "-o", "."], "would replace an input"),
    "two inputs with one output": (["a.png", "a.jpg", "--operator", "blur"], "both be written"),
}


@pytest.fixture
def bad_files(folder: Path) -> None:
    picture("a.png")
    mask("m.png")
    mask("wide.png", (16, 24))
    Path("empty").mkdir()
    Path("text.png").write_text("This is not a picture.")
    Path("text.png.bak").write_text("This is not a folder.")
    Path("zero.png").write_bytes(b"")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save("a.jpg")
    Path("cut.jpg").write_bytes(Path("a.jpg").read_bytes()[:2000])
    noise.save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:2000])
    tifffile.imwrite("cut.tif", np.zeros((64, 64, 3), np.uint16), photometric="rgb")
    Path("cut.tif").write_bytes(Path("cut.tif").read_bytes()[:2000])
    noise.save("pages.tif", save_all=True, append_images=[noise])
    tifffile.imwrite("nan.tif", np.full(SIZE, np.nan, np.float32))
    Image.new("L", SIZE[::-1], 0).save("black.png")
    Image.new("L", SIZE[::-1], 255).save("white.png")
    Image.fromarray(np.linspace(0, 255, SIZE[0]).round().astype(np.uint8)[:, None].repeat(SIZE[1], 1)).save("ramp.png")
    picture("photos/a.png")
    Image.open("a.png").save("a.webp", lossless=True)


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("name", BAD)
def test_one_sentence_and_nothing_written(name: str) -> None:
    words, expected = BAD[name]
    before = files()
    defaults = [word for k in range(0, 6, 2) if FAST[k] not in words for word in FAST[k : k + 2]]
    result = invsolve("restore", *words, *defaults)
    assert result.exit_code == 2
    assert result.stderr.count("Error: ") == 1
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr
    assert files() == before
    assert not Path("restored").exists()


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["degrade", "a.png", "--operator", "blur", "--sigma", "auto"], "give a number"),
        (["degrade", "a.png", "--operator", "blur", "--bit-depth", "12"], "8 or 16"),
        (["degrade", "text.png", "--operator", "blur"], "not a picture"),
        (["degrade", "a.png", "--mask", "wide.png"], "one size"),
        (["degrade", "a.png", "--operator", "jpeg"], "jpeg got no quality"),
        (["degrade", "a.jpg", "--operator", "jpeg"], "jpeg got no quality"),  # which it brings to restore alone
        (["info", "nothing"], "Unknown name 'nothing'"),
        (["list", "everything"], "everything"),
        (["dance"], "dance"),
        (["--foo"], "--foo"),
        (["restore"], "inputs"),
        (["degrade", "a.png", "--operator", "blur", "--noise", "gaussian(sigma=3)"], "whole range"),
        (
            ["degrade", "a.png", "--operator", "blur", "--noise", "poisson(peak=1e300)"],
            "a photon count from 1e-06",
        ),
    ],
)
def test_other_commands_refuse_in_one_sentence_too(words: list[str], expected: str) -> None:
    before = files()
    result = invsolve(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr
    assert files() == before


def test_a_diverged_run_is_an_error_and_not_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    picture("a.png")
    monkeypatch.setattr(cli_restore.Result, "ok", property(lambda self: False))
    result = restore("a.png", "--operator", "blur")
    assert result.exit_code == 2
    assert "a.png: Non-finite values" in result.stderr
    assert not Path("restored").exists()


def test_errors_that_have_a_sentence() -> None:
    for error in (
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
    ):
        assert is_expected(error)
        assert "--batch-size" in sentence(error)
    assert is_expected(Image.DecompressionBombError("too large"))
    assert not is_expected(RuntimeError("a bug"))
    assert not is_expected(KeyError("a bug"))


def test_auto_is_never_an_untested_device() -> None:
    assert find_device("auto").type in ("cpu", "cuda")


def test_the_bar_counts_batches() -> None:
    from rich.console import Console

    from invsolve.cli.progress import StepBar

    bar = StepBar([2, 2, 1], Console(), Console(file=io.StringIO(), force_terminal=True))
    task = bar.progress.tasks[0]
    for step in (1, 2, 1, 2):
        bar(step, 2, [], None)  # type: ignore[arg-type]
    assert (task.completed, task.total) == (2, 5)
    bar.done(ran=True)
    bar.done(ran=False)
    assert (task.completed, task.total) == (2, 3)
    bar(1, 4, [], None)  # type: ignore[arg-type]
    assert task.completed == 2.25


@pytest.mark.parametrize(("solver", "batches"), [("rsd", 1), ("ddrm", 3)])  # particles stay together
def test_the_bar_expects_the_batches_that_run(solver: str, batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    picture("a.png")
    seen = []

    class Bar(cli_restore.StepBar):
        def done(self, *, ran: bool) -> None:
            seen.append((self.batch, self.ahead[0]))
            super().done(ran=ran)

    monkeypatch.setattr(cli_restore, "StepBar", Bar)
    words = ["--operator", "blur", "--solver", solver, "--samples", "5", "--batch-size", "2"]
    assert restore("a.png", *words).exit_code == 0
    assert seen == [(batches, batches)]
