"""Every sampler against the classical method of each task and against deepinv: the restoration table of the README.

    python scripts/compare.py --out results                                        # recipes/restoration.yaml, 20 min
    python scripts/compare.py --out quick --size 128 --images 1 --steps 10 --samples 1 --tasks deblurring
    python scripts/compare.py --out sweep --pictures tuning --tasks jpeg --solver "dps(step_size=2)" --steps 30
    python scripts/compare.py --out results --timing 5 --steps 6                   # seconds per network call, 5 minutes

Needs `pip install invsolve[bench]`, and for LPIPS the AlexNet trunk (scripts/fetch_lpips_trunk.py).  Left in OUT:
`results.jsonl` with one line per row, `table.md`, contact sheets `TASK.png`, the pictures of every row `TASK/*.png`, or
with --timing only `timing.md`.  A row that is in `results.jsonl` for the same prior, pictures and settings is not run
again; its time is worth something only on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import endings
from deepinv_methods import check_deepinv
from measures import measure, measure_spread
from methods import canonical, kind_of, run_method
from pictures import HELD_OUT, SIZE, pictures
from recipe import Method, Recipe, Task, checked, load_recipe
from setting import NotApplicableError, Outcome, Setting
from tables import Row, cells, contact_sheet, save_strip, shown, slug, spread, table, title_of
from torch import Tensor

from invsolve import (
    OPERATORS,
    SOLVERS,
    TIMES,
    GaussianNoise,
    ImageRng,
    NoNoise,
    Prior,
    Problem,
    build_operator,
    build_solver,
    load_prior,
    metrics,
    simulate,
)
from invsolve.allocator import keep_memory
from invsolve.devices import find_device
from invsolve.files.atomic import append_lines, read_lines
from invsolve.priors.identity import prior_sha256
from invsolve.rng import derive_seed
from invsolve.spec import parse_spec

RECIPE = Path(__file__).parents[1] / "recipes" / "restoration.yaml"


def make_problem(task: Task, truth: Tensor, seed: int) -> Problem:
    """The measurement of the pictures (B, 3, H, W), each with its own noise."""
    name, fields = parse_spec(task.operator, OPERATORS, "operator")
    operator = build_operator(name, tuple(truth.shape[1:]), **fields).to(truth.device)
    noise = GaussianNoise(task.sigma) if task.sigma > 0 else NoNoise()
    rng = ImageRng(derive_seed(seed, "measurement", b) for b in range(len(truth)))
    return Problem(operator, noise, simulate(operator, noise, truth, rng))


def fingerprint(prior: Prior) -> str:
    """A hash of the prior's weights."""
    digest = hashlib.sha256()
    for key, value in sorted(prior.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]


def run_task(
    task: Task, problem: Problem, recipe: Recipe, prior: Prior, truth: Tensor, identity: Row, out: Path
) -> None:
    """Run the methods of a task whose rows are not there yet."""
    folder = out / task.name
    folder.mkdir(parents=True, exist_ok=True)
    save_strip(truth, folder / "truth.png")
    save_strip(shown(problem, truth), folder / "measurement.png")
    for method in task.methods:
        key = row_key(method, task, recipe, identity)
        found = [row for row in read_rows(out) if row["id"] == key["id"]]
        if is_done(found, out):
            continue
        setting = Setting(truth, problem, prior, key["steps"], key["times"], key["samples"], recipe.seed)
        label = method.spec if method.times is None else f"{method.spec}, {method.times} grid"
        base: Row = key | {"label": label, "kind": kind_of(method.name), "versions": versions()}
        try:
            outcome = run_method(method.spec, setting)
        except NotApplicableError as reason:
            if all(row.get("reason") != str(reason) for row in found):
                write_rows(out, [base | {"of": "sample", "reason": str(reason), "rows": 1}])
            print(f"{task.name}: {label}: {reason}", flush=True)
            continue
        n, stem = len(truth), f"{slug(label)}-{key['id'][:8]}"
        estimates = {"sample": (outcome.samples[:, 0], 1)}
        if setting.samples > 1 and outcome.samples.shape[1] > 1:
            estimates["mean"] = (outcome.samples.mean(dim=1), setting.samples)
            save_strip(spread(outcome.samples), folder / f"{stem}-std.png")
        rows = []
        for of, (x, count) in estimates.items():
            share = outcome.seconds / outcome.samples.shape[1] * count
            row = base | {"of": of, "rows": len(estimates)} | measure(x, truth, problem)
            if of == "mean":
                row |= measure_spread(outcome.samples, truth)
            row |= {"calls": outcome.calls * count, "gradients": outcome.gradients * count, "seconds": share / n}
            row["picture"] = f"{task.name}/{stem}-{of}.png"
            save_strip(x, out / row["picture"])
            rows.append(row)
        write_rows(out, rows)
        for row in rows:
            print(f"{task.name}: {title_of(row)}: " + ", ".join(cells(row)), flush=True)


