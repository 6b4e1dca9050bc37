"""What a benchmark recipe says: tasks, and the methods of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from methods import METHODS
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from invsolve import OPERATORS, SOLVERS, build_solver
from invsolve.spec import parse_level, parse_spec
from invsolve.times import check_grid


class Model(BaseModel):
    """A section of the recipe; unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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

    @model_validator(mode="after")
    def _can_be_built(self) -> Method:
        parse_spec(self.spec, METHODS, "method")
        if self.name in SOLVERS:
            build_solver(self.spec)
        elif self.times is not None:
            raise ValueError(f"{self.name} has no time grid; leave out times.")
        return self


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

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[\w-][\w.-]*", value):
            raise ValueError(f"{value!r} names no folder; write letters, digits, '-', '_' and '.' only.")
        return value

    @field_validator("sigma", mode="before")
    @classmethod
    def _grey_levels(cls, value: Any) -> Any:
        return parse_level(str(value), "sigma")

    @field_validator("methods", mode="before")
    @classmethod
    def _plain_specs(cls, value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError("expected a list of methods")
        return [{"spec": item} if isinstance(item, str) else item for item in value]


class Recipe(Model):
    """A file of recipes/; see `load_recipe`."""

    prior: str
    seed: int
    steps: int = Field(ge=1, le=1000)
    samples: int = Field(ge=1)
    tasks: list[Task]

    @field_validator("tasks")
    @classmethod
    def _different_names(cls, value: list[Task]) -> list[Task]:
        names = [task.name for task in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two tasks are called {name!r}; rename one.")
        return value


AnyModel = TypeVar("AnyModel", bound=Model)


def checked(kind: type[AnyModel], values: Any) -> AnyModel:
    """The section, or one sentence about the first thing that is wrong with it.

    Raises:
        ValueError: something is.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(_what_is_wrong(kind, error.errors()[0])) from error


def _what_is_wrong(kind: type[Model], first: ErrorDetails) -> str:
    """What pydantic found, in one sentence."""
    place = ".".join(map(str, first["loc"])) or kind.__name__.lower()
    if first["type"] == "value_error":  # a sentence of ours
        return f"{place}: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"{place} is missing; add it."
    if first["type"] == "extra_forbidden":
        inside = first["loc"][:-1]
        section = Method if "methods" in inside else Task if "tasks" in inside else kind
        return f"There is no key {place}; the keys there are {', '.join(section.model_fields)}."
    return f"{place}: {first['msg']}, got {first['input']!r}."


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
