"""The scripts of the benchmarks: every recipe can be run, and a comparison leaves what it says."""

import json

import pytest
from script_runs import SCRIPTS, run

from invsolve import metrics
from invsolve.files.images import load_image
from invsolve.operators import OPERATORS, build_operator
from invsolve.solvers import SOLVERS, build_solver
from invsolve.spec import parse_spec

ROOT = SCRIPTS.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_what_there_is(scripts, path):
    from recipe import load_recipe

    recipe = load_recipe(path)
    assert recipe.tasks
    for task in recipe.tasks:
        name, fields = parse_spec(task.operator, OPERATORS, "operator")
        build_operator(name, (3, 64, 64), **fields)
        ours = [method for method in task.methods if method.name in SOLVERS]
        assert ours, task.name
        for method in ours:
            build_solver(method.spec)


def test_a_comparison_leaves_rows_pictures_and_a_table(scripts, random_lpips, monkeypatch, tmp_path, capsys):
    arguments = ["--out", tmp_path, "--size", 32, "--images", 1, "--samples", 2, "--tasks", "deblurring", "jpeg"]
    arguments += ["--solver", "flowdps", "--solver", "ddrm", "--solver", "wiener", "--steps", 2]
    run(monkeypatch, "compare", *arguments)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    found = {(row["task"], row["label"], row["of"]) for row in rows if "reason" not in row}
    both = {("flowdps", "sample"), ("flowdps", "mean")}
    assert found == {
        ("deblurring", "ddrm", "sample"),
        ("deblurring", "ddrm", "mean"),
        ("deblurring", "wiener", "sample"),
    } | {(task, *one) for task in ("deblurring", "jpeg") for one in both}
    assert {(row["task"], row["label"]) for row in rows if "reason" in row} == {("jpeg", "ddrm"), ("jpeg", "wiener")}
    for row in rows:
        assert "reason" in row or (tmp_path / row["picture"]).is_file()
    flow = next(row for row in rows if row["label"] == "flowdps")
    assert flow["calls"] == 2
    assert 5 < flow["psnr"][0] < 50
    assert (tmp_path / "deblurring.png").is_file()
    assert f"{flow['psnr'][0]:.2f}" in (tmp_path / "table.md").read_text()
    capsys.readouterr()
    run(monkeypatch, "compare", *arguments)  # nothing is left to do
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(rows)


def test_comparisons_of_two_sizes_in_one_folder_keep_their_pictures(scripts, random_lpips, monkeypatch, tmp_path):
    arguments = ["--out", tmp_path, "--images", 1, "--tasks", "deblurring", "--solver", "wiener", "--size"]
    for size in (64, 32, 64):  # the third run only draws the contact sheet again
        run(monkeypatch, "compare", *arguments, size)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [load_image(tmp_path / row["picture"]).shape[-1] for row in rows] == [64, 32]


def test_a_comparison_without_lpips_stops_before_it_runs(scripts, monkeypatch, tmp_path, capsys):
    def missing():
        raise FileNotFoundError("LPIPS needs the AlexNet weights.")

    monkeypatch.setattr(metrics, "lpips_network", missing)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "compare", "--out", tmp_path / "out")
    assert stop.value.code == 2 and "AlexNet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    timing = ["--timing", 1, "--steps", 1, "--size", 32, "--images", 1, "--tasks", "jpeg", "--methods", "flowdps"]
    run(monkeypatch, "compare", "--out", tmp_path / "out", *timing)  # does without
    assert "flowdps" in (tmp_path / "out" / "timing.md").read_text()


