"""What the training scripts of the bundled priors share: their options, the optimisers, and a loop that can be resumed.

The schedule counts the processor's time and not the clock's: a training that is paused (`kill -STOP`, `kill -CONT`) or
runs beside others loses nothing.  The rates are constant up to `--decay-from` and fall linearly from there to zero at
`--minutes`.  Without an end (`--minutes inf`) they stay constant, and the average of the weights is saved all the
time: it is useful at every moment, and a decay can begin at any of them.  Stop the training, copy OUT.state to
NEW.state, and continue with `--out NEW --resume --decay-from M --minutes N`, M the minutes of the last line of the log.
"""

from __future__ import annotations

import argparse
import copy
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from muon import Muon
from torch import Tensor, nn

from invsolve.devices import native_bfloat16

__all__ = ["Clock", "add_arguments", "autocast", "decay", "train"]

WARM_UP = 100  # steps
SPIKE = 12.0  # a batch whose loss exceeds the recent median by so many median deviations is left out
RECENT = 100  # steps
AVERAGE = 0.999  # of the exponential moving average of the weights
SAVE_EVERY = 300.0  # seconds of the wall clock
REPORT_EVERY = 60.0  # minutes of computing


class Clock:
    """Minutes of computing: on the CPU the process's own time over its threads, elsewhere the wall clock's.

    Arguments:
        minutes: what was counted before.
        device: where the network computes.
    """

    def __init__(self, minutes: float, device: torch.device) -> None:
        self.on_cpu, self.before = device.type == "cpu", minutes
        self.start = self._seconds()

    def minutes(self) -> float:
        return self.before + (self._seconds() - self.start) / 60

    def _seconds(self) -> float:
        return time.process_time() / torch.get_num_threads() if self.on_cpu else time.monotonic()


def add_arguments(parser: argparse.ArgumentParser, minutes: float, crop: int, batch: int) -> None:
    """The options of every training."""
    parser.add_argument("--data", type=Path, required=True, help="the folder of make_training_set.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--minutes",
        type=float,
        default=minutes,
        help="of computing, without pauses and other programs; inf: no end",
    )
    parser.add_argument("--decay-from", type=float, default=0.0, help="minutes from which on the rates fall to zero")
    parser.add_argument("--crop", type=int, default=crop, help="side of the training crops in pixels")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=0.01, help="of Muon")
    parser.add_argument("--lr-adam", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=_device, default="cpu", help="cpu or cuda")
    parser.add_argument("--resume", action="store_true", help="continue from OUT.state; --minutes is the whole")
    parser.add_argument("--start", type=Path, help="start from the weights of this folder")


def _device(name: str) -> torch.device:
    """The device of an option.

    Raises:
        argparse.ArgumentTypeError: it is none, or is not there.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise argparse.ArgumentTypeError(f"torch cannot compute on {name!r} here; take cpu") from error
    return torch.device(name)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device computes in it natively; else float32, which is faster than its emulation."""
    kind = device.type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu" or native_bfloat16())


def decay(minutes: float, start: float, end: float) -> float:
    """Factor of the rates: 1 until `start`, falling linearly to 0 at `end`."""
    if minutes <= start or math.isinf(end):
        return 1.0
    return max(0.0, (end - minutes) / (end - start))


def train(
    network: nn.Module,
    is_inner: Callable[[str, nn.Parameter], bool],
    loss_of: Callable[[], Tensor],
    save: Callable[[nn.Module, Path], None],
    args: argparse.Namespace,
    weight_decay: float,
    report: Callable[[Path], str] = str,
) -> None:
    """Muon for the inner parameters and Adam for the rest, the rates of `decay`, an average of the weights.

    SIGTERM ends the training after the step at hand: the state and the weights are stored.

    Arguments:
        network: what is trained; the average of its weights is what is saved.
        is_inner: of a parameter's name and value, whether Muon has it.
        loss_of: the loss of a new batch.
        save: writes a network to a folder.
        args: of `add_arguments`.
        weight_decay: of Muon.
        report: what the log says of the saved folder every REPORT_EVERY minutes and at the end.
    """
    training = _Training(network, is_inner, save, args, weight_decay)
    stopped: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    stored, reported = time.monotonic(), training.minutes
    while training.minutes < args.minutes and not stopped:
        training.step(loss_of)
        if time.monotonic() - stored > SAVE_EVERY:
            training.store()
            training.log(f"median loss {np.median(training.recent):.4f}")
            stored = time.monotonic()
        if training.minutes - reported > REPORT_EVERY:
            training.store()
            training.log(report(args.out))
            reported = training.minutes
    training.store()
    signal.signal(signal.SIGTERM, previous)
    training.log("stopped" if stopped else report(args.out))


class _Training:
    """The weights, their average, the optimisers and the clock of one training; all of them are stored."""

    def __init__(
        self,
        network: nn.Module,
        is_inner: Callable[[str, nn.Parameter], bool],
        save: Callable[[nn.Module, Path], None],
        args: argparse.Namespace,
        weight_decay: float,
    ) -> None:
        self.network, self.save, self.args = network, save, args
        named = list(network.named_parameters())
        inner, outer = ([p for name, p in named if is_inner(name, p) == want] for want in (True, False))
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(inner, args.lr, weight_decay=weight_decay),
            torch.optim.AdamW(outer, args.lr_adam, betas=(0.9, 0.99), weight_decay=0),
        ]
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.file = args.out.with_name(args.out.name + ".state") / "state.pt"
        self.n, self.recent, before = 0, deque[float](maxlen=RECENT), 0.0
        if args.resume:
            state = torch.load(self.file, weights_only=True, map_location=args.device)
            network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(stored)
            self.n, before = state["step"], state["minutes"]
        torch.manual_seed(args.seed + self.n)
        self.clock = Clock(before, args.device)

    @property
    def minutes(self) -> float:
        """Minutes of computing, those before --resume included."""
        return self.clock.minutes()

    def step(self, loss_of: Callable[[], Tensor]) -> None:
        """One step of both optimisers, unless the loss is far above the recent ones or not finite."""
        args = self.args
        factor = min(1, (self.n + 1) / WARM_UP) * decay(self.minutes, args.decay_from, args.minutes)
        for optimizer, rate in zip(self.optimizers, (args.lr, args.lr_adam), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        value = loss.item()
        if not value < _highest(self.recent):
            self.log(f"loss {value:.4g}, skipped")
            return
        self.recent.append(value)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.n += 1
        keep = min(AVERAGE, self.n / (self.n + 10))
        weights = [p.detach() for p in self.network.parameters()]
        torch._foreach_lerp_(list(self.average.parameters()), weights, 1 - keep)

    def store(self) -> None:
        """Write the state and the averaged weights; a crash leaves the old ones or the new ones."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "minutes": self.minutes,
            "step": self.n,
        }
        new = self.file.with_suffix(".new")
        torch.save(state, new)
        new.replace(self.file)
        folder = self.file.parent / "weights"
        self.save(self.average, folder)
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            to = self.args.out / file.relative_to(folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            file.replace(to)

    def log(self, text: str) -> None:
        """One line with the time and the step."""
        print(f"{self.minutes:.1f} min  step {self.n}  {text}", flush=True)


def _highest(recent: Sequence[float]) -> float:
    """The loss from which on a batch is a spike: some median deviations above the median of enough recent losses."""
    if len(recent) < RECENT // 5:
        return math.inf
    median = np.median(recent)
    return float(median + SPIKE * np.median(np.abs(np.asarray(recent) - median)))