def row_key(method: Method, task: Task, recipe: Recipe, identity: Row) -> Row:
    """What makes a row, with its hash."""
    networks = kind_of(method.name) in ("ours", "deepinv")
    key = identity | {
        "task": task.name,
        "operator": task.operator,
        "sigma": task.sigma,
        "method": canonical(method.spec),
        "steps": (method.steps or recipe.steps) if networks else 0,
        "times": (method.times or SOLVERS[method.name].times) if method.name in SOLVERS else None,
        "samples": (method.samples or recipe.samples) if networks else 1,
        "seed": recipe.seed,
    }
    if method.name in SOLVERS and (folder := getattr(build_solver(method.spec), "folder", None)):
        key["fitted flow"] = prior_sha256(folder)  # another fit in the same folder is another method
    return key | {"id": hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}


def is_done(rows: list[Row], out: Path) -> bool:
    """Whether all rows of one method are there, with their pictures; what could not be done is tried again."""
    complete = bool(rows) and len(rows) >= rows[0].get("rows", 1)
    return complete and all("picture" in row and (out / row["picture"]).is_file() for row in rows)


def read_rows(out: Path) -> list[Row]:
    """The rows of the folder, the last of those that were written again; a line that was cut short is left out.

    Raises:
        ValueError: a line is something else.
    """

    def keyed(line: str) -> tuple[tuple[str, str], Row]:
        row = json.loads(line)
        return (row["id"], row["of"]), row

    return list(dict(read_lines(out / "results.jsonl", keyed)).values())


def write_rows(out: Path, rows: list[Row]) -> None:
    """Add rows to those of the folder."""
    append_lines(out / "results.jsonl", map(json.dumps, rows))