def test_an_interrupted_comparison_goes_on(scripts, random_lpips, monkeypatch, tmp_path):
    """After a torn line, without one of a method's two rows, and without a picture."""
    arguments = ["--out", tmp_path, "--size", 32, "--images", 1, "--samples", 2, "--tasks", "deblurring"]
    arguments += ["--solver", "ddrm", "--solver", "ddnm", "--steps", 2]
    run(monkeypatch, "compare", *arguments)
    results, table = tmp_path / "results.jsonl", (tmp_path / "table.md").read_text().splitlines()
    lines = results.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    for kept in (lines[:3], [*lines[:2], lines[2][:100]], [lines[0], *lines[2:]]):
        results.write_text("".join(kept))
        run(monkeypatch, "compare", *arguments)
        again = (tmp_path / "table.md").read_text().splitlines()
        assert [row.split("|")[:7] for row in again] == [row.split("|")[:7] for row in table]  # all but the times
    row = json.loads(lines[0])
    (tmp_path / row["picture"]).unlink()
    run(monkeypatch, "compare", *arguments)
    assert (tmp_path / row["picture"]).is_file()
    results.write_text("not json\n" + lines[0])
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "compare", *arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--steps", "0"], "steps: Input should be greater than or equal to 1, got 0"),
        (["--samples", "0"], "samples: Input should be greater than or equal to 1, got 0"),
        (["--images", "0"], "--images must be 1 to 4, got 0"),
        (["--images", "9"], "--images must be 1 to 4, got 9"),
        (["--timing", "0"], "--timing must be at least 1, got 0"),
        (["--methods", "deepinv", "--solver", "dps"], "No method is left"),
        (["--size", "300"], "size must be 1 to 256"),
        (["--methods", "fooo"], "no method 'fooo'; the recipe has"),
        (["--tasks", "fooo"], "no task 'fooo'; the recipe has"),
        (["--solver", "dsp"], "Unknown method 'dsp'"),
        (["--prior", "nature"], "Unknown prior 'nature'"),
        (["--recipe", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["--recipe", "README.md"], "is not a recipe"),
        (["--recipe", "RECIPE"], "is not a recipe: tasks.0.methods: expected a list of methods"),
        (["--device", "gpu"], "The device 'gpu' is not supported"),
        (["--times", "fast", "--solver", "dps"], "methods.0.times: Unknown time grid 'fast'"),
        (["--solver", "diffpir(weight=-1)"], "DiffPIR: weight must be"),
    ],
)
def test_a_comparison_refuses_in_one_sentence(words, sentence, scripts, random_lpips, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    wrong = tmp_path / "wrong.yaml"
    task = "{name: a, title: A, operator: identity, sigma: 0, methods: 3}"
    wrong.write_text(f"{{prior: natural, seed: 0, steps: 1, samples: 1, tasks: [{task}]}}")
    words = [str(wrong) if word == "RECIPE" else word for word in words]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "compare", "--out", tmp_path / "out", *words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("Error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


TASK = {"name": "a", "title": "A", "operator": "identity", "sigma": 0, "methods": ["ddnm"]}
RECIPE = {"prior": "gaussian", "seed": 0, "steps": 2, "samples": 1, "tasks": [TASK]}


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"tasks": [TASK | {"name": "../a"}]}, "tasks.0.name: '../a' names no folder"),
        ({"tasks": [TASK | {"name": ""}]}, "tasks.0.name: '' names no folder"),
        ({"tasks": [TASK | {"name": "/a"}]}, "tasks.0.name: '/a' names no folder"),
        ({"tasks": [TASK, TASK | {"title": "B"}]}, "two tasks are called 'a'; rename one"),
        ({"tasks": [TASK | {"methods": [{"spec": "bicubic", "times": "karras"}]}]}, "bicubic has no time grid"),
        (
            {"tasks": [TASK | {"methods": [{"spec": "ddnm", "step": 3}]}]},
            "the keys there are spec, steps, times, samples.",
        ),
        ({"tasks": [TASK | {"sigma": "auto"}]}, "tasks.0.sigma: sigma auto is not a noise level"),
        ({"tasks": [TASK | {"sigma": None}]}, "tasks.0.sigma: sigma None is not a noise level"),
        ({"tasks": [TASK | {"operator": "blur(sigma=-1)"}]}, "blur"),
        ({"tasks": [TASK | {"methods": ["mmdflow(flow_steps=0)"]}]}, "flow_steps must be"),
        ({"step": 3}, "There is no key step; the keys there are prior, seed, steps, samples, tasks."),
        ({"steps": True}, "steps: Input should be a valid integer, got True"),
        ({"steps": "2"}, "steps: Input should be a valid integer, got '2'"),
        ({"prior": ""}, "Unknown prior ''"),
        ({"prior": None}, "prior: Input should be a valid string, got None"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_runs(recipe, sentence, scripts, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("invsolve.metrics.lpips_network", lambda: None)
    (tmp_path / "a.yaml").write_text(json.dumps(RECIPE | recipe))
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "compare", "--out", tmp_path / "out", "--recipe", tmp_path / "a.yaml", "--size", 32)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert sentence in error and error.startswith("Error: ") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_method_that_cannot_do_it_does_not_stop_the_others(scripts, random_lpips, monkeypatch, tmp_path, capsys):
    arguments = ["--out", tmp_path, "--size", 32, "--images", 1, "--samples", 1, "--tasks", "deblurring", "--steps", 2]
    run(monkeypatch, "compare", *arguments, "--solver", "mmdflow", "--solver", "ddnm", "--times", "karras")
    text = (tmp_path / "table.md").read_text()
    assert "**mmdflow, karras grid** | n/a: " in text
    assert "**ddnm, karras grid** | " in text
    run(monkeypatch, "compare", *arguments, "--methods", "classical", "--times", "karras")
    text = (tmp_path / "table.md").read_text()
    assert "wiener | " in text and "karras" not in text


def test_the_benchmark_of_solvers_counts_calls_and_gradients(scripts, monkeypatch, capsys):
    arguments = "--size 32 --steps 2 --repetitions 1 --samples 0 --solvers dps ddnm"
    run(monkeypatch, "bench_solvers", *arguments.split())
    lines = [
        line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith(("| dps", "| ddnm"))
    ]
    assert [[cell.strip() for cell in line] for line in lines] == [["dps", "2", "2"], ["ddnm", "2", "0"]]
    run(monkeypatch, "bench_solvers", *arguments.split()[:-3], "--solvers", "mmdflow", "ddnm")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| mmdflow | mmdflow without folder=") and lines[3].startswith("| ddnm | 2 |")
    assert len({line.count("|") for line in lines}) == 1
