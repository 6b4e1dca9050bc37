"""The command line: `invsolve restore`, `degrade`, `demo`, `validate`, `calibrate`, `fit`, `prior`, `list` and `info`.

Whatever goes wrong for a reason the user can change ends as one sentence and exit code 2, at one place: `_Group`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from typer.core import TyperGroup

from .. import __version__
from ..allocator import keep_memory
from ..errors import is_expected, one_line, sentence
from ..files.images import MAX_PIXELS
from ..flows.training import FitSettings
from ..priors.adm import ADM_MODELS
from ..priors.dit import DIT_MODELS
from ..sample import STEPS as PRIOR_STEPS
from ..times import TIMES
from .calibrate import CalibrateOptions, calibrate_prior
from .degrade import degrade_files
from .fit import FitOptions, fit_flow
from .info import describe_entry, list_entries
from .options import (
    CacheOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    Inputs,
    KernelOption,
    MaskOption,
    MemoryOption,
    MetadataOption,
    NegativeOption,
    NoiseOption,
    OfflineOption,
    OperatorOption,
    OutOption,
    PixelsOption,
    PriorOption,
    PromptOption,
    path_of,
)
from .prior import convert_prior, pull_prior
from .progress import StepBar
from .restore import Options, restore_files

__all__ = ["app", "main"]


def _console(*, stderr: bool = False) -> Console:
    """Plain text: file names are not markup, and lines are not cut for a pipe."""
    return Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)


class _Group(TyperGroup):
    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _one_sentence():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _one_sentence():
            return super().invoke(ctx)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """What the user can change ends as one line that begins with "Error:" and exit code 2."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and type(error).__name__ != "NoArgsIsHelpError":  # of click's parser
            text = one_line(f"{error.format_message().rstrip('.')}; see --help.")
        elif is_expected(error):
            text = sentence(error)
        else:
            raise
        _console(stderr=True).print(f"Error: {text}")
        raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Solve imaging inverse problems with pretrained generative priors.",
)


