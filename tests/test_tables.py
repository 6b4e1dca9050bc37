"""The scripts whose tables stand in docs/: each runs, small, and leaves what it says."""

import json

import pytest
from script_runs import run

import invsolve.doubts.expected


def cells(line):
    return [cell.strip() for cell in line.strip("|\n ").split("|")]


def stopped(monkeypatch, capsys, script, *arguments):
    """The one sentence with which a script stops."""
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, script, *arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_table_of_borders(scripts, monkeypatch, tmp_path, capsys):
    small = ["--images", 1, "--size", 40, "--steps", 2, "--out", tmp_path]
    run(monkeypatch, "blur_table", *small, "--kernels", "even", "gaussian")
    head, _, even, gaussian = (tmp_path / "blur.md").read_text().splitlines()
    assert cells(head) == ["kernel", "input", "wiener", "unknown", "reflect", "zero", "circular", "resampled"]
    assert cells(even)[0] == "even" and cells(gaussian)[-1] == "-"
    values = dict(zip(cells(head)[1:], map(float, cells(even)[1:]), strict=True))
    assert values["unknown"] > values["circular"]
    assert len(list(tmp_path.glob("even-*.png"))) == 7
    assert "invalid choice: 'evn'" in stopped(monkeypatch, capsys, "blur_table", *small, "--kernels", "evn")
    assert "--images must be at least 1" in stopped(monkeypatch, capsys, "blur_table", "--images", 0)


def test_the_table_of_doubts(scripts, monkeypatch, tmp_path, capsys):
    small = ["--images", 1, "--size", 16, "--out", tmp_path, "--solver", "ddrm", "--cases"]
    run(monkeypatch, "check_doubts", *small, "noise 5", "blur 2, grey, noise 3", "noise 15 taken for 30")
    lines = (tmp_path / "doubts.md").read_text().splitlines()
    assert [cells(line)[:2] for line in lines[2:5]] == [
        ["noise 5", "right"],
        ["blur 2, grey, noise 3", "right"],
        ["noise 15 taken for 30", "wrong"],
    ]
    assert lines[6].startswith("Right models: ") and lines[6].endswith(" of 2 results are doubted.")
    rows = (tmp_path / "doubts.jsonl").read_text()
    run(monkeypatch, "check_doubts", *small, "noise 5")  # it is there
    assert (tmp_path / "doubts.jsonl").read_text() == rows
    assert "no case 'nois 5'; choose right, wrong, all" in stopped(
        monkeypatch, capsys, "check_doubts", *small, "nois 5"
    )


def test_the_table_of_expected_chi2(scripts, monkeypatch, tmp_path, capsys):
    table = tmp_path / "expected_chi2.json"
    monkeypatch.setattr("expected_chi2.TABLE", table)
    small = ["--out", tmp_path, "--size", 16, "--solvers", "ddrm", "--kinds", "denoising", "JPEG"]
    assert "has no rows of size 16" in stopped(monkeypatch, capsys, "expected_chi2", *small, "--write")
    run(monkeypatch, "expected_chi2", *small)
    assert "ddrm, JPEG: DDRM needs a SpectralOperator" in capsys.readouterr().out
    rows = (tmp_path / "results.jsonl").read_text()
    assert len(rows.splitlines()) == 7  # four noise levels, three of them also in one step
    run(monkeypatch, "expected_chi2", *small)
    assert (tmp_path / "results.jsonl").read_text() == rows
    run(monkeypatch, "expected_chi2", *small, "--write")
    written, stored = (json.loads(path.read_text()) for path in (table, invsolve.doubts.expected.TABLE))
    assert written["about"] == stored["about"] | {"size": 16}
    assert {steps: list(bands) for steps, bands in written["solvers"]["ddrm"]["denoising"].items()} == {
        "20": ["0.0", "0.02", "0.08", "0.3"],
        "1": ["0.02", "0.08", "0.3"],
    }


@pytest.mark.slow
def test_the_table_of_calls(scripts, monkeypatch, capsys):
    """Three processes, each with its imports."""
    small = ["--size", 32, "--steps", 1, "--batch", 2, "--repetitions", 1, "--dtypes", "float32"]
    run(monkeypatch, "bench_call", *small)
    lines = capsys.readouterr().out.splitlines()
    assert [cells(line)[:2] for line in lines[4:]] == [[way, "float32"] for way in ("command line", "before", "Python")]
    assert "--steps must be at least 1" in stopped(monkeypatch, capsys, "bench_call", "--steps", 0)
