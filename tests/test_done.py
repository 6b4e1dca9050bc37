"""What counts as done: a run that was killed anywhere is never taken for a finished one.  Processes die for it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from invsolve.cli.app import app
from invsolve.files.atomic import atomic_folder, changed_files, sha256_of
from invsolve.files.encode import save_png
from invsolve.files.provenance import png_chunk, provenance
from invsolve.files.record import read_record
from invsolve.priors.identity import prior_sha256

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
PRIOR = ["--prior", "gaussian", "--steps", "2", "--device", "cpu"]
ONE = ["restore", "a.png", "--operator", "identity", "--sigma", "0.1", "--samples", "3", *PRIOR]
OTHER = ["restore", "a.png", "--operator", "identity", "--sigma", "0.1", "--seed", "1", *PRIOR]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one picture."""
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(0, 255, (16, 12, 3), dtype=np.uint8)
    Path("a.png").write_bytes(imagecodecs.png_encode(values))
    return tmp_path


def invsolve(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def visible(root: str | Path) -> dict[str, bytes]:
    """Everything in a folder but for hidden files, and records, which hold seconds."""
    paths = [path for path in Path(root).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.suffix != ".json"}


def killed(work: Callable[[], object], *, at: int | None = None, after: float | None = None) -> bool:
    """Do the work in a process of its own and kill that before its `at`-th change on the disk, or after some seconds.

    Returns whether it was killed before it ended.
    """
    child = os.fork()
    if child == 0:
        if at is not None:
            _die_before(at)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)  # an exception must not go on into a second run of pytest
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def _die_before(count: int) -> None:
    """Kill this process before its `count`-th flush, rename or removal."""
    left = [count]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    os.fsync = counted(os.fsync)
    for name in ("replace", "unlink", "rename", "write_text"):
        setattr(Path, name, counted(getattr(Path, name)))
    shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]


def check(words: list[str], clean: dict[str, bytes]) -> None:
    """Run the command into out/; it says "done" of what a clean run gives only, and leaves that behind."""
    before = visible("out")
    result = invsolve(*words, "-o", "out")
    assert result.exit_code == 0, result.output
    if "skipped" in result.stdout:
        assert before == clean
    else:
        assert "restored" in result.stdout
        assert not list(Path("out").rglob(".*"))  # what the killed process had begun is gone
    assert visible("out") == clean
    hashes = read_record(Path("out/a.json"))["outputs"]
    assert hashes == {name: sha256_of(Path("out", name)) for name in clean}
    assert "skipped" in invsolve(*words, "-o", "out").stdout


@pytest.mark.parametrize(("first", "second"), [pytest.param(ONE, OTHER, marks=pytest.mark.slow), (OTHER, ONE)])
def test_killed_at_every_write(first: list[str], second: list[str]) -> None:
    clean = {}
    for name, words in {"first": first, "second": second}.items():
        assert invsolve(*words, "-o", name).exit_code == 0
        clean[name] = visible(name)
    assert {len(files) for files in clean.values()} == {1, 5}
    at, stopped = 0, True
    while stopped:
        at += 1
        shutil.copytree("first", "left")
        stopped = killed(lambda: invsolve(*second, "-o", "left"), at=at)
        assert stopped or visible("left") == clean["second"]
        for words, name in ((first, "first"), (second, "second")):
            shutil.copytree("left", "out")
            check(words, clean[name])
            shutil.rmtree("out")
        shutil.rmtree("left")
    assert at > 2 * len(clean["second"])  # a flush and a rename for every picture, and the record


def test_killed_at_any_moment() -> None:
    clean = {}
    for name, words in {"one": ONE, "other": OTHER}.items():
        assert invsolve(*words, "-o", name).exit_code == 0
        clean[name] = visible(name)
    start = time.monotonic()
    invsolve(*OTHER, "-o", "timed")
    seconds = time.monotonic() - start
    rng, kills = random.Random(0), 0
    for _ in range(6):
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree("one", "out")
        kills += killed(lambda: invsolve(*OTHER, "-o", "out"), after=rng.uniform(0, 1.2 * seconds))
        check(ONE, clean["one"])
        check(OTHER, clean["other"])
    assert kills > 0