@app.command("restore")
def restore_command(
    inputs: Inputs,
    operator: OperatorOption = None,
    mask: MaskOption = None,
    kernel: KernelOption = None,
    sigma: Annotated[
        str | None,
        typer.Option(
            help="Noise level: 0.1 is in units of the [-1, 1] picture, 25/255 are 25 grey levels of 8 bits (0.196 in "
            "[-1, 1] units), auto estimates it.  Default 0: no noise."
        ),
    ] = None,
    noise: NoiseOption = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="NAME or 'NAME(field=value, ...)'.  Default: ddrm for mere noise, diffpir for other linear operators, "
            "else ddnm."
        ),
    ] = None,
    prior: PriorOption = "natural",
    prompt: PromptOption = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="PATH",
            help="A file with a line 'NAME: PROMPT' per picture, or a folder of NAME.txt.",
        ),
    ] = None,
    negative_prompt: NegativeOption = None,
    guidance: GuidanceOption = None,
    memory: MemoryOption = "auto",
    offline: OfflineOption = False,
    cache_dir: CacheOption = None,
    samples: Annotated[int, typer.Option(help="Posterior samples; several also give their mean and spread.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Time steps; by default those of the solver.")] = None,
    times: Annotated[
        str | None, typer.Option(help=f"Time grid: {', '.join(TIMES)}; by default that of the solver.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    out: OutOption = Path("restored"),
    batch_size: Annotated[int, typer.Option(help="Most samples that go through the network at once.")] = 8,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory for solvers that need gradients, and more time.")
    ] = False,
    max_pixels: PixelsOption = MAX_PIXELS,
    keep_metadata: MetadataOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run also what is done already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done.")] = False,
) -> None:
    """Restore pictures.

    Each is written as PNG at its own bit depth, with a JSON record that repeats the run; pictures are skipped whose
    record tells of the same run and of the very files that are there.
    """
    options = Options(
        operator=operator,
        mask=mask,
        kernel=kernel,
        sigma=sigma,
        noise=noise,
        solver=solver,
        prior=prior,
        prompt=prompt,
        prompts=prompts,
        negative_prompt=negative_prompt,
        guidance=guidance,
        memory=memory,
        offline=offline,
        cache_dir=cache_dir,
        samples=samples,
        steps=steps,
        times=times,
        seed=seed,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        checkpointing=checkpointing,
        max_pixels=max_pixels,
        keep_metadata=keep_metadata,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    if restore_files(inputs, out, options, _console(), _console(stderr=True)):
        raise typer.Exit(2)


@app.command("degrade")
def degrade_command(
    inputs: Inputs,
    operator: OperatorOption = None,
    mask: MaskOption = None,
    kernel: KernelOption = None,
    sigma: Annotated[
        str | None, typer.Option(help="Noise to add: 0.1 in [-1, 1] units, or 25/255 for 25 grey levels.")
    ] = None,
    noise: NoiseOption = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    bit_depth: Annotated[int | None, typer.Option(help="8 or 16; by default that of the picture.")] = None,
    out: OutOption = Path("degraded"),
    max_pixels: PixelsOption = MAX_PIXELS,
    keep_metadata: MetadataOption = False,
) -> None:
    """Simulate measurements of clean pictures, and say how to restore them.

    Masks go to the folder masks in the output folder, where `invsolve restore FOLDER --mask FOLDER/masks` finds them.
    """
    failed = degrade_files(
        inputs,
        out,
        operator=operator,
        mask=mask,
        kernel=kernel,
        sigma=sigma,
        noise=noise,
        seed=seed,
        bit_depth=bit_depth,
        max_pixels=max_pixels,
        keep_metadata=keep_metadata,
        console=_console(),
        errors=_console(stderr=True),
    )
    if failed:
        raise typer.Exit(2)


@app.command("demo")
def demo_command(
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=path_of, metavar="PATH", help="Folder for the pictures.")
    ] = Path("invsolve-demo"),
    prior: PriorOption = "natural",
    samples: Annotated[int, typer.Option(min=1, help="Posterior samples per task.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the measurements and the samples.")] = 0,
) -> None:
    """Degrade a photograph in several ways, restore it, and show how well."""
    from ..bench.demo import BATCH_SIZE, HEADER, TASKS, DemoRow, run_demo  # draws figures: matplotlib is slow to load

    console = _console()
    bar = StepBar([math.ceil(samples / BATCH_SIZE)] * len(TASKS), console, _console(stderr=True))

    header = [HEADER]  # not before the first row: until then, a wrong option may end the run

    def report(row: DemoRow) -> None:
        bar.done(ran=True)
        if header:
            console.print(header.pop())
        console.print(str(row))

    with bar:
        run_demo(out, prior=prior, samples=samples, seed=seed, observers=[bar], report=report)
    console.print(f"The pictures are in {out}.")


