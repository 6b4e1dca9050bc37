"""How badly pictures explain the data, by name."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from ..linalg import dot, norm
from ..operators.base import LinearOperator, Operator, PinvOperator
from ..problem import Problem
from ..solver import Solver

__all__ = ["DataTerm", "check_data_term", "check_step", "misfit"]

DataTerm = Literal["half_sq", "nll", "norm", "pinv_norm", "adjoint_norm"]


def check_step(solver: Solver[Any], step_size: float | None, data_term: str) -> None:
    """Refuse a missing step where a data term needs one.

    Without a step size, `approach_data` finds it, which goes down |A x - y| alone.
    """
    if step_size is None and data_term != "norm":
        name = type(solver).__name__
        raise ValueError(f"{name}: data_term {data_term!r} needs a step_size, for example step_size=1.0.")


def misfit(data_term: DataTerm, problem: Problem, x: Tensor) -> Tensor:
    """How badly pictures x (B, *image_shape) explain the data, by name, per image (B,).

    `half_sq` |A x - y|^2 / 2; `nll` -log p(y | x); `norm` |A x - y|; `pinv_norm` |A^+ (A x - y)| and `adjoint_norm`
    |A^T (A x - y)|.

    Raises:
        TypeError: the operator lacks the pseudo-inverse or adjoint that the name asks for.
    """
    check_data_term(data_term, problem.operator)
    if data_term == "nll":
        return problem.nll(x)
    r = problem.residual(x)
    if data_term == "half_sq":
        return dot(r, r) / 2
    if data_term == "norm":
        return norm(r)
    operator: Any = problem.operator
    if data_term == "pinv_norm":
        return norm(operator.pinv(problem.y + r) - operator.pinv(problem.y))
    return norm(operator.adjoint(r))


def check_data_term(data_term: DataTerm, operator: Operator) -> None:
    """Refuse a data term that asks for a pseudo-inverse or adjoint which the operator lacks.

    Raises:
        TypeError: it does.
    """
    needed = {"pinv_norm": PinvOperator, "adjoint_norm": LinearOperator}.get(data_term, Operator)
    if not isinstance(operator, needed):
        raise TypeError(
            f"data_term {data_term!r} needs a pseudo-inverse or adjoint, which {type(operator).__name__} lacks; "
            "use 'half_sq' or 'norm'."
        )
