"""The package itself: arrows between modules, light import, one copy of every class, complete packaging."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from invsolve.solvers import SOLVERS
from invsolve.tables import Table

ROOT = Path(__file__).parent.parent
HEAVY = ("diffusers", "transformers", "accelerate", "lpips", "kornia", "matplotlib", "skimage", "scipy", "typer")


def modules():
    """Every library file."""
    return sorted([*ROOT.glob("invsolve/**/*.py"), *ROOT.glob("operators/*.py"), *ROOT.glob("priors/*.py")])


def test_imports_point_one_way(tmp_path):
    """The contract in pyproject.toml, on a copy of the package that lies as it is installed."""
    whole = shutil.copytree(ROOT / "invsolve", tmp_path / "invsolve", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("operators", "priors"):
        shutil.copytree(ROOT / name, whole / name, ignore=shutil.ignore_patterns("__pycache__", "natural*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    linter = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout


def test_import_is_light():
    """`import invsolve` loads no heavy package."""
    code = f"import invsolve, sys; print([m for m in {HEAVY} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert output.stdout.strip() == "[]"


def test_all_of_the_package_comes_from_this_tree():
    """An editable install of another checkout would give half of each."""
    import invsolve
    import invsolve.operators
    import invsolve.priors

    found = {Path(module.__file__).parent.parent for module in (invsolve, invsolve.operators, invsolve.priors)}
    assert found == {ROOT}, f"install this checkout: pip install -e {ROOT}"


@pytest.mark.parametrize("name", ["operators", "priors"])
def test_a_second_copy_cannot_be_loaded(name):
    """From the repository root `import operators` finds the folder, and must fail rather than load it twice."""
    run = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode != 0
    assert f"ImportError: {name} is a part of invsolve: import invsolve.{name} instead." in run.stderr


def test_packages_and_data_are_listed():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        "invsolve",
        *("invsolve." + p.name for p in (ROOT / "invsolve").iterdir() if (p / "__init__.py").exists()),
    }
    assert set(config["packages"]) == folders | {"invsolve.operators", "invsolve.priors"}
    assert config["package-dir"]["invsolve.operators"] == "operators"


def test_the_floors_are_the_oldest_versions_that_were_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in (*project["dependencies"], *extras["validate"], *extras["test"])]
    floors = {
        r.name: str(r.specifier) for r in wanted if r.name not in ("ruff", "mypy", "types-PyYAML", "import-linter")
    }
    lines = [line for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    oldest = dict(line.split("==") for line in lines)
    assert len(lines) == len(oldest) and set(oldest) == set(floors)
    for name, floor in floors.items():
        assert floor.startswith(">=") and Version(floor.removeprefix(">=")) == Version(oldest[name]), name


@pytest.mark.parametrize(("prior", "parts"), [("natural", ["unet"]), ("natural-latent", ["unet", "vae"])])
def test_bundled_priors_are_installed_with_their_cards(prior, parts):
    import invsolve.priors

    folder = Path(invsolve.priors.__file__).parent / prior
    for name in ("scheduler/scheduler_config.json", "README.md", *(f"{part}/config.json" for part in parts)):
        assert (folder / name).is_file(), name
    for part in parts:
        assert (folder / part / "diffusion_pytorch_model.safetensors").stat().st_size < 25e6


def test_no_machine_paths_or_unsafe_loading():
    for path in modules():
        text = path.read_text()
        for forbidden in (
            "/root/",
            "/home/",
            "yaml.load(",
            "pickle",
            "trust_remote_code",
            "manual_seed_all",
            "np.random.",
        ):
            assert forbidden not in text, f"{path}: {forbidden}"


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="builds a wheel: only in CI")
def test_wheel_is_complete(tmp_path):
    import zipfile

    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in modules():
        relative = path.relative_to(ROOT)
        expected = relative if relative.parts[0] == "invsolve" else Path("invsolve") / relative
        assert expected.as_posix() in names
    assert "invsolve/priors/natural/unet/diffusion_pytorch_model.safetensors" in names
    assert "invsolve/py.typed" in names


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.slow
def test_a_process_keeps_its_memory_when_told():
    """A large block is freed and taken again without a page fault, which it has without."""
    code = (
        "import resource, sys, torch\n"
        "from invsolve.allocator import keep_memory\n"
        "keep = sys.argv[1] == 'keep' and keep_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "torch.ones(2**24)\n"
        "before = faults()\n"
        "for _ in range(5): torch.ones(2**24)\n"
        "print(int(keep), faults() - before)\n"
    )
    found = {}
    for word in ("keep", "give"):
        run = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=True)
        found[word] = [int(part) for part in run.stdout.split()]
    if not found["keep"][0]:
        pytest.skip("the C library has no mallopt")
    assert found["keep"][1] < 0.2 * found["give"][1], found


def test_the_tables_of_the_solvers_name_their_defaults():
    """The last cell of a row that is named like a field, where it begins with a number or a name alone."""
    checked = 0
    for name, kind in SOLVERS.items():
        for row in re.findall(r"^\| (.+) \|$", sys.modules[kind.__module__].__doc__ or "", re.MULTILINE):
            first, *_, last = row.split(" | ")
            field = first.split(" (")[0].strip("`")
            value = re.match(r"`?([\w.-]+)`?(?:[,:]|$)", last)
            if field not in dir(kind) or value is None:
                continue
            default, text = getattr(kind, field), value[1]
            if isinstance(default, bool):
                assert text == ("yes" if default else "no"), (name, row)
            elif isinstance(default, int | float | str):
                assert type(default)(text) == default, (name, row)
            checked += 1
    assert checked > 40


EXAMPLE = ROOT / "tests" / "example"


def run_with_example(*words):
    """A command in an environment where the package of tests/example is installed."""
    path = os.pathsep.join([str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path})


def test_a_package_of_others_adds_rows():
    """By entry points; the table-driven tests run over its rows."""
    listed = run_with_example(Path(sys.executable).with_name("invsolve"), "list").stdout
    assert all(name in listed for name in ("example-steps", "example-mirror", "example-flat"))
    files = [f"tests/test_{name}.py" for name in ("solvers", "operators", "priors", "cli", "doubt")]
    words = (
        "-q",
        "-p",
        "no:cacheprovider",
        "-n0",
        "-k",
        "example or every_solver_has or every_row_has or has_its_kind",
    )
    run = run_with_example(sys.executable, "-m", "pytest", *words, *files)
    assert run.returncode == 0, run.stdout[-2000:]
    passed = int(re.search(r"(\d+) passed", run.stdout)[1])
    assert passed > 40


def test_a_package_of_others_that_is_broken(tmp_path, monkeypatch, caplog):
    """Its row is told of once and left out; who asks for it by name is told why."""
    from invsolve import build_operator, build_solver

    folder = tmp_path / "broken-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    points = "[invsolve.solvers]\nhurt = broken_package:Hurt\ndps = broken_package:DPS\n"
    (folder / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    table = Table("solver", {"dps": SOLVERS["dps"]})
    with caplog.at_level("WARNING", logger="invsolve"):
        assert list(table) == list(table) == ["dps"]
    assert len(caplog.records) == 2 and "whose name is taken" in caplog.text
    with pytest.raises(
        ValueError, match=r"The solver hurt of the package broken cannot be loaded \(ModuleNotFoundError"
    ):
        table["hurt"]
    with pytest.raises(KeyError):
        table["none"]
    assert build_solver("dps") and build_operator("blur", (3, 32, 32))


def test_files_and_functions_are_short():
    """At most 300 lines a file and 60 a function, docstrings included."""
    for path in modules():
        text = path.read_text()
        assert text.count("\n") <= 300, f"{path}: split it"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name} is too long"
