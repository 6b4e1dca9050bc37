"""Train the bundled prior `natural` on a CPU: a rectified flow on pixels.

    python scripts/make_training_set.py --out training-set
    python scripts/train_natural.py --data training-set --out priors/natural --minutes 120

The training can be stopped and continued (`--resume`): the folder `OUT.state` holds the optimiser.  The recipe:
EDM's loss (Karras et al., arXiv 2206.00364) over log-normal noise levels, random crops of every picture at six
scales, Muon (orthogonalised momentum) for the inner convolutions and Adam for the rest, learning rates that fall
linearly to zero over the given time, an exponential moving average of the weights.  No picture of scikit-image or
scikit-learn is seen.
"""

from __future__ import annotations

import argparse
import copy
import queue
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from invsolve.priors.network import ResidualUNet

SHORT_SIDES = (200, 280, 400, 560, 800, 1100)  # every photograph at these sizes,
SHARP = 0.75  # but at most this share of its own: reduced pictures have no blur and no JPEG blocks
STAMP_SIZE = 160
LOG_SIGMA = (-1.6, 1.3)  # mean and standard deviation of log(sigma/alpha)
SIGMA_RANGE = (0.005, 80.0)
CROP = 64
WARM_UP = 100  # steps
SPIKE = 10.0  # a batch whose loss exceeds the recent median by this factor is left out


class Crops:
    """Random crops of the training pictures as batches (B, 3, 64, 64) in [-1, 1]."""

    def __init__(self, folder: Path, seed: int) -> None:
        Image.MAX_IMAGE_PIXELS = None  # our own download
        self.random = np.random.default_rng(seed)
        self.photos: list[np.ndarray] = []
        for path in sorted((folder / "photos").iterdir()):
            image = Image.open(path).convert("RGB")
            short = min(image.size)
            sides = [side for side in SHORT_SIDES if side <= SHARP * short] or [min(short, SHORT_SIDES[0])]
            for side in sides:
                size = tuple(round(n * side / short) for n in image.size)
                self.photos.append(np.asarray(image.resize(size, Image.Resampling.LANCZOS)))
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
        top, left = (self.random.integers(0, n - CROP + 1) for n in photo.shape[:2])
        return photo[top : top + CROP, left : left + CROP]

    def _paste(self, crop: np.ndarray) -> np.ndarray:
        stamp = self.stamps[self.random.integers(len(self.stamps))]
        top, left = (self.random.integers(0, max(1, n - CROP // 2)) for n in stamp.shape[:2])
        part = stamp[top : top + CROP, left : left + CROP]
        alpha = part[..., 3:] / 255
        under = crop[: part.shape[0], : part.shape[1]]
        under[:] = (alpha * part[..., :3] + (1 - alpha) * under + 0.5).astype(np.uint8)
        return crop


class Muon(torch.optim.Optimizer):
    """Momentum whose update of every weight matrix is orthogonalised by Newton-Schulz steps (Jordan et al., 2024).

    torch.optim.Muon takes matrices only and works in bfloat16, which is slow on a CPU; this one takes convolutions,
    and all of one shape at a time.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.2
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
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


def loss_of(residual: torch.nn.Module, x: Tensor, data_std: float) -> Tensor:
    """EDM's loss: mean squared error of F, which weighs every noise level alike at the start."""
    mean, spread = LOG_SIGMA
    sigma = torch.exp(mean + spread * torch.randn(len(x))).clamp(*SIGMA_RANGE)
    t = (sigma / (1 + sigma)).reshape(-1, 1, 1, 1)
    n = (t**2 + data_std**2 * (1 - t) ** 2).sqrt()
    x_t = (1 - t) * x + t * torch.randn_like(x)
    target = (x - data_std**2 * (1 - t) / n**2 * x_t) * n / (data_std * t)
    with torch.autocast("cpu", torch.bfloat16):
        f = residual((x_t / n).contiguous(memory_format=torch.channels_last), sigma.log())
    return (f.float() - target).square().mean()


def save(network: ResidualUNet, folder: Path) -> None:
    """Write the weights as a diffusers pipeline folder."""
    network.save_pretrained(folder / "unet")
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")


def main() -> None:
    """Train for the given time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 32), help="before and after half of the time")
    parser.add_argument("--lr", type=float, default=0.01, help="of Muon")
    parser.add_argument("--lr-adam", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--widths", type=int, nargs="+", default=(64, 128, 192))
    parser.add_argument("--blocks", type=int, nargs="+", default=(4, 4, 4))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from OUT.state, for a new stretch of --minutes")
    parser.add_argument("--start", type=Path, help="start from this folder's weights; more --blocks begin as identity")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    network = ResidualUNet(widths=tuple(args.widths), blocks=tuple(args.blocks))
    if args.start:
        weights = load_file(args.start / "unet" / "diffusion_pytorch_model.safetensors")
        if extra := network.load_state_dict(weights, strict=False).unexpected_keys:
            parser.error(f"{args.start} has weights that this network lacks ({extra[0]}, ...); give more --blocks.")
    network = network.to(memory_format=torch.channels_last).train()
    inner = [p for name, p in network.named_parameters() if p.ndim == 4 and not name.startswith("conv_")]
    outer = [p for name, p in network.named_parameters() if p.ndim != 4 or name.startswith("conv_")]
    optimizers = [Muon(inner, args.lr), torch.optim.AdamW(outer, args.lr_adam, betas=(0.9, 0.99), weight_decay=0)]
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
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    rates = [args.lr, args.lr_adam] if args.resume else rates
    crops = Crops(args.data, args.seed + step)
    batches: queue.Queue[Tensor] = queue.Queue(4)
    size = [args.batch[0]]
    threading.Thread(target=lambda: [batches.put(crops.batch(size[0])) for _ in iter(int, 1)], daemon=True).start()
    residual = torch.compile(network.residual, dynamic=False)

    total, clock, recent, saved_at = 60 * args.minutes, time.time() - elapsed, [], elapsed
    while (elapsed := time.time() - clock) < total:
        progress = elapsed / total
        size[0] = args.batch[progress > 0.5]
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARM_UP) * (1 - progress)
        loss = loss_of(residual, batches.get(), network.config["data_std"])
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if not recent[-1] < SPIKE * np.median(recent[-100:]):
            print(f"step {step}: loss {recent.pop():.3g}, skipped", flush=True)
            continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        keep = min(0.999, step / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in network.parameters()], 1 - keep)
        if elapsed - saved_at > 300:
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


if __name__ == "__main__":
    main()
