"""`invsolve demo`: one photograph, four degradations, the bundled prior."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..doubts.expected import name_of
from ..files.atomic import atomic_folder
from ..files.encode import check_folder_name, save_png, spread_picture
from ..files.provenance import figure_metadata, provenance
from ..metrics import psnr, ssim
from ..noise import GaussianNoise, NoNoise
from ..operators import OPERATORS, build_operator
from ..plan import plan
from ..priors import Prior, load_prior
from ..problem import simulate
from ..result import Result, Status, json_number
from ..rng import ImageRng
from ..solve import Observer
from ..spec import parse_spec

__all__ = ["HEADER", "TASKS", "DemoRow", "Task", "demo_photo", "run_demo"]

SIZE = 256
STEPS = 40  # enough for these tasks, and the whole demo takes about three minutes on two cores
BATCH_SIZE = 8
COLUMNS = "{:26} {:14} {:>8} {:>6} {:>6} {:>13} {:>8}"
HEADER = COLUMNS.format("task", "solver", "PSNR/dB", "SSIM", "chi2", "network calls", "seconds")


@dataclass(frozen=True)
class Task:
    """One line of the demo: what was done to the photograph; it is undone by the default solver."""

    title: str
    operator: str
    sigma: float  # of Gaussian noise in [-1, 1] units; 0 for none


TASKS = (
    Task("super-resolution x4", "downsample(factor=4)", 0.02),
    Task("Gaussian deblurring", "blur(sigma=2)", 0.02),
    Task("inpainting, 70 % missing", "inpaint-random(fraction=0.7)", 0.02),
    Task("JPEG quality 10", "jpeg(quality=10)", 0.0),
)


@dataclass(frozen=True)
class DemoRow:
    """Numbers of one task; PSNR in dB and SSIM are those of the posterior mean, chi2 is None without noise."""

    task: str
    solver: str
    psnr: float
    ssim: float
    psnr_sample: float
    chi2: float | None
    network_calls: float
    seconds: float
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A line of the table under HEADER."""
        chi2 = "–" if self.chi2 is None else f"{self.chi2:.2f}"
        numbers = f"{self.psnr:.2f}", f"{self.ssim:.3f}", chi2, f"{self.network_calls:.0f}", f"{self.seconds:.0f}"
        return "\n".join([COLUMNS.format(self.task, self.solver, *numbers), *self.doubts])


def demo_photo() -> Tensor:
    """The astronaut of scikit-image (NASA, public domain) at 256 x 256, (1, 3, 256, 256) in [-1, 1]."""
    from PIL import Image
    from skimage import data

    from ..files.images import to_tensor

    return to_tensor(Image.fromarray(data.astronaut()).resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def run_demo(
    folder: str | Path,
    *,
    prior: Prior | str = "natural",
    tasks: Sequence[Task] | None = None,
    samples: int = 4,
    seed: int = 0,
    observers: Sequence[Observer] = (),
    report: Callable[[DemoRow], None] = lambda _: None,
) -> list[DemoRow]:
    """Run the demo and leave its pictures in `folder`.

    Arguments:
        folder: written at once at the end; per task a measurement, a restoration (one sample), the posterior mean,
            the standard deviation and a before/after figure; `table.json` holds the numbers.
        prior: prior or its name.
        tasks: what to run; TASKS by default.
        samples: posterior samples per task.
        seed: of the measurements and the samples.
        observers: for progress bars, see `solve`.
        report: called with every finished row.
    """
    check_folder_name(Path(folder))
    prior = load_prior(prior) if isinstance(prior, str) else prior
    truth = demo_photo()
    rows = []
    with atomic_folder(Path(folder)) as work:
        save_png(truth[0], work / "photo.png", provenance("demo", "photograph"))
        for k, task in enumerate(TASKS if tasks is None else tasks, start=1):
            row = _run_task(k, task, truth, prior, samples, seed, observers, work)
            rows.append(row)
            report(row)
        (work / "table.json").write_text(json.dumps([row.__dict__ for row in rows], indent=2) + "\n")
    return rows


def _run_task(
    k: int,
    task: Task,
    truth: Tensor,
    prior: Prior,
    samples: int,
    seed: int,
    observers: Sequence[Observer],
    work: Path,
) -> DemoRow:
    """Restore the k-th task, and leave its pictures."""
    name, fields = parse_spec(task.operator, OPERATORS, "operator")
    operator = build_operator(name, (3, SIZE, SIZE), **fields)
    noise = GaussianNoise(task.sigma) if task.sigma else NoNoise()
    y = simulate(operator, noise, truth, ImageRng([seed]))
    run = plan(
        y, operator=operator, prior=prior, sigma=noise, steps=STEPS, samples=samples, seed=seed, batch_size=BATCH_SIZE
    )
    result = run(observers)
    if not result.ok:
        raise ValueError(f"{task.title}: {Status.nonfinite.value}")
    shown = operator.crop(truth)
    _save_pictures(work, f"{k}-{name}", y, shown, result)
    return DemoRow(
        task=task.title,
        solver=name_of(run.solver),
        psnr=float(psnr(result.mean, shown)),
        ssim=float(ssim(result.mean, shown)),
        psnr_sample=float(psnr(result.images, shown)),
        chi2=json_number(float(result.chi2.mean())) if task.sigma else None,
        network_calls=result.stats["network"],
        seconds=result.stats["seconds"],
        doubts=result.doubts[0],
    )


def _save_pictures(folder: Path, prefix: str, y: Tensor, truth: Tensor, result: Result) -> None:
    """The pictures of a task, and its before/after figure."""
    pictures = {
        "measurement": y[0],
        "restoration": result.images[0],
        "mean": result.mean[0],
        "std": spread_picture(result.std[0]),
    }
    for kind, picture in pictures.items():
        save_png(picture, folder / f"{prefix}-{kind}.png", provenance("demo", kind))
    figure = result.plot(y, truth)
    figure.savefig(folder / f"{prefix}-figure.png", dpi=100, metadata=figure_metadata("demo"))
