"""What a benchmark recipe says: tasks, and the methods of each."""

from __future__ import annotations

from typing import Any

from methods import METHODS
from pydantic import BaseModel, ConfigDict, Field, field_validator

from invsolve import TIMES
from invsolve.spec import parse_sigma, parse_spec


class Model(BaseModel):
    """A section of the recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(Model):
    """One method of a task; None stands for the recipe's value, or the solver's own time grid."""

    spec: str
    steps: int | None = Field(default=None, ge=1, le=1000)
    times: str | None = None
    samples: int | None = Field(default=None, ge=1)

    @property
    def name(self) -> str:
        """Without its fields."""
        return self.spec.partition("(")[0].strip()

    @field_validator("times")
    @classmethod
    def _known_grid(cls, value: str | None) -> str | None:
        if value is not None and value not in TIMES:
            raise ValueError(f"unknown time grid {value!r}; choose one of {', '.join(TIMES)}")
        return value


class Task(Model):
    """A degradation with the methods that undo it."""

    name: str
    title: str
    operator: str
    sigma: float  # in [-1, 1] units
    methods: list[Method]

    @field_validator("sigma", mode="before")
    @classmethod
    def _grey_levels(cls, value: Any) -> Any:
        return parse_sigma(str(value))

    @field_validator("methods", mode="before")
    @classmethod
    def _plain_specs(cls, value: Any) -> Any:
        return [{"spec": item} if isinstance(item, str) else item for item in value]

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: list[Method]) -> list[Method]:
        for method in value:
            parse_spec(method.spec, METHODS, "method")
        return value


class Recipe(Model):
    """A file of recipes/."""

    prior: str
    seed: int
    steps: int = Field(ge=1, le=1000)
    samples: int = Field(ge=1)
    tasks: list[Task]
