"""The options of `restore`, checked: all that is the same for every picture of the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from ..devices import find_device
from ..files.images import MAX_PIXELS, Picture
from ..files.inputs import Source, expand_inputs
from ..files.record import Settings
from ..noise import Noise
from ..operators import Operator
from ..plan import plan
from ..priors import Prior, load_cards
from ..priors.identity import prior_sha256
from ..run import Run
from ..solver import Solver
from ..solvers import build_solver
from ..spec import format_spec
from ..times import TIMES, check_grid
from .choices import (
    check_at_least,
    choose_dtype,
    choose_operator,
    choose_prompts,
    files_of,
    open_prior,
    parse_noise,
    public_fields,
)
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
from .prompts import read_prompts

__all__ = ["Job", "RestoreOptions", "make_job"]


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """The options of `restore`."""

    inputs: Inputs
    operator: OperatorOption = None
    mask: MaskOption = None
    kernel: KernelOption = None
    sigma: Annotated[
        str | None,
        typer.Option(
            help="Noise level: 0.1 is in units of the [-1, 1] picture, 25/255 are 25 grey levels of 8 bits (0.196 in "
            "[-1, 1] units), auto estimates it.  Default 0: no noise."
        ),
    ] = None
    noise: NoiseOption = None
    solver: Annotated[
        str | None,
        typer.Option(
            help="NAME or 'NAME(field=value, ...)'.  Default: ddrm for mere noise, diffpir for other linear operators, "
            "else ddnm."
        ),
    ] = None
    prior: PriorOption = "natural"
    prompt: PromptOption = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            parser=path_of,
            metavar="PATH",
            help="A file with a line 'NAME: PROMPT' per picture, or a folder of NAME.txt.",
        ),
    ] = None
    negative_prompt: NegativeOption = None
    guidance: GuidanceOption = None
    memory: MemoryOption = "auto"
    offline: OfflineOption = False
    cache_dir: CacheOption = None
    samples: Annotated[int, typer.Option(help="Posterior samples; several also give their mean and spread.")] = 1
    steps: Annotated[int | None, typer.Option(help="Time steps; by default those of the solver.")] = None
    times: Annotated[
        str | None, typer.Option(help=f"Time grid: {', '.join(TIMES)}; by default that of the solver.")
    ] = None
    seed: Annotated[int, typer.Option(help="The same seed gives the same pictures.")] = 0
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    out: OutOption = Path("restored")
    batch_size: Annotated[int, typer.Option(help="Most samples that go through the network at once.")] = 8
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory for solvers that need gradients, and more time.")
    ] = False
    max_pixels: PixelsOption = MAX_PIXELS
    keep_metadata: MetadataOption = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run also what is done already.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done.")] = False


@dataclass(frozen=True)
class Job:
    """Options that have been checked: all that is the same for every picture of a command."""

    options: RestoreOptions
    sources: Sequence[Source]
    notes: Sequence[str]
    typed: Settings
    operator: str
    fields: dict[str, Any]
    noise: Noise | float | Literal["auto"]
    solver: Solver[Any] | None  # None where the operator decides
    prior: Prior | None  # None in a dry run with a hub prior
    weights: str | None
    texts: Mapping[Source, str] | None
    device: torch.device

    def run(self, picture: Picture, operator: Operator, source: Source) -> Run:
        """The restoration of one picture."""
        options, prior = self.options, self.prior
        asked = {"prompt": None if self.texts is None else self.texts[source]}
        asked |= {key: getattr(self.typed, key) for key in ("negative_prompt", "guidance", "memory")}
        if prior is not None and self.texts is not None:
            prior = prior.prompted(self.texts[source])
        return plan(
            picture.tensor[None],
            operator=operator,
            prior=options.prior if prior is None else prior,
            load=prior is not None,
            solver=self.solver,
            sigma=self.noise,
            samples=options.samples,
            steps=options.steps,
            times=options.times,
            seed=options.seed,
            device=self.device,
            dtype=self.typed.dtype,
            batch_size=options.batch_size,
            checkpointing=options.checkpointing,
            asked={"name": self.typed.prior} | {key: value for key, value in asked.items() if value is not None},
            weights=lambda: self.weights,
        )


def make_job(options: RestoreOptions) -> Job:
    """Check the options, find the pictures and load the prior.

    Raises:
        ValueError: an unknown name, field or value, or options that contradict each other.
        FileNotFoundError: there is no such input.
    """
    operator, fields = choose_operator(options.operator, options.mask, options.kernel)
    check_at_least(1, samples=options.samples, batch_size=options.batch_size)
    if options.steps is not None and not 1 <= options.steps <= 1000:
        raise ValueError(f"--steps must be 1 to 1000, got {options.steps}.")
    if options.times is not None:
        check_grid(options.times)
    device = find_device(options.device)
    dtype = choose_dtype(options, device)
    solver = None if options.solver is None else build_solver(options.solver)
    noise = parse_noise(options.sigma, options.noise)
    typed = Settings(
        operator=format_spec(operator, public_fields(fields)),
        sigma="0" if options.sigma is None else options.sigma,
        noise=options.noise,
        solver=options.solver or "",  # without one it depends on the operator
        prior=Path(options.prior).name,
        samples=options.samples,
        steps=options.steps,
        times=options.times,
        seed=options.seed,
        device=str(device),
        dtype=dtype,
        negative_prompt=options.negative_prompt,
        guidance=options.guidance,
        keep_metadata=options.keep_metadata or None,
    )
    sources, notes = expand_inputs(options.inputs, [options.out, *files_of(fields)], measurements=True)
    texts = read_prompts(sources, options.prompt, options.prompts)
    prompts = choose_prompts(options, None if texts is None else texts.values(), device)
    job = Job(options, sources, notes, typed, operator, fields, noise, solver, None, None, texts, device)
    if options.dry_run and options.prior in load_cards():  # gigabytes, for which a dry run is no reason to load them
        return job
    prior = open_prior(options, dtype, prompts, device)
    typed = replace(typed, memory=None if prior.memory_mode == "fast" else prior.memory_mode)
    return replace(job, typed=typed, prior=prior, weights=prior_sha256(options.prior, options.cache_dir))
