"""The samplers of deepinv in the comparison: the same operator, noise and units, counted calls, and clear refusals."""

import json
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from script_runs import run

from invsolve import GaussianNoise, ImageRng, Problem, simulate
from invsolve.operators import OPERATORS, build_operator
from invsolve.priors import Diagonal, GaussianPrior
from invsolve.spec import parse_spec


@pytest.mark.parametrize(
    "spec",
    [
        "identity",
        "inpaint-random",
        "blur(boundary=circular)",
        "blur-motion(boundary=circular)",
        "downsample",
        "downsample-bicubic",
    ],
)
def test_deepinv_decomposes_the_same_operator(scripts, spec):
    pytest.importorskip("deepinv")
    from deepinv_physics import decomposed
    from setting import Setting

    name, fields = parse_spec(spec, OPERATORS, "operator")
    operator = build_operator(name, (3, 24, 20), **fields)
    x = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    y = operator(x)
    physics = decomposed(Setting(x, Problem(operator, GaussianNoise(0.02), y), None, 2, None, 1, 0), 0.01)
    assert torch.allclose(physics.A(x), y, atol=1e-6)
    assert torch.allclose(physics.A_adjoint(y), operator.adjoint(y), atol=1e-6)
    assert torch.allclose(physics.V(physics.V_adjoint(x)), x, atol=2e-6)
    assert torch.allclose(physics.U(physics.U_adjoint(y)), y, atol=2e-6)


def test_deepinv_samples_the_posterior_of_a_gaussian(scripts):
    """Its moment matching is exact there; another scale of the noise, the data or the network would show."""
    pytest.importorskip("deepinv")
    from methods import run_method
    from setting import Setting

    variance, sigma, draws = 0.09, 0.1, 8
    prior = GaussianPrior(Diagonal(torch.tensor(variance).double()))
    operator, noise = build_operator("inpaint-random", (3, 24, 24), fraction=0.5), GaussianNoise(sigma)
    y = simulate(operator, noise, prior.sample((3, 24, 24), ImageRng([0])), ImageRng([1])).repeat(draws, 1, 1, 1)
    seen = operator.observed.bool().expand(3, 24, 24)
    mean, std = variance / (variance + sigma**2) * y[0], (variance * sigma**2 / (variance + sigma**2)) ** 0.5

    def run(spec, steps):
        found = run_method(spec, Setting(y, Problem(operator, noise, y), prior, steps, None, 1, 0))
        x = found.samples[:, 0]
        error, spread = (x.mean(dim=0) - mean)[seen].square().mean().sqrt() / std, x.std(dim=0)
        return found, error, spread[seen].square().mean().sqrt() / std, spread[~seen].square().mean().sqrt() / 0.3

    for spec in ("deepinv-mmps", "deepinv-mmps(grid=restoration,start=guess)"):
        found, error, seen_spread, hidden_spread = run(spec, 200)
        assert found.calls == 200 and found.gradients == 600
        assert 0.25 < error < 0.45  # 0.354 is the error of a mean of eight
        assert 0.8 < seen_spread < 1.05 and 0.9 < hidden_spread < 1.05
    _, error, seen_spread, hidden_spread = run("deepinv-pigdm(grid=restoration)", 100)  # takes the variance for 4
    assert error < 0.6 and 0.9 < seen_spread < 1.15 and 0.9 < hidden_spread < 1.05
    found, error, _, hidden_spread = run("deepinv-ddrm(grid=restoration)", 30)  # draws sigma / sqrt(2)
    assert found.calls == 30 and found.gradients == 0
    assert error < 0.3 and 0.5 < hidden_spread < 0.75


def test_the_samplers_of_deepinv_are_rows(scripts, random_lpips, monkeypatch, tmp_path):
    pytest.importorskip("deepinv")
    arguments = ["--out", tmp_path, "--size", 32, "--images", 1, "--samples", 1, "--steps", 3]
    specs = ["deepinv-pigdm", "deepinv-mmps(grid=restoration,start=guess)", "deepinv-ddrm"]
    arguments += [word for spec in [*specs, "ddnm"] for word in ("--solver", spec)]
    tasks = ["super-resolution", "deblurring", "inpainting", "denoising", "jpeg"]
    run(monkeypatch, "compare", *arguments, "--tasks", *tasks)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    found = {(row["task"], row["label"]): row for row in rows}
    for task in tasks[:-1]:
        counts = [(found[task, spec]["calls"], found[task, spec]["gradients"]) for spec in specs]
        assert counts[0] == (3, 3) and counts[2] == (3, 0)
        assert counts[1][0] == 3 and 9 <= counts[1][1] <= 15  # conjugate gradients may need fewer
    assert {row["label"] for row in rows if "reason" in row and row["task"] == "jpeg"} == set(specs)
    text = (tmp_path / "table.md").read_text()
    assert f"deepinv {found['denoising', 'deepinv-ddrm']['versions']['deepinv']}" in text.splitlines()[0]
    assert "| deepinv-ddrm | n/a: needs a linear operator whose singular value decomposition is known" in text


@pytest.mark.parametrize("found", ["0.4.1", None])
def test_an_old_deepinv_stops_the_comparison_before_it_runs(
    found, scripts, random_lpips, monkeypatch, tmp_path, capsys
):
    import deepinv_methods

    def version(name):
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(deepinv_methods, "version", version)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "compare", "--out", tmp_path / "out", "--tasks", "deblurring", "--size", 32)
    assert stop.value.code == 2
    assert f"need deepinv 0.5 or newer, got {found or 'none'}; run pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    out = tmp_path / "ours"
    run(
        monkeypatch,
        "compare",
        "--out",
        out,
        "--tasks",
        "deblurring",
        "--size",
        32,
        "--images",
        1,
        "--methods",
        "wiener",
    )
    assert "wiener" in (out / "table.md").read_text()
