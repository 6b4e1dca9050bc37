"""What a network call costs a Python user and a user of the command line, beside the default of before.

    python scripts/bench_call.py
    python scripts/bench_call.py --steps 2 --repetitions 1 --dtypes float32

DiffPIR restores one blurred 256 x 256 picture, several samples in one batch, on the CPU.  "before" is Python in float32
with the C library as it comes (INVSOLVE_KEEP_MEMORY=0), "Python" is `invsolve.restore`, "command line" is
`invsolve restore`; every line is a process of its own.  The first restoration of a process is the warm-up.  Times are
ms per picture and network call: of the clock the median over the repetitions, of the processor (all cores, user and
system apart) the mean; page faults count pages of 4 KiB that the system had to fetch per picture and call.  On a
machine with other work, compare the processor's times.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import endings
import torch
from pictures import SIZE, held_out

from invsolve import GaussianNoise, ImageRng, build_operator, restore, simulate
from invsolve.cli.choices import check_at_least
from invsolve.devices import DTYPES, native_bfloat16
from invsolve.files.encode import save_png

OPERATOR, SIGMA, SOLVER = "blur(sigma=2, boundary='circular')", 0.02, "diffpir"
WAYS = ("command line", "before", "Python")


def by_python(path: Path, args: argparse.Namespace, dtype: str) -> float:
    """Seconds of one restoration."""
    result = restore(
        path,
        operator=OPERATOR,
        sigma=SIGMA,
        solver=SOLVER,
        samples=args.batch,
        batch_size=args.batch,
        steps=args.steps,
        dtype=dtype,
    )
    return float(result.stats["seconds"])


def by_command(path: Path, args: argparse.Namespace, dtype: str) -> float:
    """Seconds of one restoration, of its record."""
    from invsolve.cli.app import app

    out = path.parent / "restored"
    words = ["restore", str(path), "--operator", OPERATOR, "--sigma", str(SIGMA), "--solver", SOLVER, "--device", "cpu"]
    words += ["--samples", str(args.batch), "--batch-size", str(args.batch), "--steps", str(args.steps)]
    app([*words, "--dtype", dtype, "-o", str(out), "--overwrite"], standalone_mode=False)
    return float(json.loads((out / f"{path.stem}.json").read_text())["stats"]["seconds"])


def one_way(args: argparse.Namespace) -> None:
    """In a process of its own: the numbers of one line as JSON, at the end of what it prints."""
    way, dtype = args.only
    run = by_python
    if way == "command line":
        from invsolve.allocator import keep_memory

        keep_memory()  # as the entry point of `invsolve` does
        run = by_command
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        operator = build_operator("blur", (3, args.size, args.size), sigma=2.0, boundary="circular")
        y = simulate(operator, GaussianNoise(SIGMA), held_out(args.size)[:1], ImageRng([0]))
        save_png(y[0], path)
        run(path, args, dtype)
        before = resource.getrusage(resource.RUSAGE_SELF)
        seconds = [run(path, args, dtype) for _ in range(args.repetitions)]
        after = resource.getrusage(resource.RUSAGE_SELF)
    calls = args.steps * args.batch
    used = [(getattr(after, k) - getattr(before, k)) / len(seconds) for k in ("ru_utime", "ru_stime", "ru_minflt")]
    numbers = [1000 * statistics.median(seconds) / calls, *(1000 * s / calls for s in used[:2]), used[2] / calls]
    print("\n" + json.dumps(numbers))


def bench(args: argparse.Namespace) -> None:
    """Print the table that the command line asks for."""
    check_at_least(1, steps=args.steps, repetitions=args.repetitions, size=args.size, batch=args.batch)
    if args.only is not None:
        one_way(args)
        return
    told = "has" if native_bfloat16() else "has no"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; this CPU {told} instructions for bfloat16\n")
    head = ["way", "dtype", "ms per picture and call", "user, ms", "system, ms", "page faults", "to the command line"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for dtype in args.dtypes:
        lines: dict[str, list[float]] = {}
        for way in WAYS:
            if way == "before" and dtype != "float32":
                continue
            environment = os.environ | ({"INVSOLVE_KEEP_MEMORY": "0"} if way == "before" else {})
            words: list[Any] = ["--size", args.size, "--steps", args.steps, "--batch", args.batch]
            words += ["--repetitions", args.repetitions, "--only", way, dtype]
            command = [sys.executable, __file__, *map(str, words)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                raise ValueError(f"{way} in {dtype} failed: {done.stderr.strip()[-300:]}")
            lines[way] = json.loads(done.stdout.splitlines()[-1])
            base, (clock, user, system, faults) = lines["command line"], lines[way]
            ratio = f"{clock / base[0]:.2f} ({(user + system) / (base[1] + base[2]):.2f} of the processor)"
            cells = [way, dtype, f"{clock:.0f}", f"{user:.0f}", f"{system:.0f}", f"{faults:.0f}", ratio]
            print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="samples, which go through the network at once")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=list(DTYPES))
    parser.add_argument("--only", nargs=2, metavar=("WAY", "DTYPE"), help=argparse.SUPPRESS)
    endings.run(parser, bench)


if __name__ == "__main__":
    main()
