"""Specs: text to typed fields and back, and the sentences about what cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from invsolve.operators import OPERATORS
from invsolve.solvers import FLAIR, PSLD, SOLVERS, build_solver
from invsolve.spec import format_spec, parse_sigma, parse_spec, spec_fields


@dataclass(frozen=True, kw_only=True)
class Box:
    steps: ClassVar[int] = 50
    weight: float = 7.0
    count: int | None = None


def blur(
    image_shape: tuple[int, int, int], *, sigma: float, boundary: Literal["zero", "circular"] = "zero"
) -> None: ...


def odd(image_shape: object, *, on: bool = False, path: str = "", taps: Tensor | None = None) -> None: ...


TABLE = {"blur": blur, "odd-one": odd, "box": Box}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("box", ("box", {})),
        ("box()", ("box", {})),
        (" box ( weight = 2 ) ", ("box", {"weight": 2.0})),
        ("box(weight=1e-3, count=4)", ("box", {"weight": 1e-3, "count": 4})),
        ("box(count=None)", ("box", {"count": None})),
        ("box(count=none)", ("box", {"count": None})),
        ("blur(sigma=-2)", ("blur", {"sigma": -2.0})),
        ("blur(sigma=2, boundary=circular)", ("blur", {"sigma": 2.0, "boundary": "circular"})),
        ("blur(sigma=2, boundary='circular')", ("blur", {"sigma": 2.0, "boundary": "circular"})),
        ("odd-one(on=true, path='a/b c.png')", ("odd-one", {"on": True, "path": "a/b c.png"})),
        ({"name": "blur", "sigma": 2}, ("blur", {"sigma": 2.0})),
    ],
)
def test_parse(spec: str | dict[str, object], expected: tuple[str, dict[str, object]]) -> None:
    name, fields = parse_spec(spec, TABLE, "operator")
    assert (name, fields) == expected
    assert [type(value) for value in fields.values()] == [type(value) for value in expected[1].values()]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("blurr", ["Unknown operator 'blurr'", "did you mean 'blur'", "blur, odd-one, box"]),
        ("blur(sigm=2)", ["no field 'sigm'", "did you mean 'sigma'", "sigma: float", "boundary: 'zero' or 'circular'"]),
        ("box(steps=3)", ["no field 'steps'", "weight: float = 7.0"]),
        ("blur", ["needs sigma"]),
        ("blur(2)", ["must be named"]),
        ("blur(**{'sigma': 2})", ["must be named"]),
        ("blur(sigma=1, sigma=2)", ["given twice"]),
        ("blur(sigma=a)", ["sigma of operator blur must be float, got 'a'"]),
        ("blur(sigma=True)", ["must be float"]),
        ("blur(sigma=1e999)", ["must be finite, got inf"]),
        ("blur(sigma=1, boundary=mirror)", ["'zero' or 'circular'", "got 'mirror'"]),
        ("box(count=1.5)", ["count of operator box must be int or None"]),
        ("odd-one(on=1)", ["must be bool"]),
        ("odd-one(path=a/b)", ["'quoted text'"]),
        ("odd-one(taps=None)", ["no field 'taps'"]),
        ("odd-one(image_shape=None)", ["no field 'image_shape'"]),
        ("box(weight=__import__('os').getpid())", ["Cannot read"]),
        ("box(weight=2", ["Cannot read", "NAME(field=value"]),
        ("box(weight=2)(count=1)", ["Cannot read"]),
        ("", ["Cannot read"]),
        ("box(weight=" + "(" * 3000, ["Cannot read"]),
        ({"sigma": 2}, ['needs "name"']),
    ],
)
def test_refused(spec: str | dict[str, object], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        parse_spec(spec, TABLE, "operator")
    for word in words:
        assert word in str(error.value)


@given(
    weight=st.floats(allow_nan=False, allow_infinity=False),
    count=st.none() | st.integers(),
    path=st.text(max_size=20),
    on=st.booleans(),
)
def test_round_trip(weight: float, count: int | None, path: str, on: bool) -> None:
    for name, fields in (("box", {"weight": weight, "count": count}), ("odd-one", {"path": path, "on": on})):
        assert parse_spec(format_spec(name, fields), TABLE, "operator") == (name, fields)


@pytest.mark.parametrize(("table", "name"), [(t, name) for t in (OPERATORS, SOLVERS) for name in t])
def test_defaults_of_the_real_tables_are_valid(table: dict[str, object], name: str) -> None:
    fields = {field.name: field.default for field in spec_fields(table[name]) if not field.required}
    missing = any(field.required for field in spec_fields(table[name]))
    if not missing:
        assert parse_spec(format_spec(name, fields), table, "entry") == (name, fields)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("0.1", 0.1), ("25/255", 50 / 255), (" 5 /255", 10 / 255)])
def test_sigma(text: str, value: float) -> None:
    assert parse_sigma(text) == pytest.approx(value)


def test_sigma_auto() -> None:
    assert parse_sigma("auto") == "auto"


@pytest.mark.parametrize("text", ["", "x", "-0.1", "-5/255", "nan", "inf", "25", "25/256", "25/255/2", "1/2"])
def test_sigma_refused_says_the_units(text: str) -> None:
    with pytest.raises(ValueError, match=r"--sigma .*(\[-1, 1\]|negative)"):
        parse_sigma(text)


def test_the_official_settings_of_a_solver():
    """By one word, under what is given beside it; who has none says which have."""
    assert build_solver("flair(official)") == FLAIR.official() != FLAIR()
    assert build_solver("flair(official, data_steps=4)") == FLAIR.official(data_steps=4)
    assert build_solver({"name": "psld", "official": True}) == PSLD.official()
    for solver in SOLVERS.values():
        if solver.published:
            assert all(getattr(solver.official(), key) == value for key, value in solver.published.items())
    for wrong in ("ddnm(official)", {"name": "flair", "official": False}):
        with pytest.raises(ValueError, match=r"no official settings of its own; these have: flowdps, flair"):
            build_solver(wrong)
    with pytest.raises(ValueError, match="no official settings"):
        SOLVERS["ddnm"].official()
    for wrong in ("flair(other)", "flair(official, official)", "flair(3)"):
        with pytest.raises(ValueError, match="must be named"):
            build_solver(wrong)