@app.command("validate")
def validate_command(
    suite: Annotated[str | None, typer.Argument(help="A family of problems; without it, they are listed.")] = None,
    solver: Annotated[
        list[str] | None, typer.Option(help="NAME or 'NAME(field=value, ...)', repeatable.  Default: all.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="NAME of a solver to leave out, repeatable.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help="Of the suite, such as dy=4, repeatable.")] = None,
    problems: Annotated[int | None, typer.Option(help="Per setting; by default those of a full run.")] = None,
    first: Annotated[int, typer.Option(help="Number of the first problem; 1000 and up are for tuning.")] = 0,
    samples: Annotated[int | None, typer.Option(help="Per problem, or per truth with --calibrate.")] = None,
    calls: Annotated[
        int | None,
        typer.Option(help="Network calls per sample at most, unless one step takes more; the steps follow."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Time steps, instead of --calls.")] = None,
    times: Annotated[
        str | None, typer.Option(help="suite: its grid, the default of most rows; own: the solver's; or a grid's name.")
    ] = None,
    particles: Annotated[int | None, typer.Option(help="Samples that see each other; by default all.")] = None,
    one_each: Annotated[bool, typer.Option("--one-each", help="Keep one particle of every run.")] = False,
    seed: Annotated[int, typer.Option(help="Of the samples; the problems are always the same.")] = 0,
    curve: Annotated[bool, typer.Option("--curve", help="Error against network calls, 5 to 500.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="SBC ranks and TARP coverage instead.")] = False,
    simulations: Annotated[int | None, typer.Option(help="Truths to calibrate with, by default 200.")] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=path_of, metavar="PATH", help="Folder for the results.")
    ] = Path("validation"),
) -> None:
    """Compare samplers with exact posteriors.

    Writes one line per sampler and problem to results.jsonl, from which an interrupted run goes on, and a table.
    """
    from .validate import ValidateOptions, validate_samplers  # draws figures: matplotlib is slow to load

    options = ValidateOptions(
        solvers=solver or (),
        without=without or (),
        settings=setting or (),
        problems=problems,
        first=first,
        samples=samples,
        calls=calls,
        steps=steps,
        times=times,
        particles=particles,
        one_each=one_each,
        seed=seed,
        curve=curve,
        calibrate=calibrate,
        simulations=simulations,
    )
    validate_samplers(suite, out, options, _console(), _console(stderr=True))


@app.command("calibrate")
def calibrate_command(
    inputs: Inputs,
    prior: PriorOption = "natural",
    prompt: PromptOption = None,
    negative_prompt: NegativeOption = None,
    guidance: GuidanceOption = None,
    memory: MemoryOption = "auto",
    offline: OfflineOption = False,
    cache_dir: CacheOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            parser=path_of,
            metavar="PATH",
            help="A file ending in .safetensors or .json.  Default: calibration.safetensors in the prior's folder, "
            "where the prior finds it.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the middle of each picture that is taken.  Default: that of a hub prior's training pictures, "
            "else 256."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    batch_size: Annotated[int, typer.Option(help="Most times that go through the network at once.")] = 8,
    max_pixels: PixelsOption = MAX_PIXELS,
) -> None:
    """Measure how well a prior knows the flow at each time: what the solver flair weighs it with.

    Takes 100 network calls for every picture, twice as many with guidance.  The pictures should be clean, and not those
    the prior was trained on; prompt, guidance and size those of the restorations to come.
    """
    options = CalibrateOptions(
        prior=prior,
        prompt=prompt,
        negative_prompt=negative_prompt,
        guidance=guidance,
        memory=memory,
        offline=offline,
        cache_dir=cache_dir,
        size=size,
        seed=seed,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        max_pixels=max_pixels,
    )
    calibrate_prior(inputs, out, options, _console(), _console(stderr=True))


@app.command("fit")
def fit_command(
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=path_of, metavar="PATH", help="Folder for the fitted flow.")
    ],
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Pictures, folders of pictures, or globs; or give --prior.")
    ] = None,
    operator: OperatorOption = None,
    mask: MaskOption = None,
    kernel: KernelOption = None,
    sigma: Annotated[
        str | None, typer.Option(help="Noise level: 0.1 in [-1, 1] units, or 25/255 for 25 grey levels; default 0.")
    ] = None,
    noise: NoiseOption = None,
    prior: Annotated[str | None, typer.Option(help="A name or a folder: learn from samples of a prior.")] = None,
    size: Annotated[int, typer.Option(help="Side of the square pictures the flow makes.")] = 16,
    canvas: Annotated[int | None, typer.Option(help="Draw the prior at this size and cut the pictures out.")] = None,
    prior_steps: Annotated[
        int, typer.Option(help="Network calls per draw of a prior that has no sampler of its own.")
    ] = PRIOR_STEPS,
    grey: Annotated[bool, typer.Option("--grey", help="One channel instead of three.")] = False,
    pairs: Annotated[int, typer.Option(help="Pictures with simulated measurements to learn from.")] = 20000,
    first: Annotated[
        Literal["score", "flow"], typer.Option(help="What the first network of a level learns; the paper has flow.")
    ] = FitSettings.first,
    levels: Annotated[int, typer.Option(help="Resolutions of the pyramid.")] = FitSettings.levels,
    stages: Annotated[int, typer.Option(help="Networks per level.")] = FitSettings.stages,
    flow_steps: Annotated[int, typer.Option(help="Steps of the flow per stage.")] = FitSettings.flow_steps,
    slices: Annotated[int, typer.Option(help="Directions per step of the flow.")] = FitSettings.slices,
    particles: Annotated[int, typer.Option(help="Pairs that flow.")] = FitSettings.particles,
    step_size: Annotated[float, typer.Option(help="1 moves the middle of a cloud home.")] = FitSettings.step_size,
    score_steps: Annotated[int, typer.Option(help="Training steps of a score network.")] = FitSettings.score_steps,
    train_steps: Annotated[int, typer.Option(help="Training steps of a flow network.")] = FitSettings.train_steps,
    batch: Annotated[int, typer.Option(help="Pairs per training step.")] = FitSettings.batch,
    width: Annotated[
        int, typer.Option(help="Of U-Nets and of the shares of --first flow; 0: 32 and 128.")
    ] = FitSettings.width,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = FitSettings.lr,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 0,
    device: DeviceOption = "auto",
    max_pixels: PixelsOption = MAX_PIXELS,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a flow that is there already.")] = False,
) -> None:
    """Fit a conditional MMD flow, the solver mmdflow, for one operator and one noise level.

    A fit that was stopped goes on where it was when the command is repeated.
    """
    options = FitOptions(
        operator=operator,
        mask=mask,
        kernel=kernel,
        sigma=sigma,
        noise=noise,
        prior=prior,
        size=size,
        canvas=canvas,
        prior_steps=prior_steps,
        grey=grey,
        pairs=pairs,
        device=device,
        overwrite=overwrite,
        max_pixels=max_pixels,
    )
    settings = FitSettings(
        first=first,
        levels=levels,
        stages=stages,
        flow_steps=flow_steps,
        slices=slices,
        particles=particles,
        step_size=step_size,
        score_steps=score_steps,
        train_steps=train_steps,
        batch=batch,
        width=width,
        lr=lr,
        seed=seed,
    )
    fit_flow(inputs or [], out, options, settings, _console())


