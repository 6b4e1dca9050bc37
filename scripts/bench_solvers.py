"""What a solver costs: its time over that of its bare network calls, its peak memory, and how it scales with samples.

    python scripts/bench_solvers.py
    python scripts/bench_solvers.py --steps 5 --repetitions 3 --solvers diffpir dps --samples 0

One 256 x 256 picture (a larger --size enlarges it), 70 % of its pixels hidden, noise 0.02.  A repetition times one
solve and, right after it, as many calls of the network and gradients through them as the solver asked for, on a picture
of that size; the table has the median over the repetitions of both and of their ratio.  Memory is the most that a solve
adds to the process, or to the accelerator.  Scaling is the time of --samples samples, batched by 8, over that many
times the time of one: 1 is linear.
Solvers marked * optimise inside a step (with a latent prior so do the proximal ones); those marked + have interacting
samples, at least two.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import endings
import psutil
import torch
from pictures import SIZE, held_out
from torch import Tensor

from invsolve import (
    SOLVERS,
    ImageRng,
    Problem,
    Solver,
    build_operator,
    build_solver,
    load_prior,
    make_times,
    simulate,
    solve,
)
from invsolve.allocator import keep_memory
from invsolve.cli.choices import check_at_least
from invsolve.devices import find_device
from invsolve.errors import sentence
from invsolve.noise import GaussianNoise
from invsolve.operators import OPERATORS
from invsolve.priors import LatentPrior, NetworkPrior
from invsolve.spec import parse_spec

# Gradient steps, an optimiser, a linear solver or a chain inside a step.
INNER = {"daps", "dflow", "flair", "flowdps", "flower", "flowpriors", "mmps", "reddiff", "resample", "rsd", "sgfm"}


def bare_calls(network: torch.nn.Module, z: Tensor, calls: int, gradients: int) -> float:
    """Seconds that `calls` network calls on z and `gradients` through them, evenly shared out, take."""
    timestep = torch.full((len(z),), 500.0, device=z.device)
    start = time.perf_counter()
    for k in range(calls):
        share = gradients * (k + 1) // calls - gradients * k // calls
        with torch.set_grad_enabled(share > 0):
            leaf = z.detach().requires_grad_(share > 0)
            out = network(leaf, timestep).sample
        for left in reversed(range(share)):
            torch.autograd.grad(out, leaf, torch.ones_like(out), retain_graph=left > 0)
    synchronise(z.device)
    return time.perf_counter() - start


def peak_memory(run: Callable[[], Any], device: torch.device) -> float:
    """MiB that `run` adds at its peak: of the accelerator, or of the process, looked at every two milliseconds."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc keeps freed memory, which then is not counted twice
        ctypes.CDLL(None).malloc_trim(0)
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return (peak - before) / 2**20


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
    parser.add_argument("--samples", type=int, default=16, help="of the scaling; 0 leaves it out")
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the network")
    parser.add_argument("--checkpointing", action="store_true")
    endings.run(parser, bench)


def bench(args: argparse.Namespace) -> None:
    """Print the table that the command line asks for."""
    check_at_least(1, steps=args.steps, repetitions=args.repetitions, size=args.size)
    check_at_least(0, samples=args.samples)
    if args.steps > 1000:
        raise ValueError(f"--steps must be 1 to 1000, got {args.steps}.")
    solvers = [build_solver(spec) for spec in args.solvers]  # a mistyped name must not wait for its turn
    keep_memory()
    device = find_device(args.device)
    prior = load_prior(args.prior, args.dtype).to(device)
    if args.checkpointing:
        prior.checkpoint_gradients()
    pixel = prior.prior if isinstance(prior, LatentPrior) else prior
    if not isinstance(pixel, NetworkPrior):
        raise ValueError(f"The prior {args.prior} has no network to compare with; name another with --prior.")
    truth = held_out(min(args.size, SIZE))[:1].to(device)
    truth = torch.nn.functional.interpolate(truth, (args.size, args.size), mode="bilinear", antialias=True)
    name, fields = parse_spec(args.operator, OPERATORS, "operator")
    operator, noise = build_operator(name, (3, args.size, args.size), **fields).to(device), GaussianNoise(0.02)
    problem = Problem(operator, noise, simulate(operator, noise, truth, ImageRng([0])))
    z = torch.randn(1, *prior.latent_shape(operator.image_shape), generator=torch.Generator().manual_seed(0)).to(device)
    bare_calls(pixel.backbone.network, z, 1, 1)  # warm-up
    head = ["solver", "network calls", "gradients", "solve, s", "bare network, s", "ratio", "memory, MiB", "scaling"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for spec, solver in zip(args.solvers, solvers, strict=True):
        label = spec + "*" * (spec.partition("(")[0] in INNER) + "+" * solver.interacting
        times = make_times(solver.times, args.steps, prior.schedule)
        fewest = 2 if solver.interacting else 1

        def run(samples: int, solver: Solver[Any] = solver, times: Tensor = times) -> dict[str, Any]:
            stats = solve(problem, prior, solver, times, samples=samples, batch_size=8).stats
            synchronise(device)
            return stats

        pairs = []
        try:
            memory = peak_memory(functools.partial(run, fewest), device)  # which is the warm-up, too
        except (TypeError, ValueError) as error:  # what it cannot do
            print(f"| {label} | {sentence(error)} |" + " |" * (len(head) - 2), flush=True)
            continue
        for _ in range(args.repetitions):
            stats = run(fewest)
            calls, gradients = round(stats["network"]), round(stats["network_vjp"])
            pairs.append(
                (stats["seconds"], bare_calls(pixel.backbone.network, z.expand(fewest, -1, -1, -1), calls, gradients))
            )
        whole, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        cells = [f"{calls}", f"{gradients}", f"{whole:.3f}", f"{bare:.3f}"]
        cells += [f"{statistics.median(a / b for a, b in pairs):.3f}", f"{memory:.0f}"]
        scaling = run(args.samples)["seconds"] * fewest / (args.samples * whole) if args.samples else None
        print(f"| {label} | " + " | ".join([*cells, "-" if scaling is None else f"{scaling:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
