"""What the training scripts of the bundled priors share: crops of the pictures, Muon, a loop that can be resumed."""

from __future__ import annotations

import argparse
import copy
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

__all__ = ["Crops", "Muon", "add_arguments", "ahead", "orthogonalise", "train"]

SHORT_SIDES = (200, 280, 400, 560, 800, 1100)  # every photograph at these sizes,
SHARP = 0.75  # but at most this share of its own: reduced pictures have no blur and no JPEG blocks
STAMP_SIZE = 160
WARM_UP = 100  # steps
SPIKE = 10.0  # a batch whose loss exceeds the recent median by this factor is left out
AVERAGE = 0.999  # of the exponential moving average of the weights
SAVE_EVERY = 300.0  # seconds


class Crops:
    """Random crops of the training pictures as batches (B, 3, side, side) in [-1, 1]."""

    def __init__(self, folder: Path, side: int, seed: int) -> None:
        Image.MAX_IMAGE_PIXELS = None  # our own download
        self.random, self.side = np.random.default_rng(seed), side
        self.photos: list[np.ndarray] = []
        for path in sorted((folder / "photos").iterdir()):
            image = Image.open(path).convert("RGB")
            short = min(image.size)
            sides = [size for size in SHORT_SIDES if size <= SHARP * short] or [min(short, SHORT_SIDES[0])]
            for size in sides:
                scaled = image.resize([round(n * size / short) for n in image.size], Image.Resampling.LANCZOS)
                if size >= side:
                    self.photos.append(np.asarray(scaled))
        self.stamps = []
        for path in sorted((folder / "stamps").iterdir()):
            stamp = Image.open(path).convert("RGBA")
            stamp.thumbnail((STAMP_SIZE, STAMP_SIZE), Image.Resampling.LANCZOS)
            self.stamps.append(np.asarray(stamp))
        weight = np.array([photo.shape[0] * photo.shape[1] for photo in self.photos]) ** 0.25  # small ones are denser
        self.cumulative = np.cumsum(weight / weight.sum())

    def batch(self, n: int) -> Tensor:
        """N crops."""
        crops = np.stack([self._crop() for _ in range(n)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _crop(self) -> np.ndarray:
        random = self.random
        crop = self._window()
        if random.random() < 0.5:  # of two windows the livelier one: photographs are mostly sky
            crop = max(crop, self._window(), key=lambda c: np.abs(np.diff(c[::2, ::2].astype(np.int16), axis=0)).mean())
        if random.random() < 0.1:
            crop = self._paste(crop.copy())
        crop = crop[:, ::-1] if random.random() < 0.5 else crop
        crop = np.rot90(crop, random.integers(4))
        return np.ascontiguousarray(crop[..., random.permutation(3)] if random.random() < 0.3 else crop)

    def _window(self) -> np.ndarray:
        photo = self.photos[np.searchsorted(self.cumulative, self.random.random())]
        top, left = (self.random.integers(0, n - self.side + 1) for n in photo.shape[:2])
        return photo[top : top + self.side, left : left + self.side]

    def _paste(self, crop: np.ndarray) -> np.ndarray:
        stamp = self.stamps[self.random.integers(len(self.stamps))]
        top, left = (self.random.integers(0, max(1, n - self.side // 2)) for n in stamp.shape[:2])
        part = stamp[top : top + self.side, left : left + self.side]
        alpha = part[..., 3:] / 255
        under = crop[: part.shape[0], : part.shape[1]]
        under[:] = (alpha * part[..., :3] + (1 - alpha) * under + 0.5).astype(np.uint8)
        return crop


def ahead(draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same batches, drawn by a thread while the network works."""
    batches: queue.Queue[Tensor] = queue.Queue(4)

    def fill() -> None:
        while True:
            batches.put(draw())

    threading.Thread(target=fill, daemon=True).start()
    return batches.get


class Muon(torch.optim.Optimizer):
    """Momentum whose update of every weight matrix is orthogonalised by Newton-Schulz steps (Jordan et al., 2024).

    torch.optim.Muon takes matrices only and works in bfloat16, which is slow on a CPU; this one takes convolutions,
    and all of one shape at a time.
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.2
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                same[parameter.shape].append(parameter)
            for shape, parameters in same.items():
                updates = []
                for parameter in parameters:
                    average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                    average.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(average, group["momentum"]).flatten(1))
                stack = torch.stack(updates)
                scale = max(1, stack.shape[1] / stack.shape[2]) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(stack), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])  # a norm-free network must not grow
                    parameter.add_(update.reshape(shape), alpha=-group["lr"] * scale)


def orthogonalise(g: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: five Newton-Schulz steps with Jordan's coefficients.

    Every step multiplies x by a polynomial in x x^T, so the steps run on the small Gram matrices and x is multiplied
    once, by their product: for a 3 x 3 convolution a third of the work.
    """
    wide = g.shape[1] <= g.shape[2]
    x = g if wide else g.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    product = identity = torch.eye(gram.shape[1]).expand_as(gram)
    for _ in range(5):
        factor = 3.4445 * identity + torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        gram, product = factor @ gram @ factor, factor @ product
    x = product @ x
    return x if wide else x.mT


def add_arguments(parser: argparse.ArgumentParser, minutes: float, crop: int, batch: int) -> None:
    """The options of every training."""
    parser.add_argument("--data", type=Path, required=True, help="the folder of make_training_set.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--crop", type=int, default=crop, help="side of the training crops in pixels")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=0.01, help="of Muon")
    parser.add_argument("--lr-adam", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from OUT.state; --minutes is the whole")
    parser.add_argument("--start", type=Path, help="start from the weights of this folder")


def train(
    network: nn.Module,
    is_inner: Callable[[str, nn.Parameter], bool],
    loss_of: Callable[[], Tensor],
    save: Callable[[nn.Module, Path], None],
    args: argparse.Namespace,
    weight_decay: float,
) -> None:
    """Muon for the inner parameters and Adam for the rest, rates that fall linearly to zero, an average of the weights.

    Arguments:
        network: what is trained; the average of its weights is what is saved.
        is_inner: of a parameter's name and value, whether Muon has it.
        loss_of: the loss of a new batch.
        save: writes a network to a folder.
        args: of `add_arguments`.
        weight_decay: of Muon.
    """
    named = list(network.named_parameters())
    inner, outer = ([p for name, p in named if is_inner(name, p) == want] for want in (True, False))
    optimizers = [
        Muon(inner, args.lr, weight_decay=weight_decay),
        torch.optim.AdamW(outer, args.lr_adam, betas=(0.9, 0.99), weight_decay=0),
    ]
    average = copy.deepcopy(network).requires_grad_(False)
    state_file = args.out.with_name(args.out.name + ".state") / "state.pt"
    elapsed, step = 0.0, 0
    if args.resume:
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        elapsed, step = state["elapsed"], state["step"]
    torch.manual_seed(args.seed + step)

    total, clock, saved_at = 60 * args.minutes, time.time() - elapsed, elapsed
    recent: list[float] = []
    while (elapsed := time.time() - clock) < total:
        for optimizer, rate in zip(optimizers, (args.lr, args.lr_adam), strict=True):
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARM_UP) * (1 - elapsed / total)
            optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        recent.append(loss.item())
        if not recent[-1] < SPIKE * np.median(recent[-100:]):
            print(f"step {step}: loss {recent.pop():.3g}, skipped", flush=True)
            continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        keep = min(AVERAGE, step / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in network.parameters()], 1 - keep)
        if elapsed - saved_at > SAVE_EVERY:
            saved_at = elapsed
            save(average, args.out)
            state_file.parent.mkdir(exist_ok=True)
            torch.save(
                {
                    "network": network.state_dict(),
                    "average": average.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "elapsed": elapsed,
                    "step": step,
                },
                state_file,
            )
            print(f"{elapsed / 60:.0f} min  step {step}  median loss {np.median(recent):.5f}", flush=True)
            del recent[:-100]
    save(average, args.out)
