"""What a solver, its state and its result are: interface only."""

from __future__ import annotations

import abc
import dataclasses
import math
import numbers
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from torch import Tensor

from .operators.base import Operator
from .priors.base import Prior
from .problem import Problem
from .rng import ImageRng

__all__ = ["Range", "Solver"]

State = TypeVar("State")
LARGEST = 2**63  # of an integer that tensors can be multiplied with


@dataclass(frozen=True)
class Range:
    """What a number may be: `Annotated[float, Range(0, 1)]`; both ends belong to it.

    Arguments:
        low: the least.
        high: the most.
    """

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"from {self.low:g} to {self.high:g}" if math.isfinite(self.high) else f"at least {self.low:g}"

    def holds(self, value: object, *, whole: bool) -> bool:
        """Whether a value is a finite number of the range, and whole if it has to be."""
        return self._is_number(value, whole) and self.low <= value <= self.high and math.isfinite(value)  # type: ignore

    def told(self, value: object, *, whole: bool) -> str:
        """What was expected, for the sentence about a value."""
        large = isinstance(value, numbers.Integral) and abs(int(value)) >= LARGEST
        return ("a whole number " if whole else "") + str(self) + (", and less than 2^63" if large else "")

    @staticmethod
    def _is_number(value: object, whole: bool) -> bool:
        kind = numbers.Integral if whole else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        return not isinstance(value, numbers.Integral) or abs(int(value)) < LARGEST


@dataclass(frozen=True, kw_only=True)
class Solver(abc.ABC, Generic[State]):
    """One paper.  Hyperparameters are the frozen fields; what changes lives in the state.

    A solver is written for latents z of any prior and any schedule: `prior.predict` gives both ends of the path,
    `prior.schedule` its coefficients, `prior.decode` the picture.  `step` is the paper's box.
    """

    requires: ClassVar[type[Operator]] = Operator  # type: ignore[type-abstract] # the capability it needs of an operator
    interacting: ClassVar[bool] = False  # particles: the samples of one measurement see each other
    needs_fit: ClassVar[bool] = False  # good on pictures only after a fit; without, in a few dimensions
    latents: ClassVar[bool] = True  # whether it runs through a decoder
    needs_float32: ClassVar[bool] = False  # it magnifies the rounding of a network in half precision; see `precise`
    times: ClassVar[str] = "uniform"  # default time grid, a name of times.TIMES
    steps: ClassVar[int] = 50  # default number of steps
    published: ClassVar[
        Mapping[str, Any]
    ] = {}  # hyperparameters of the authors' code, where it differs; see `official`

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

    def __post_init__(self) -> None:
        """Checks every hyperparameter against its annotation; rules between several come after it, in a sub-class."""
        _check_fields(self)

    @abc.abstractmethod
    def init(self, t: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        """The state at the first time."""

    @abc.abstractmethod
    def step(self, state: State, t: Tensor, s: Tensor, problem: Problem, prior: Prior, rng: ImageRng) -> State:
        """From time t to s < t."""

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """The solver with the hyperparameters of its authors' code; the file of the solver names their grid and steps.

        Arguments:
            changes: hyperparameters to set otherwise.

        Raises:
            ValueError: no settings of the authors are known, or a value is out of range.
        """
        if not cls.published:
            raise ValueError(
                f"{cls.__name__} has no official settings of its own; its defaults are those of the table in its file."
            )
        return cls(**{**cls.published, **changes})

    @property
    def samples_posterior(self) -> bool:
        """Whether the samples follow p(x | y) of any prior, given enough steps and particles."""
        return False

    def network_calls(self, steps: int) -> int:
        """Calls of `prior.predict` per sample in a run of that many steps; a test holds every solver to it."""
        return steps

    def estimate(self, state: State) -> Tensor:
        """The latent to decode (B, *latent_shape)."""
        assert isinstance(state, Tensor)
        return state


def _check_fields(solver: Solver[Any]) -> None:
    """Refuse values that are out of range, not finite, not whole where they are whole numbers, or not a choice."""
    name = type(solver).__name__
    for field, (kind, bounds) in _fields_of(type(solver)).items():
        value = getattr(solver, field)
        kinds = set(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else {kind}
        if value is None and type(None) in kinds:
            continue
        choices = next((get_args(one) for one in kinds if get_origin(one) is Literal), None)
        if choices is not None and value not in choices:
            known = ", ".join(map(str, choices))
            raise ValueError(f"{name}: {field} must be one of {known}, got {value!r}.")
        if bounds is not None and not bounds.holds(value, whole=int in kinds and float not in kinds):
            raise ValueError(f"{name}: {field} must be {bounds.told(value, whole=int in kinds)}, got {value!r}.")


@cache
def _fields_of(kind: type[Solver[Any]]) -> dict[str, tuple[Any, Range | None]]:
    """The types of the hyperparameters, with their ranges."""
    found = {}
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, bounds = hints[field.name], None
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            bounds = next((extra for extra in extras if isinstance(extra, Range)), None)
        found[field.name] = (hint, bounds)
    return found