prior_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Priors of the model hub.")
app.add_typer(prior_app, name="prior")


@prior_app.command("pull")
def pull_command(
    name: Annotated[str, typer.Argument(help="Of a prior; see `invsolve list priors`.")],
    cache_dir: CacheOption = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Also its small autoencoder, for --memory low.")] = False,
) -> None:
    """Download a prior: weights as safetensors, configurations and tokenizers, and nothing else."""
    pull_prior(name, cache_dir, tiny, _console())


@prior_app.command("convert")
def convert_command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            parser=path_of,
            help="A .pt file of ADM (guided-diffusion), DiT or SiT, or a diffusers folder with .bin files.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", parser=path_of, metavar="PATH", help="Folder to write.")],
    model: Annotated[str | None, typer.Option(help=f"Of a .pt file: {', '.join([*ADM_MODELS, *DIT_MODELS])}.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What the checksum of a .pt file must be.")] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(parser=path_of, metavar="PATH", help="Of DiT and SiT: folder of their latents' AutoencoderKL."),
    ] = None,
) -> None:
    """Write weights that PyTorch saved as a folder of safetensors for --prior; code in them is never run."""
    convert_prior(checkpoint, out, model, sha256, autoencoder, _console())


@app.command("list")
def list_command(
    what: Annotated[Literal["operators", "priors", "solvers"] | None, typer.Argument(help="By default all.")] = None,
) -> None:
    """Name the operators, priors and solvers."""
    list_entries(what, _console())


@app.command("info")
def info_command(name: Annotated[str, typer.Argument(help="Of an operator, prior or solver.")]) -> None:
    """Describe an operator, prior or solver and its fields."""
    describe_entry(name, _console())


def _version(wanted: bool) -> None:
    if wanted:
        _console().print(f"invsolve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


class _ToConsole(logging.Handler):
    """What invsolve logs, as lines beside the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        _console(stderr=True).print(one_line(record.getMessage()))


def main() -> None:
    """Entry point of the `invsolve` script."""
    keep_memory()
    log = logging.getLogger("invsolve")
    log.handlers, log.propagate = [_ToConsole()], False
    log.setLevel(logging.INFO)
    app()