@pytest.mark.parametrize(
    "harm", ["cut", "swapped", "gone", "one bit", "a sample cut", "the spread gone", "a sample swapped"]
)
def test_what_was_harmed_is_not_done(harm: str) -> None:
    assert invsolve(*ONE, "-o", "out").exit_code == 0
    clean = visible("out")
    name = "a_std.png" if "spread" in harm else "a_sample02.png" if "sample" in harm else "a.png"
    path = Path("out", name)
    data = path.read_bytes()
    if "gone" in harm:
        path.unlink()
    elif "cut" in harm:
        path.write_bytes(data[:100])
    elif "swapped" in harm:
        path.write_bytes(Path("out/a_sample03.png").read_bytes())
    else:
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    result = invsolve(*ONE, "-o", "out")
    assert "skipped" not in result.stdout
    assert result.exit_code == 0, result.output
    assert visible("out") == clean


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_what_is_left_of_a_result_is_replaced_and_a_picture_of_the_user_is_not(suffix: str) -> None:
    out = f"out/x{suffix}"
    assert invsolve(*OTHER, "-o", out).exit_code == 0
    whole = Path(out).read_bytes()
    for rest in (b"", whole[:4], whole[:100], whole[:-1]):
        Path(out).write_bytes(rest)
        assert invsolve(*OTHER, "-o", out).exit_code == 0
        assert Path(out).read_bytes() == whole
    theirs = Path("a.png").read_bytes()
    if suffix == ".tif":
        tifffile.imwrite(out, np.zeros((4, 4), np.uint8))
        theirs = Path(out).read_bytes()
    for mine in (theirs, b"a text of mine", theirs[:100]):
        Path(out).write_bytes(mine)
        if mine == theirs[:100]:
            Path("out/x.json").unlink()  # nothing tells that this is the rest of a result
        refused = invsolve(*OTHER, "-o", out)
        assert refused.exit_code == 2
        assert f"{out} exists and was not written by invsolve restore, or was changed since" in refused.stderr
        assert Path(out).read_bytes() == mine


def add_a_text(path: Path) -> None:
    """As a program does that keeps what it does not know."""
    if path.suffix == ".png":
        data = path.read_bytes()
        path.write_bytes(data[:-12] + png_chunk(b"tEXt", b"Artist\0me") + data[-12:])
    else:
        with tifffile.TiffFile(path) as tiff:
            text, values = tiff.pages[0].description, tiff.asarray()
        tifffile.imwrite(path, values, description=text, metadata=None, software="an editor")


