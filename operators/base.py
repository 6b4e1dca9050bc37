"""What an operator is: y = A(x), noiseless, on image-shaped tensors."""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..linalg import norm, proximal_cg

Row = TypeVar("Row", bound=Callable[..., Any])  # a function of OPERATORS

__all__ = ["Chain", "Compose", "LinearOperator", "Operator", "PinvOperator", "Shape", "check_shape", "shaped_by"]

Shape = tuple[int, int, int]  # (C, H, W), no batch axis

# What the methods of an operator take first; `Operator.__init_subclass__` has every one of them check it.
_TAKES: dict[str, tuple[str, ...]] = {
    "forward": ("images",),
    "adjoint": ("data",),
    "pinv": ("data",),
    "prox": ("images", "data"),
    "project": ("images", "data"),
    "spectral": ("images",),
}

# Singular values below this part of the largest one are damped in a pseudo-inverse that is found by conjugate
# gradients: a few hundred steps resolve no smaller ones.
_DAMPING, _PASSES = 1e-2, 3


def _checked(method: Callable[..., Tensor], kinds: tuple[str, ...]) -> Callable[..., Tensor]:
    """The method with a look at what it is given: the first argument is the first of `kinds`, and so on."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def checked(self: Operator, *args: Any, **kwargs: Any) -> Tensor:
        _, *values = signature.bind(self, *args, **kwargs).args
        for kind, value in zip(kinds, values, strict=False):
            if kind == "images":
                check_shape(type(self).__name__, kind, value, self.image_shape, "build it with that image_shape")
            else:
                check_shape(type(self).__name__, kind, value, self.data_shape, "build it for the size of that picture")
        dtype: torch.dtype = values[0].dtype
        if not dtype.is_floating_point:
            return method(self, *values)
        wide = torch.promote_types(dtype, torch.float32)
        values = [values[0].new_tensor(value) if isinstance(value, float | int) else value for value in values]
        is_float = [isinstance(value, Tensor) and value.is_floating_point() for value in values]
        widened = (v.to(wide) if floating else v for v, floating in zip(values, is_float, strict=True))
        found = method(self, *widened)
        if found.is_complex():
            raise TypeError(
                f"{type(self).__name__}.{method.__name__} returns complex numbers; return their real and imaginary "
                "parts as channels, for example with torch.view_as_real."
            )
        return found.to(dtype)

    return checked


def check_shape(name: str, what: str, x: Tensor, shape: tuple[int, ...], remedy: str) -> None:
    """Raise the one sentence about a tensor whose shape is not (B, *shape)."""
    if tuple(x.shape[1:]) != tuple(shape):
        expected = ", ".join(str(n) for n in shape)
        raise ValueError(f"{name} expects {what} (B, {expected}), got {tuple(x.shape)}; {remedy} or resize the input.")


def shaped_by(rule: Callable[..., Shape], *, adds_border: bool = False) -> Callable[[Row], Row]:
    """Tell of a row of OPERATORS that its data have another shape than the picture.

    Arguments:
        rule: (data_shape, **fields) -> image_shape; it takes every field of the row.
        adds_border: whether the picture is larger by a border that is cut off at the end.
    """

    def mark(row: Row) -> Row:
        row.__dict__.update(image_shape_of=rule, adds_border=adds_border)
        return row

    return mark


class Operator(nn.Module, abc.ABC):
    """y = A(x): images x (B, *image_shape) in [-1, 1] to data y (B, *data_shape), never flattened.

    Sub-classes implement `forward` (differentiable) and list their constructor arguments in `fields`, so that an
    operator can be printed.  Constants are stored in float64 or as exact small numbers and are cast to the dtype of
    the input, float32 or float64.

    `forward`, `adjoint`, `pinv`, `prox`, `project` and `spectral` need no checks of their own: whatever a sub-class
    calls so raises the sentence on a wrong shape, computes in float32 on half precision, and returns the dtype of its
    first argument.

    Arguments:
        image_shape: (C, H, W) of the pictures it takes.

    Raises:
        ValueError: if image_shape is not three positive numbers.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    spec: dict[str, Any] | None = None  # {"name": row of OPERATORS, **fields}: set by build_operator, for records
    notes: tuple[str, ...] = ()  # what its user should know, as sentences
    picture_error: float | None = None  # root mean square of A(x) - x, where A(x) is the picture but for small errors

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, kinds in _TAKES.items():
            if name in vars(cls):
                setattr(cls, name, _checked(vars(cls)[name], kinds))

    def __init__(self, image_shape: Shape) -> None:
        super().__init__()
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(
                f"{type(self).__name__} expects image_shape (channels, height, width), all positive, "
                f"got {tuple(image_shape)}; leave the batch axis out."
            )
        channels, height, width = image_shape
        self.image_shape: Shape = (int(channels), int(height), int(width))

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    @cached_property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one measurement, without the batch axis; found once, from a picture of zeros."""
        device = next((buffer.device for buffer in self.buffers()), None)
        with torch.no_grad():
            return tuple(self.forward(torch.zeros(1, *self.image_shape, device=device)).shape[1:])

    @property
    def data_mask(self) -> Tensor | None:
        """1 where an entry of y was measured, 0 where it is a placeholder; broadcasts over y.  None: all measured."""
        return None

    @property
    def border(self) -> tuple[int, int]:
        """Rows and columns by which a picture goes on beyond what its data show, on every side."""
        return 0, 0

    @property
    def shown_shape(self) -> Shape:
        """(C, H, W) of a picture without its `border`."""
        (top, left), (channels, height, width) = self.border, self.image_shape
        return channels, height - 2 * top, width - 2 * left

    def crop(self, x: Tensor) -> Tensor:
        """Pictures (..., H, W) without their `border`: the part that the data show."""
        (top, left), (_, height, width) = self.border, self.shown_shape
        return x[..., top : top + height, left : left + width]

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x)

    def __matmul__(self, inner: Operator) -> Operator:
        """(A @ B)(x) = A(B(x)); linear if both are."""
        if not isinstance(inner, Operator):
            return NotImplemented
        if isinstance(self, LinearOperator) and isinstance(inner, LinearOperator):
            return Compose(self, inner)
        return Chain(self, inner)

    def extra_repr(self) -> str:
        values = self.spec or {name: getattr(self, name) for name in self.fields}
        return ", ".join(
            f"{name}={_brief(value)}" for name, value in {**values, "image_shape": self.image_shape}.items()
        )


class PinvOperator(Operator):
    """An operator that can map data back to an image which explains them: A(A^+ y) = y for noiseless y."""

    @abc.abstractmethod
    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y: (B, *data_shape) -> (B, *image_shape)."""

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The picture next to x that explains noiseless data y (B, *data_shape): x + A^+ y - A^+ A x."""
        return x + self.pinv(y) - self.pinv(self.forward(x))


class LinearOperator(PinvOperator):
    """A linear operator with its exact adjoint; pseudo-inverse and proximal step come from CG by default.

    A closed form may replace `pinv` and `prox`; the tests compare the two, up to the damping of `pinv` by CG and the
    cut-off of the closed form, both of which keep small singular values from amplifying the errors of y.
    """

    @abc.abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y: (B, *data_shape) -> (B, *image_shape)."""

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the minimum-norm least-squares solution, of which the smallest singular values are damped.

        Iterated Tikhonov regularisation: from x = 0, three times x + (A^T A + d)^-1 A^T (y - A x), which is a proximal
        step, with the damping d = (|A| / 100)^2.  A singular value v is inverted up to the part (d / (v^2 + d))^3, so
        that |A A^+ A x - A x| is at most 0.003 |A| |x|, and 1e-6 of the part of A x that has v >= |A| / 10.
        """
        damping = y.new_tensor((_DAMPING * self._norm) ** 2)
        x = y.new_zeros(len(y), *self.image_shape)
        for _ in range(_PASSES):
            x = self.prox(x, y, damping)
        return x

    @cached_property
    def _norm(self) -> float:
        """|A|, the largest singular value, by the power method; the damping needs but two digits."""
        device = next((buffer.device for buffer in self.buffers()), None)
        x = torch.randn(1, *self.image_shape, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.no_grad():
            for _ in range(20):
                x = self.adjoint(self.forward(x / norm(x)))
        return float(norm(x)) ** 0.5

    def prox(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """argmin_u |A u - y|^2 + rho |u - x|^2 for rho > 0, a scalar or one per image (B,); see `proximal_cg`."""
        return proximal_cg(self.forward, self.adjoint, x, y, rho)


class _Both(Operator):
    """A @ B: what the two ways of putting operators one after the other share."""

    outer: Operator
    inner: Operator

    def __init__(self, outer: Operator, inner: Operator) -> None:
        super().__init__(inner.image_shape)
        if inner.data_shape != outer.image_shape:
            raise ValueError(
                f"A @ B: {type(outer).__name__} takes images {outer.image_shape} but {type(inner).__name__} gives "
                f"{inner.data_shape}; build the left operator with image_shape={inner.data_shape}."
            )
        self.outer, self.inner = outer, inner
        self.notes = (*inner.notes, *outer.notes)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer.forward(self.inner.forward(x))

    @property
    def data_mask(self) -> Tensor | None:
        return self.outer.data_mask

    @property
    def border(self) -> tuple[int, int]:
        """The border of B, and that of A in pixels of the picture."""
        rows, columns = (
            own + outer * -(-(size - 2 * own) // data)
            for own, outer, size, data in zip(
                self.inner.border, self.outer.border, self.image_shape[1:], self.outer.image_shape[1:], strict=True
            )
        )
        return rows, columns


class Compose(_Both, LinearOperator):
    """A @ B, first B, then A, both linear: (A B)^T = B^T A^T.

    Arguments:
        outer: A, whose image_shape is the data shape of B.
        inner: B.

    Raises:
        ValueError: if A does not take what B gives.
    """

    outer: LinearOperator
    inner: LinearOperator

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))


class Chain(_Both):
    """A @ B where at least one of the two is not linear: first B, then A.

    Arguments:
        outer: A, whose image_shape is the data shape of B.
        inner: B.

    Raises:
        ValueError: if A does not take what B gives.
    """


def _brief(value: object) -> str:
    return f"Tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