def versions() -> dict[str, str]:
    """Of what the methods are made of, as far as it is installed."""
    found = {}
    for name in ("invsolve", "torch", "deepinv", "scikit-image", "bm3d"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def timing(recipe: Recipe, prior: Prior, truth: Tensor, repetitions: int) -> str:
    """Median seconds per network call, all methods of a task in turn, over and over in one process; first picture."""
    lines = ["| task | method | network calls | gradients | s per call |", "|---|---|---|---|---|"]
    for task in recipe.tasks:
        problem = make_problem(task, truth[:1], recipe.seed)
        methods = [method for method in task.methods if kind_of(method.name) in ("ours", "deepinv")]
        seconds: dict[Method, list[float]] = defaultdict(list)
        outcomes: dict[Method, Outcome] = {}
        for repetition in range(repetitions + 1):
            for method in methods:
                steps = method.steps or recipe.steps
                setting = Setting(truth[:1], problem, prior, steps, method.times, 1, recipe.seed)
                try:
                    outcomes[method] = run_method(method.spec, setting)
                except NotApplicableError:
                    continue
                if repetition > 0:  # the first one warms up
                    seconds[method].append(outcomes[method].seconds / outcomes[method].calls)
        for method, values in seconds.items():
            outcome = outcomes[method]
            lines.append(
                f"| {task.title} | {method.spec} | {outcome.calls:.0f} | {outcome.gradients:.0f} | "
                f"{statistics.median(values):.4f} |"
            )
    return "\n".join(lines) + "\n"


def override(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe as the command line changes it: fewer tasks or methods, other solvers, steps or samples."""
    tasks = list(_tasks(recipe, args))
    if not tasks:
        raise ValueError("No method is left; choose others with --tasks, --methods and --solver.")
    seed = recipe.seed if args.seed is None else args.seed
    return recipe.model_copy(update={"prior": args.prior or recipe.prior, "seed": seed, "tasks": tasks})


def _tasks(recipe: Recipe, args: argparse.Namespace) -> Iterator[Task]:
    names = [task.name for task in recipe.tasks]
    for name in args.tasks or []:
        if name not in names:
            raise ValueError(f"There is no task {name!r}; the recipe has {', '.join(names)}.")
    known = {m.name for task in recipe.tasks for m in task.methods} | {"ours", "deepinv", "classical"}
    for name in args.methods or []:
        if name not in known:
            raise ValueError(f"There is no method {name!r}; the recipe has {', '.join(sorted(known))}.")
    for task in recipe.tasks:
        if args.tasks and task.name not in args.tasks:
            continue
        methods = [Method(spec=spec) for spec in args.solver] if args.solver else task.methods
        if args.methods:
            methods = [m for m in methods if m.name in args.methods or kind_of(m.name) in args.methods]
        if methods:
            yield checked(Task, task.model_dump() | {"methods": [_changed(method, args) for method in methods]})


def _changed(method: Method, args: argparse.Namespace) -> dict[str, Any]:
    """The method with what the command line says of all."""
    keys = ["steps", "samples"] + (["times"] if method.name in SOLVERS else [])
    return method.model_dump() | {key: getattr(args, key) for key in keys if getattr(args, key) is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--pictures", choices=["held-out", "tuning"], default="held-out")
    parser.add_argument("--images", type=int, default=4, help="number of pictures")
    parser.add_argument("--size", type=int, default=SIZE, help="below 256: the middle of each picture")
    parser.add_argument("--tasks", nargs="+", help="names in the recipe")
    parser.add_argument("--methods", nargs="+", help="names without fields, or ours, deepinv, classical")
    parser.add_argument("--solver", action="append", help="method spec to run instead of the recipe's; may be repeated")
    parser.add_argument("--steps", type=int, help="for all methods")
    parser.add_argument("--times", help=f"time grid for all our solvers: {', '.join(TIMES)}")
    parser.add_argument("--samples", type=int, help="for all methods")
    parser.add_argument("--prior", help="name or folder instead of the recipe's")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--timing", type=int, metavar="N", help="only time the network methods, N rounds")
    endings.run(parser, compare)


def compare(args: argparse.Namespace) -> None:
    """Run what the command line asks for."""
    if args.timing is None:
        metrics.lpips_network()  # now, not after the first row
    keep_memory()
    recipe = override(load_recipe(args.recipe), args)
    if args.timing is not None and args.timing < 1:
        raise ValueError(f"--timing must be at least 1, got {args.timing}.")
    if not 1 <= args.images <= len(HELD_OUT):
        raise ValueError(f"--images must be 1 to {len(HELD_OUT)}, got {args.images}.")
    device = find_device(args.device)
    truth = pictures(args.pictures, args.size)[: args.images].to(device)
    prior = load_prior(recipe.prior, "float32").to(device)
    if any(kind_of(method.name) == "deepinv" for task in recipe.tasks for method in task.methods):
        check_deepinv()
    problems = [make_problem(task, truth, recipe.seed) for task in recipe.tasks]  # all, before a network runs
    args.out.mkdir(parents=True, exist_ok=True)
    if args.timing is not None:
        text = timing(recipe, prior, truth, args.timing)
        (args.out / "timing.md").write_text(text)
        print(text)
        return
    identity = {"prior": recipe.prior, "weights": fingerprint(prior), "pictures": args.pictures}
    identity |= {"size": args.size, "images": len(truth)}
    ids = []
    for task, problem in zip(recipe.tasks, problems, strict=True):
        run_task(task, problem, recipe, prior, truth, identity, args.out)
        ids += [row_key(method, task, recipe, identity)["id"] for method in task.methods]
    found = read_rows(args.out)
    rows = [row for key in dict.fromkeys(ids) for row in found if row["id"] == key]  # in the order of the recipe
    text = table(recipe, rows)
    (args.out / "table.md").write_text(text)
    print(text)
    for task in recipe.tasks:
        contact_sheet(task, rows, [str(b) for b in range(len(truth))], args.out)


if __name__ == "__main__":
    main()
