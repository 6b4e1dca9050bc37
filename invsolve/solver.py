"""What a solver, its state and its result are: interface only."""

from __future__ import annotations

import abc
import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, get_args

from torch import Tensor

from .operators.base import Operator
from .priors.base import Prior
from .problem import Problem
from .rng import ImageRng

__all__ = ["Solver", "check_choice", "check_range"]

State = TypeVar("State")
LARGEST = 2**63  # of an integer that tensors can be multiplied with


@dataclass(frozen=True, kw_only=True)
class Solver(abc.ABC, Generic[State]):
    """One paper.  Hyperparameters are the frozen fields; what changes lives in the state.

    A solver is written for latents z of any prior and any schedule: `prior.predict` gives both ends of the path,
    `prior.schedule` its coefficients, `prior.decode` the picture.  `step` is the paper's box.
    """

    requires: ClassVar[type[Operator]] = Operator  # type: ignore[type-abstract] # the capability it needs of an operator
    samples_posterior: ClassVar[bool] = False  # they follow p(x | y) of any prior, given enough steps and particles
    interacting: ClassVar[bool] = False  # particles: the samples of one measurement see each other
    needs_fit: ClassVar[bool] = False  # good on pictures only after a fit; without, in a few dimensions
    latents: ClassVar[bool] = True  # whether it runs through a decoder
    needs_float32: ClassVar[bool] = False  # it magnifies the rounding of a network in half precision; see `precise`
    times: ClassVar[str] = "uniform"  # default time grid, a name of times.TIMES
    steps: ClassVar[int] = 50  # default number of steps

    def check(self, problem: Problem, prior: Prior | None = None) -> None:
        """Refuse what this solver cannot do, before a network runs.

        Arguments:
            problem: the problem.
            prior: the prior; None while its weights are not loaded.

        Raises:
            TypeError: the operator or the prior lacks what the solver needs.
            ValueError: the prior knows pictures with another number of channels, or a size does not fit.
        """
        name, operator = type(self).__name__, problem.operator
        if not isinstance(operator, self.requires):
            raise TypeError(
                f"{name} needs a {self.requires.__name__}, and {type(operator).__name__} is not one; choose another "
                "solver, for example dps or flowdps, which need only gradients."
            )
        if prior is None:
            return
        if prior.channels not in (None, operator.image_shape[0]):
            raise ValueError(
                f"The prior knows pictures with {prior.channels} channels, the operator's have "
                f"{operator.image_shape[0]}; convert the picture, or use as_grey(prior)."
            )
        if prior.has_decoder and not self.latents:
            raise TypeError(f"{name} needs a prior of pixels, and this one has a decoder; use for example tds or daps.")

    @abc.abstractmethod
    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        """The state at the first time."""

    @abc.abstractmethod
    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        """From time t to s < t."""

    def network_calls(self, steps: int) -> int:
        """Calls of `prior.predict` per sample in a run of that many steps; a test holds every solver to it."""
        return steps

    def estimate(self, state: State) -> Tensor:
        """The latent to decode (B, *latent_shape)."""
        assert isinstance(state, Tensor)
        return state


def check_range(solver: Solver[Any], low: float, high: float, *names: str) -> None:
    """Refuse hyperparameters outside [low, high], not finite, or not whole where they are whole numbers, with one
    sentence; None only where the field has it as a choice of its own.
    """
    types = {field.name: str(field.type).split(" | ") for field in dataclasses.fields(solver)}
    for name in names:
        value, whole = getattr(solver, name), "int" in types[name]
        if value is None and "None" in types[name]:
            continue
        number = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
        fits = number and (isinstance(value, float) or abs(value) < LARGEST)
        if not (fits and low <= value <= high and math.isfinite(value)):
            bound = f"from {low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
            bound += "" if fits or not number else ", and less than 2^63"
            kind = "a whole number " if whole else ""
            raise ValueError(f"{type(solver).__name__}: {name} must be {kind}{bound}, got {value!r}.")


def check_choice(solver: Solver[Any], name: str, choices: Any) -> None:
    """Refuse a hyperparameter that is none of a Literal's values, with one sentence."""
    value, known = getattr(solver, name), get_args(choices)
    if value not in known:
        raise ValueError(f"{type(solver).__name__}: {name} must be one of {', '.join(known)}, got {value!r}.")
