"""What a solver costs beyond its network: the time of a whole solve over the time of its bare network calls.

    python scripts/bench_overhead.py
    python scripts/bench_overhead.py --steps 5 --repetitions 3 --solvers diffpir dps

One 256 x 256 picture, 70 % of its pixels hidden, noise 0.02.  A repetition times one solve and, right after it, as many
calls of `prior.network` (with the gradient of as many as the solver asked for) on a picture of that size; the table has
the median over the repetitions of both and of their ratio.  Solvers marked * optimise inside a step.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from pictures import SIZE, held_out

from invsolve import SOLVERS, ImageRng, Problem, build_operator, build_solver, load_prior, make_times, simulate, solve
from invsolve.operators import OPERATORS
from invsolve.priors import PixelPrior
from invsolve.problem import GaussianNoise
from invsolve.spec import parse_spec

INNER_OPTIMISATION = {"flowdps", "reddiff"}  # gradient steps or an optimiser inside a step


def bare_calls(prior: PixelPrior, calls: int, gradients: int, size: int) -> float:
    """Seconds that `calls` network calls take, the first `gradients` of them with a gradient."""
    z = torch.randn(1, prior.channels, size, size, generator=torch.Generator().manual_seed(0))
    z = z.to(next(prior.network.parameters()).device)
    timestep = torch.full((1,), 500.0, device=z.device)
    start = time.perf_counter()
    for k in range(calls):
        with torch.set_grad_enabled(k < gradients):
            leaf = z.requires_grad_(k < gradients)
            out = prior.network(leaf, timestep).sample
            if k < gradients:
                torch.autograd.grad(out, leaf, torch.ones_like(out))
    synchronise(z.device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait for an accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural", help="name or folder")
    parser.add_argument("--operator", default="inpaint-random(fraction=0.7)")
    parser.add_argument("--solvers", nargs="+", default=list(SOLVERS), help="names or specs")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    prior = load_prior(args.prior).to(device)
    if not isinstance(prior, PixelPrior):
        raise SystemExit(f"The prior {args.prior} has no network to compare with.")
    truth = held_out(args.size)[:1].to(device)
    name, fields = parse_spec(args.operator, OPERATORS, "operator")
    operator, noise = build_operator(name, (3, args.size, args.size), **fields).to(device), GaussianNoise(0.02)
    problem = Problem(operator, noise, simulate(operator, noise, truth, ImageRng([0])))
    bare_calls(prior, 1, 1, args.size)  # warm-up
    print("| solver | network calls | gradients | solve, s | bare network, s | ratio |\n|---|---|---|---|---|---|")
    for spec in args.solvers:
        solver = build_solver(spec)
        mark = "*" if spec.partition("(")[0] in INNER_OPTIMISATION else ""
        if not isinstance(operator, solver.requires):
            print(f"| {spec}{mark} | needs a {solver.requires.__name__} | | | | |")
            continue
        times = make_times(solver.times, args.steps, prior.schedule)
        pairs = []
        for repetition in range(args.repetitions + 1):
            stats = solve(problem, prior, solver, times).stats
            synchronise(device)
            calls, gradients = round(stats["network"]), round(stats["network_vjp"])
            seconds = (stats["seconds"], bare_calls(prior, calls, gradients, args.size))
            if repetition > 0:  # the first one warms up
                pairs.append(seconds)
        whole, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {spec}{mark} | {calls} | {gradients} | {whole:.3f} | {bare:.3f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
