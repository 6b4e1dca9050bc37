"""Fit conditional MMD flows and measure their samples.

    python scripts/mmd_flow.py digits --out flows/digits      # scikit-learn's 8x8 digits, lower half observed
    python scripts/mmd_flow.py crops --out flows/crops        # 16x16 crops drawn from `natural`, downsampled by 2

A fit that was stopped goes on; one that is there is measured only.  For the digits the exact posterior is known: the
problems are those of `invsolve validate digits`, the floor is a second set of exact samples, and every stage has its
own row.  For the crops the truth of fresh draws is known: the flow stands beside DDNM and DiffPIR with `natural`.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve import GaussianNoise, Problem, build_operator, build_solver, load_prior, make_times, solve
from invsolve.flows.fit import FitSettings, fit
from invsolve.flows.fitted import load_fitted
from invsolve.metrics import coverage
from invsolve.rng import ImageRng, derive_seed
from invsolve.sample import measure, sample_pictures
from invsolve.solvers import MMDFlow
from invsolve.validate.cases import digits_mixture
from invsolve.validate.metrics import evaluate
from invsolve.validate.suites import find_suite

COLUMNS = ("sw1", "mean_error", "cov_error", "mode_tv", "coverage")
SHAPE, CANVAS, DRAW_STEPS = (3, 16, 16), 64, 10


def digits(out: Path, first: str, pairs: int, problems: int, stages: int | None) -> None:
    """The suite `digits` of `invsolve validate`, from draws of its mixture."""
    suite = find_suite("digits")
    problem = suite.case("bottom-half", 0).problem

    def draw() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        x = torch.cat([digits_mixture().sample(1000, generator) for _ in range(pairs // 1000)]).float()
        return x, measure(x, problem.operator, problem.noise, ImageRng(range(len(x))))

    if not out.exists():
        if first == "score":
            settings = FitSettings(stages=stages or 1, batch=512, lr=2e-3)
        else:
            settings = FitSettings(
                first=first,
                stages=stages or 4,
                particles=10_000,
                slices=64,
                flow_steps=40,
                train_steps=400,
                lr=1e-3,
            )
        fit(draw, problem.operator, problem.noise, out, settings, source=f"{pairs} digits of the mixture", report=print)
    steps, rows = len(load_fitted(out).stages), defaultdict(list)
    for case in (suite.case("bottom-half", k) for k in range(problems)):
        exact, images = case.exact(suite.reference, 0), []

        def keep(*state: Any, kept: list[Tensor] = images) -> None:
            kept.append(state[-1].image())

        solve(
            case.problem,
            case.prior,
            MMDFlow(folder=str(out)),
            make_times("uniform", steps, case.prior.schedule),
            samples=suite.samples,
            batch_size=suite.samples,
            observers=[keep],
        )
        rows["exact"].append(case.exact(suite.samples, 1))
        rows["prior"].append(case.ignorant(suite.samples, 1))
        for k, x in enumerate(images, start=1):
            rows[f"stage {k}"].append(x)
        for kept in rows.values():
            kept[-1] = list(evaluate(case, kept[-1], exact, COLUMNS).values())
    found = {name: torch.tensor(values) for name, values in rows.items()}  # (problems, columns)
    floor = found["exact"][:, 0]
    print(f"{'':8} " + " ".join(f"{name:>11}" for name in COLUMNS) + "   sw1 in floors, median of the problems")
    for name, values in found.items():
        ratio, median = values[:, 0].mean() / floor.mean(), (values[:, 0] / floor).median()
        print(f"{name:8} " + " ".join(f"{v:11.4f}" for v in values.mean(dim=0)) + f"   {ratio:.2f}, {median:.2f}")


def crops(out: Path, first: str, pairs: int, problems: int, stages: int | None) -> None:
    """16x16 crops of 64x64 pictures drawn from `natural`, downsampled by 2 with noise 0.1."""
    prior = load_prior("natural", "float32")
    operator, noise = build_operator("downsample", SHAPE, factor=2), GaussianNoise(0.1)
    times = make_times("karras", DRAW_STEPS, prior.schedule)

    def draw(n: int, kind: str) -> tuple[Tensor, Tensor]:
        rows = ImageRng(derive_seed(1, kind, j) for j in range(n))
        x, _ = sample_pictures(prior, SHAPE, rows, times, canvas=CANVAS)
        return x, measure(x, operator, noise, rows)

    if not out.exists():
        settings = FitSettings(
            first=first, stages=stages or 2, width=16, batch=32, score_steps=600, train_steps=200, lr=2e-3
        )
        source = f"{pairs} crops drawn from natural"
        fit(lambda: draw(pairs, "pair"), operator, noise, out, settings, source=source, report=print)
    truth, y = draw(problems, "test")
    print(f"{'':30} rmse of mean   spread   within 90 %   s per sample")
    for solver in (f"mmdflow(folder='{out}')", "ddnm(eta=0.85)", "diffpir"):
        start = time.process_time()
        x = solve(Problem(operator, noise, y), prior, build_solver(solver), samples=16, batch_size=64).samples
        seconds = (time.process_time() - start) / (16 * problems)
        mean, std = x.mean(dim=1), x.std(dim=1)
        error = truth - mean
        inside = float(coverage(x, truth).mean())
        rmse, spread = (float(part.square().mean().sqrt()) for part in (error, std))
        print(f"{solver:30} {rmse:12.4f} {spread:8.4f} {inside:13.3f} {seconds:14.4f}")


def main() -> None:
    """Fit, unless it is done, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "crops"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", choices=("score", "flow"), default="score", help="flow is the paper's")
    parser.add_argument("--stages", type=int, help="by default 1 for digits, or 4 of --first flow, and 2 for crops")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--problems", type=int, help="50 digits or 20 crops by default")
    args = parser.parse_args()
    run, pairs, problems = (digits, 500_000, 50) if args.what == "digits" else (crops, 2000, 20)
    start = time.process_time()
    run(args.out, args.first, args.pairs or pairs, args.problems or problems, args.stages)
    print(f"{time.process_time() - start:.0f} s of processor time")


if __name__ == "__main__":
    main()