def paint(path: Path) -> None:
    """Over one pixel, the texts staying as they are."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            texts = PngInfo()
            texts.add_itxt("invsolve", image.text["invsolve"])
            image.putpixel((0, 0), (1, 2, 3))
            image.save(path, pnginfo=texts)
    else:
        with tifffile.TiffFile(path) as tiff:
            text, values = tiff.pages[0].description, tiff.asarray()
        values[0, 0] = 1
        tifffile.imwrite(path, values, description=text, metadata=None)


@pytest.mark.parametrize("edit", [add_a_text, paint])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_what_the_user_changed_in_a_result_is_not_lost(suffix: str, edit: Callable[[Path], None]) -> None:
    out = Path(f"out/x{suffix}")
    assert invsolve(*ONE, "-o", str(out)).exit_code == 0
    sample = Path("out/x_sample02.png")
    for path in (out, sample):
        whole = path.read_bytes()
        edit(path)
        theirs = path.read_bytes()
        for words in (ONE, OTHER) if path == out else (ONE,):
            refused = invsolve(*words, "-o", str(out))
            assert refused.exit_code == 2
            assert f"{path} exists and was not written by invsolve restore, or was changed since" in refused.stderr
            assert path.read_bytes() == theirs
        path.write_bytes(whole)
    edit(sample)
    assert invsolve(*OTHER, "-o", str(out)).exit_code == 0  # one sample: those of the other run go, but for theirs
    assert sample.exists()
    assert not Path("out/x_sample01.png").exists()
    assert invsolve(*ONE, "-o", str(out), "--overwrite").exit_code == 0


def test_a_record_of_one_format_says_nothing_of_another() -> None:
    assert invsolve(*OTHER, "-o", "out/x.tif").exit_code == 0
    tiff = Path("out/x.tif").read_bytes()
    result = invsolve(*OTHER, "-o", "out/x.png")
    assert "restored" in result.stdout
    assert Path("out/x.png").exists()
    assert Path("out/x.tif").read_bytes() == tiff  # asked for by its name
    assert "skipped" in invsolve(*OTHER, "-o", "out/x.png").stdout


@pytest.mark.parametrize("outputs", [{}, [], ["a.png"], {"a.png": None}, {"../a.png": "0"}, None])
def test_a_record_without_the_right_hashes_is_not_done(outputs: Any) -> None:
    assert invsolve(*OTHER, "-o", "out").exit_code == 0
    told = read_record(Path("out/a.json"))
    Path("out/a.json").write_text(json.dumps(told | {"outputs": outputs}))
    assert "restored" in invsolve(*OTHER, "-o", "out").stdout
    assert Path("a.png").exists()
    assert read_record(Path("out/a.json"))["outputs"] == told["outputs"]


MASKED = ["degrade", "a.png", "--operator", "inpaint-random(fraction=0.5)", "--bit-depth", "16"]
BLURRED = ["degrade", "a.png", "--operator", "identity", "--sigma", "0.1"]


@pytest.mark.parametrize(("first", "second"), [(MASKED, BLURRED), (BLURRED, MASKED)])
def test_a_record_of_degrade_tells_of_its_own_files_only(first: list[str], second: list[str]) -> None:
    at, stopped = 0, True
    while stopped:
        at += 1
        shutil.rmtree("out", ignore_errors=True)
        assert invsolve(*first, "-o", "out").exit_code == 0
        stopped = killed(lambda: invsolve(*second, "-o", "out"), at=at)
        for name, digest in read_record(Path("out/a.json")).get("outputs", {}).items():
            assert not Path("out", name).exists() or sha256_of(Path("out", name)) == digest
        assert invsolve(*second, "-o", "out").exit_code == 0
        told = read_record(Path("out/a.json"))["outputs"]
        assert told == {name: sha256_of(Path("out", name)) for name in visible("out")}
    assert at > 4


def test_a_folder_that_appears_at_once_is_old_or_new_or_not_there() -> None:
    def fill(text: str) -> None:
        with atomic_folder("result") as work:
            for name in ("one", "two"):
                (work / name).write_text(text)
            save_png(torch.zeros(1, 4, 4), work / "three.png", provenance("demo", "mean"))

    at, stopped = 0, True
    while stopped:
        at += 1
        shutil.rmtree("result", ignore_errors=True)
        fill("old")
        stopped = killed(lambda: fill("new"), at=at)
        if Path("result").exists():
            assert changed_files(Path("result")) == []
            assert Path("result/one").read_text() == Path("result/two").read_text()
        fill("newer")
        assert changed_files(Path("result")) == []
        assert sorted(path.name for path in Path().iterdir()) == ["a.png", "result"]  # nothing of the killed one stays
    assert at > 8


def test_a_folder_knows_what_was_changed() -> None:
    with atomic_folder("result") as work:
        (work / "sub").mkdir()
        for name in ("one", "two", "sub/three"):
            (work / name).write_text(name)
    assert changed_files(Path("result")) == []
    Path("result/one").write_text("six")
    Path("result/sub/three").unlink()
    assert changed_files(Path("result")) == ["one", "sub/three"]
    Path("result/.invsolve-files").write_text('["one"]')  # as it was written before it held hashes
    assert changed_files(Path("result")) == ["one", "sub", "two"]


FIT = ["fit", "--operator", "downsample(factor=2)", "--sigma", "0.1", "--size", "8", "--device", "cpu", "--pairs", "40"]
FIT += ["--flow-steps", "2", "--score-steps", "3", "--train-steps", "3", "--slices", "8", "--batch", "8"]
FIT += ["--prior", "gaussian"]


def test_a_fit_with_other_weights_is_not_done() -> None:
    assert invsolve(*FIT, "-o", "flow").exit_code == 0
    path = Path("flow/flow.safetensors")
    weights = path.read_bytes()
    assert "skipped flow" in invsolve(*FIT, "-o", "flow").stdout
    for harmed in (weights[:-4] + bytes([weights[-4] ^ 1]) + weights[-3:], weights[:100]):
        path.write_bytes(harmed)
        result = invsolve(*FIT, "-o", "flow")
        assert result.exit_code == 2
        assert "flow.safetensors, which is damaged, missing or not what `invsolve fit` wrote" in result.stderr
    path.write_bytes(weights)
    assert "skipped flow" in invsolve(*FIT, "-o", "flow").stdout


def test_a_prior_is_what_its_linked_folders_and_its_vocabulary_hold(tmp_path: Path) -> None:
    """And links that lead in a circle end."""
    folder, elsewhere = tmp_path / "prior", tmp_path / "elsewhere"
    (folder / "tokenizer").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "unet").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(folder)
    weights, merges = elsewhere / "diffusion_pytorch_model.safetensors", folder / "tokenizer" / "merges.txt"
    weights.write_bytes(b"one")
    merges.write_text("a b")
    seen = {prior_sha256(str(folder))}
    weights.write_bytes(b"two")
    seen.add(prior_sha256(str(folder)))
    merges.write_text("b a")
    seen.add(prior_sha256(str(folder)))
    assert len(seen) == 3
