"""What a benchmark recipe says: tasks, and the methods of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from methods import METHODS
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from invsolve import OPERATORS
from invsolve.spec import parse_sigma, parse_spec
from invsolve.times import check_grid


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
        if value is not None:
            check_grid(value)
        return value


class Task(Model):
    """A degradation with the methods that undo it."""

    name: str
    title: str
    operator: str
    sigma: float  # in [-1, 1] units
    methods: list[Method]

    @field_validator("operator")
    @classmethod
    def _known_operator(cls, value: str) -> str:
        parse_spec(value, OPERATORS, "operator")
        return value

    @field_validator("sigma", mode="before")
    @classmethod
    def _grey_levels(cls, value: Any) -> Any:
        return parse_sigma(str(value))

    @field_validator("methods", mode="before")
    @classmethod
    def _plain_specs(cls, value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError("expected a list of methods")
        return [{"spec": item} if isinstance(item, str) else item for item in value]

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: list[Method]) -> list[Method]:
        for method in value:
            parse_spec(method.spec, METHODS, "method")
        return value


class Recipe(Model):
    """A file of recipes/; see `load_recipe`."""

    prior: str
    seed: int
    steps: int = Field(ge=1, le=1000)
    samples: int = Field(ge=1)
    tasks: list[Task]


AnyModel = TypeVar("AnyModel", bound=Model)


def checked(kind: type[AnyModel], values: Any) -> AnyModel:
    """The section, or one sentence about the first thing that is wrong with it.

    Raises:
        ValueError: something is.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or kind.__name__.lower()
        if first["type"] == "value_error":  # a sentence of ours
            raise ValueError(f"{place}: {first['ctx']['error']}") from error
        raise ValueError(f"{place}: {first['msg']}, got {first['input']!r}.") from error


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no recipe.
    """
    try:
        return checked(Recipe, yaml.safe_load(path.read_text()))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a recipe: {error}") from error
