"""Every operator against a second, slow writing of it; every closed form against conjugate gradients."""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from combinations import check_cases, further
from files import KERNEL_FILE, SHAPE, mask_file, randn, save
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from invsolve.linalg import dot, expand_to, norm
from invsolve.operators import (
    JPEG,
    OPERATORS,
    Chain,
    CircularBlur,
    Compose,
    Grayscale,
    Inpaint,
    LinearOperator,
    Operator,
    PaddedBlur,
    Separable,
    SpectralOperator,
    build_operator,
    image_shape_of,
    kernels,
    masks,
    operator_fields,
)
from invsolve.operators.blur import make_blur
from invsolve.operators.separable_blur import SeparableBlur

# ---------------------------------------------------------------------------------------------------------------------
# Brute force: loops over pixels, (C, H, W) arrays
# ---------------------------------------------------------------------------------------------------------------------


def beyond(i: int, n: int, boundary: str) -> int | None:
    """The pixel that stands for pixel i of a line of n."""
    if boundary == "circular":
        return i % n
    if boundary == "zero":
        return i if 0 <= i < n else None
    while not 0 <= i < n:
        repeat = 0 if boundary == "reflect" else 1  # reflect: c b | a b c | b a, symmetric: b a | a b c | c b
        i = -repeat - i if i < 0 else 2 * (n - 1) + repeat - i
    return i


def convolve(x: np.ndarray, kernel: np.ndarray, boundary: str) -> np.ndarray:
    """y[i, j] = sum_{p, q} k[p, q] x[i - p, j - q], p and q from the middle of k; of the interior only if unknown."""
    (height, width), (h, w) = x.shape[1:], kernel.shape
    top, left = (h // 2, w // 2) if boundary == "unknown" else (0, 0)
    y = np.zeros_like(x)
    for i in range(top, height - top):
        for j in range(left, width - left):
            for p in range(-(h // 2), h // 2 + 1):
                for q in range(-(w // 2), w // 2 + 1):
                    row, column = beyond(i - p, height, boundary), beyond(j - q, width, boundary)
                    if row is not None and column is not None:
                        y[:, i, j] += kernel[p + h // 2, q + w // 2] * x[:, row, column]
    return y[:, top : height - top, left : width - left]


def hide(x: np.ndarray, hidden: Callable[[int, int], bool]) -> np.ndarray:
    y = x.copy()
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            if hidden(i, j):
                y[:, i, j] = 0
    return y


def average(x: np.ndarray, factor: int) -> np.ndarray:
    rows, columns = range(0, x.shape[1], factor), range(0, x.shape[2], factor)
    blocks = [[x[:, i : i + factor, j : j + factor].mean(axis=(1, 2)) for j in columns] for i in rows]
    return np.array(blocks).transpose(2, 0, 1)


def keys(t: float) -> float:
    """The cubic convolution kernel of Keys (1981) with a = -1/2, in Horner's form."""
    t = abs(t)
    if t < 1:
        return (1.5 * t - 2.5) * t * t + 1
    return ((-0.5 * t + 2.5) * t - 4) * t + 2 if t < 2 else 0.0


def bicubic(x: np.ndarray, factor: int) -> np.ndarray:
    """One axis after the other, each output pixel a weighted mean over the mirrored line."""
    for axis in (1, 2):
        n = x.shape[axis]
        lines = []
        for i in range(math.ceil(n / factor)):
            middle = i * factor + (factor - 1) / 2
            taps = range(math.ceil(middle - 2 * factor), math.floor(middle + 2 * factor) + 1)
            weights = [keys((tap - middle) / factor) for tap in taps]
            pixels = [x.take(beyond(tap, n, "symmetric"), axis) for tap in taps]
            lines.append(sum(w * p for w, p in zip(weights, pixels, strict=True)) / sum(weights))
        x = np.stack(lines, axis)
    return x


def gaussian_kernel(sigma: float) -> np.ndarray:
    radius = math.ceil(4 * sigma)
    offsets = range(-radius, radius + 1)
    kernel = np.array([[math.exp(-(p * p + q * q) / (2 * sigma**2)) for q in offsets] for p in offsets])
    return kernel / kernel.sum()


# ---------------------------------------------------------------------------------------------------------------------
# The cases: one or more for each row of the table
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A row of OPERATORS with fields that fit small pictures.

    Arguments:
        name: the row.
        fields: from the size (H, W) of a picture, for rows that read a file of that size.
        brute: x (C, H, W) to A x in slow NumPy; None if the operator is not linear and is tested on its own.
        closed: is a SpectralOperator, with its own pinv and prox.
    """

    name: str
    fields: Callable[[tuple[int, int]], dict[str, Any]]
    brute: Callable[[np.ndarray], np.ndarray] | None
    closed: bool = True

    def build(self, shape: tuple[int, int, int] = SHAPE) -> Operator:
        return build_operator(self.name, shape, **self.fields(shape[1:]))

    def __str__(self) -> str:
        fields = {key: value for key, value in self.fields(SHAPE[1:]).items() if key not in {"mask", "kernel"}}
        return "-".join([self.name, *map(str, fields.values())])


def fixed(name: str, brute: Callable[[np.ndarray], np.ndarray] | None, closed: bool = True, **fields: Any) -> Case:
    return Case(name, lambda _: fields, brute, closed)


def blurs(name: str, k: np.ndarray, product: bool = False, **fields: Any) -> list[Case]:
    """The four boundaries; singular values are known on a torus, and elsewhere of a kernel that is a product."""

    def case(boundary: str) -> Case:
        closed = product or boundary == "circular"
        return fixed(name, lambda x: convolve(x, k, boundary), closed, boundary=boundary, **fields)

    return [case(boundary) for boundary in ("unknown", "circular", "zero", "reflect")]


def hidden_box(i: int, j: int) -> bool:
    return i in (1, 2, 3) and j in (2, 3, 4, 5)


def hidden_in(mask: Callable[..., Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    observed = mask(SHAPE[1:], 0.4, 3)  # tested by itself below
    return lambda x: hide(x, lambda i, j: observed[i, j] == 0)


CASES = [
    fixed("identity", lambda x: x),
    Case(
        "inpaint",
        lambda size: {"mask": mask_file(size)},
        lambda x: hide(x, lambda i, j: i < 2 or (i, j) == (4, 3)),
    ),
    fixed("inpaint-box", lambda x: hide(x, hidden_box), top=1, left=2, height=3, width=4),
    fixed("inpaint-random", hidden_in(masks.random), fraction=0.4, seed=3),
    fixed("inpaint-brush", hidden_in(masks.brush), fraction=0.4, seed=3),
    *blurs("blur", gaussian_kernel(0.6), product=True, sigma=0.6),
    *blurs("blur-uniform", np.full((3, 3), 1 / 9), product=True, size=3),
    *blurs("blur-motion", kernels.linear_motion(2.5, 30).numpy(), length=2.5, angle=30.0),
    *blurs("blur-motion", kernels.linear_motion(3.0, 90).numpy(), product=True, length=3.0, angle=90.0),
    *blurs("blur-shake", kernels.camera_shake(5, 2, 1.0).numpy(), size=5, seed=2, intensity=1.0),
    *blurs("defocus", kernels.disk(1.4).numpy(), radius=1.4),
    *blurs("blur-kernel", kernels.from_file(KERNEL_FILE).numpy(), kernel=KERNEL_FILE),
    fixed("downsample", lambda x: average(x, 2), factor=2),
    fixed("downsample", lambda x: average(x, 3), factor=3),
    fixed("downsample-bicubic", lambda x: bicubic(x, 2), factor=2),
    fixed("downsample-bicubic", lambda x: bicubic(x, 3), factor=3),
    fixed("grayscale", lambda x: x.mean(axis=0, keepdims=True), weights="mean"),
    fixed("grayscale", lambda x: (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2])[None], weights="luma"),
    fixed("jpeg", None, quality=30),
    *(fixed(name, brute, closed=False) for name, brute in further("CASES").items()),
]
LINEAR = [case for case in CASES if case.brute is not None]

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_linear = pytest.mark.parametrize("case", LINEAR, ids=str)


def relative(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


def images(batch: int = 2, shape: tuple[int, ...] = SHAPE, **kwargs: Any) -> Tensor:
    return randn(batch, *shape, **kwargs)


def test_every_row_has_a_case() -> None:
    check_cases(OPERATORS, [case.name for case in CASES], "CASES", "test_operators.py")
    assert [case.name for case in CASES if case.brute is None] == ["jpeg"]


# ---------------------------------------------------------------------------------------------------------------------
# Linear operators
# ---------------------------------------------------------------------------------------------------------------------


def dense(case: Case) -> np.ndarray:
    """The matrix (data, pixels) of the brute force."""
    basis = np.eye(math.prod(SHAPE)).reshape(-1, *SHAPE)
    return np.stack([case.brute(x).reshape(-1) for x in basis], axis=1)


def assert_adjoint(operator: LinearOperator, dtype: torch.dtype, tolerance: float) -> None:
    u, v = images(shape=operator.image_shape, dtype=dtype), randn(2, *operator.data_shape, seed=1, dtype=dtype)
    au, atv = operator(u), operator.adjoint(v)
    assert au.shape == v.shape and atv.shape == u.shape  # dot() flattens and would hide a wrong shape
    scale = dot(au, au).sqrt() * dot(v, v).sqrt()
    assert ((dot(au, v) - dot(u, atv)).abs() <= tolerance * scale).all()


@every_linear
def test_equals_brute_force(case: Case) -> None:
    x = images(1)
    assert relative(case.build()(x)[0], torch.from_numpy(case.brute(x[0].numpy()))) < 1e-12


@every_linear
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_adjoint(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    assert_adjoint(case.build(), dtype, tolerance)


@every_linear
def test_gradient_is_the_adjoint(case: Case) -> None:
    operator = case.build()
    x, v = images().requires_grad_(True), randn(2, *operator.data_shape, seed=1)
    (gradient,) = torch.autograd.grad(operator(x), x, v)
    assert relative(gradient, operator.adjoint(v)) < 1e-12


def damped(v: Any) -> Any:
    """What the pseudo-inverse by conjugate gradients makes of a singular value v of a matrix of norm 1."""
    return 1 - (1e-4 / (v**2 + 1e-4)) ** 3


@every_linear
def test_pinv_explains_the_data(case: Case) -> None:
    operator, x = case.build(), images()
    y = operator(x)
    missed = norm(operator(operator.pinv(y)) - y)
    assert (missed <= (1e-10 * norm(y) if case.closed else 0.003 * operator._norm * norm(x))).all()


@every_linear
def test_projection(case: Case) -> None:
    """What already explains y stays; what does not ends up explaining it, moved within the range of A^T only."""
    operator, x, other = case.build(), images(), images(seed=5)
    y = operator(x)
    moved = operator.project(other, y)
    assert relative(operator.project(x, y), x) < 1e-10
    assert relative(operator(moved), y) < (1e-10 if case.closed else 0.01)
    if case.closed:
        assert relative(other - moved, operator.pinv(operator(other - moved))) < 1e-9


@every_linear
def test_pinv_and_prox_equal_dense_algebra(case: Case) -> None:
    """Against NumPy on the brute-force matrix, also for data that no picture explains."""
    operator, a, rho = case.build(), dense(case), torch.tensor(0.3, dtype=torch.float64)
    x, y = images(1), randn(1, *operator.data_shape, seed=1)
    u, v, vt = np.linalg.svd(a, full_matrices=False)
    v, kept = np.maximum(v, 1e-12), (v > 1e-6) if case.closed else damped(v / operator._norm)
    pinv = vt.T @ (kept / v * (u.T @ y.numpy().reshape(-1)))
    normal = a.T @ a + rho.item() * np.eye(a.shape[1])
    prox = np.linalg.solve(normal, a.T @ y.numpy().reshape(-1) + rho.item() * x.numpy().reshape(-1))
    assert relative(operator.pinv(y).reshape(-1), torch.from_numpy(pinv)) < (1e-9 if case.closed else 1e-3)
    assert relative(operator.prox(x, y, rho).reshape(-1), torch.from_numpy(prox)) < (1e-9 if case.closed else 1e-6)


@pytest.mark.parametrize("case", [case for case in LINEAR if case.closed], ids=str)
def test_closed_forms_equal_cg(case: Case) -> None:
    """The pseudo-inverse after the damping of that by conjugate gradients."""
    operator = case.build()
    x, y, rho = images(), randn(2, *operator.data_shape, seed=1), torch.tensor([0.1, 2.0], dtype=torch.float64)
    assert type(operator).pinv is not LinearOperator.pinv and type(operator).prox is not LinearOperator.prox
    expected = operator.spectral(operator.pinv(y), lambda v: damped(v / operator._norm))
    assert relative(LinearOperator.pinv(operator, y), expected) < 1e-3
    assert relative(operator.prox(x, y, rho), LinearOperator.prox(operator, x, y, rho)) < 1e-5


@pytest.mark.parametrize("boundary", ["unknown", "circular", "zero", "reflect"])
@pytest.mark.parametrize("shape", [(1, 18, 20), (1, 20, 17)], ids=str)
def test_default_blur_equals_truncated_dense_algebra(shape: tuple[int, int, int], boundary: str) -> None:
    """At sigma = 2 most singular values are below the cut-off of 1e-4, for data of a picture and for any data."""
    operator, size = build_operator("blur", shape, boundary=boundary), math.prod(shape)
    a = operator(torch.eye(size).double().reshape(size, *shape)).flatten(1).T.numpy()
    u, v, vt = np.linalg.svd(a, full_matrices=False)
    kept = v > 1e-4 * v[0]
    assert kept.sum() < size / 2
    for y in (operator(images(1, shape)), randn(1, *operator.data_shape)):
        expected = vt[kept].T @ (u[:, kept].T @ y.numpy().reshape(-1) / v[kept])
        assert relative(operator.pinv(y).reshape(-1), torch.from_numpy(expected)) < 1e-7
    x, rho = randn(1, *shape, seed=1), torch.tensor(1e-3).double()
    right = torch.from_numpy(a.T @ y.numpy().reshape(-1)) + rho * x.flatten()
    prox = torch.linalg.solve(torch.from_numpy(a.T @ a) + rho * torch.eye(size), right)
    assert relative(operator.prox(x, y, rho).flatten(), prox) < 1e-9
    d = 1e-4 * operator._norm**2
    by_cg = operator.spectral(
        operator.adjoint(y), lambda v: torch.where(v > 0, damped(v / operator._norm) / v.square(), 3 / d)
    )
    assert relative(LinearOperator.pinv(operator, y), by_cg) < 0.005


ORDINARY = [
    ("blur", {"sigma": 2.0}, (1, 32, 36)),
    ("blur", {"sigma": 3.0}, (1, 64, 64)),
    ("blur", {"sigma": 1.3}, (3, 19, 22)),
    ("blur-uniform", {"size": 9}, (1, 40, 33)),
    ("blur-motion", {"length": 15.0, "angle": 0.0}, (3, 32, 40)),
    ("blur-motion", {"length": 15.0}, (1, 32, 33)),
    ("blur-shake", {"size": 17}, (1, 33, 32)),
]


LONG = {(name, boundary) for name in ("blur-motion", "blur-shake") for boundary in ("reflect", "zero")}  # 5 to 25 s


@pytest.mark.parametrize(
    ("name", "fields", "shape", "boundary"),
    [
        pytest.param(*row, b, marks=pytest.mark.slow if (row[0], b) in LONG and "angle" not in row[1] else ())
        for row in ORDINARY
        for b in ("unknown", "circular", "zero", "reflect")
    ],
    ids=str,
)
def test_pinv_of_a_strong_blur(name: str, fields: dict[str, Any], shape: tuple[int, int, int], boundary: str) -> None:
    """A A^+ A = A up to the stated cut-off or damping; on any data it is bounded, and rows do not mix."""
    operator, x = build_operator(name, shape, boundary=boundary, **fields), images(2, shape)
    y, noise = operator(x), randn(2, *operator.data_shape, seed=1)
    closed = isinstance(operator, SpectralOperator)
    assert (norm(operator(operator.pinv(y)) - y) <= (1e-4 if closed else 0.003) * operator._norm * norm(x)).all()
    back = operator.pinv(noise)
    assert (norm(back) <= (1e4 if closed else 120) * norm(noise) / operator._norm).all()
    assert relative(operator.pinv(noise[1:]), back[1:]) < (1e-9 if closed else 1e-4)
    if closed:
        assert relative(operator.pinv(noise.float()).double(), back) < 1e-2


@pytest.mark.parametrize("boundary", ["unknown", "zero", "reflect"])
def test_product_kernels_are_blurred_by_lines_as_by_padding(boundary: str) -> None:
    shape, kernel = (2, 21, 18), kernels.gaussian(2.0)
    by_lines = build_operator("blur", shape, boundary=boundary)
    by_padding = PaddedBlur(shape, kernel=kernel, boundary=boundary)
    assert isinstance(by_lines, Separable) and by_lines.cutoff == 1e-4
    assert relative(by_lines(images(1, shape)), by_padding(images(1, shape))) < 1e-12
    y = images(1, by_lines.data_shape)
    assert relative(by_lines.adjoint(y), by_padding.adjoint(y)) < 1e-12
    assert by_lines.border == by_padding.border == ((8, 8) if boundary == "unknown" else (0, 0))


@pytest.mark.parametrize("case", [case for case in LINEAR if case.closed], ids=str)
def test_spectral_equals_dense_algebra(case: Case) -> None:
    """V diag(f(v)) V^T x with the V and v of NumPy, f depending on the image."""
    operator, x = case.build(), images()
    shift = torch.tensor([1.0, 3.0], dtype=torch.float64)
    result = operator.spectral(x, lambda v: (v + expand_to(shift, x)).log() + (v > 0))
    _, values, vt = np.linalg.svd(dense(case))
    values = np.pad(values, (0, len(vt) - len(values)))
    values[values < 1e-6] = 0
    for b in range(2):
        f = np.log(values + float(shift[b])) + (values > 0)
        expected = vt.T @ (f * (vt @ x[b].numpy().reshape(-1)))
        assert relative(result[b].reshape(-1), torch.from_numpy(expected)) < 1e-9


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("blur", {"sigma": 2.0}),
        ("downsample", {"factor": 4}),
        ("downsample-bicubic", {"factor": 4}),
        ("grayscale", {}),
    ],
)
def test_closed_forms_keep_the_digits_of_float32(name: str, fields: dict[str, Any]) -> None:
    """Forms that divide A^T y by rho = 1e-5 or by v^2 lose three digits and more."""
    operator, rho = build_operator(name, (3, 32, 40), **fields), torch.tensor(1e-5)
    x = images(1, (3, 32, 40), dtype=torch.float32)
    y = operator(images(1, (3, 32, 40), seed=1, dtype=torch.float32))
    assert relative(operator.prox(x, y, rho).double(), operator.prox(x.double(), y.double(), rho.double())) < 1e-5
    assert relative(operator.pinv(y).double(), operator.pinv(y.double())) < 1e-3


@every_linear
def test_capability_is_a_type(case: Case) -> None:
    assert isinstance(case.build(), SpectralOperator) == case.closed


@every_linear
@pytest.mark.parametrize(
    "rho", [torch.tensor(0.5), torch.tensor([0.02, 30.0], dtype=torch.float64)], ids=["one", "two"]
)
def test_prox_is_optimal(case: Case, rho: Tensor) -> None:
    """A^T (A u - y) + rho (u - x) = 0."""
    operator = case.build()
    x, y = images(), randn(2, *operator.data_shape, seed=1)
    u = operator.prox(x, y, rho)
    slope = operator.adjoint(operator(u) - y) + expand_to(rho, x) * (u - x)
    start = operator.adjoint(operator(x) - y)
    assert slope.norm() < (1e-10 if case.closed else 1e-5) * start.norm()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(height=st.integers(7, 12), width=st.integers(7, 12), channels=st.sampled_from([1, 3]))
@pytest.mark.parametrize("case", [c for c in LINEAR if "luma" not in str(c)], ids=str)
def test_any_size(case: Case, height: int, width: int, channels: int) -> None:
    shape = (channels, height, width)
    operator = case.build(shape)
    assert_adjoint(operator, torch.float64, 1e-10)
    y = operator(images(1, shape))
    assert tuple(y.shape[1:]) == operator.data_shape
    if case.closed:
        assert relative(operator(operator.pinv(y)), y) < 1e-3  # some sizes lose a frequency of the blur


@pytest.mark.parametrize("case", [c for c in LINEAR if c.name.startswith("downsample")], ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 12), (2, 9, 6)], ids=str)
def test_cut_blocks_equal_brute_force(case: Case, shape: tuple[int, int, int]) -> None:
    x = images(1, shape)
    assert relative(case.build(shape)(x)[0], torch.from_numpy(case.brute(x[0].numpy()))) < 1e-12


def test_blur_drops_what_it_has_lost() -> None:
    """A mean over three pixels of a ring of nine loses two frequencies for good."""
    operator = build_operator("blur-uniform", (1, 9, 9), size=3, boundary="circular")
    matrix = np.stack([operator(x[None]).numpy().reshape(-1) for x in torch.eye(81).double().reshape(81, 1, 9, 9)], 1)
    assert np.linalg.matrix_rank(matrix) == 49
    y = randn(1, 1, 9, 9)
    expected = torch.from_numpy(np.linalg.pinv(matrix, rcond=1e-6) @ y.numpy().reshape(-1))
    assert relative(operator.pinv(y).reshape(-1), expected) < 1e-9


def test_blur_survives_a_cast_of_the_module() -> None:
    """Module.float() drops the imaginary part of a complex buffer; an asymmetric kernel would then be mirrored."""
    operator = build_operator("blur-kernel", SHAPE, kernel=KERNEL_FILE, boundary="circular")
    x, kernel = images(dtype=torch.float32), kernels.from_file(KERNEL_FILE).numpy()
    assert relative(operator.to(torch.float32)(x), operator(x.double()).float()) < 1e-6
    assert relative(operator(x)[0], torch.from_numpy(convolve(x[0].numpy(), kernel, "circular"))) < 1e-6


def test_bicubic_agrees_with_torch_inside() -> None:
    """F.interpolate cuts its taps at the border instead of mirroring; inside the two are the same."""
    x = images(1, (3, 40, 48))
    y = build_operator("downsample-bicubic", (3, 40, 48), factor=4)(x)
    expected = torch.nn.functional.interpolate(x, (10, 12), mode="bicubic", antialias=True)
    assert relative(y[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2]) < 1e-12
    assert relative(y, expected) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Every operator
# ---------------------------------------------------------------------------------------------------------------------


@every_case
def test_batch_equals_one_by_one(case: Case) -> None:
    operator = case.build()
    x = images(3).clamp(-1, 1)
    y = operator(x)
    rho = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    for b in range(3):
        one = slice(b, b + 1)
        torch.testing.assert_close(operator(x[one]), y[one], rtol=0, atol=1e-12)
        torch.testing.assert_close(operator.pinv(y[one]), operator.pinv(y)[one], rtol=0, atol=1e-9)
        if isinstance(operator, LinearOperator):
            torch.testing.assert_close(operator.prox(x[one], -y[one], rho[one]), operator.prox(x, -y, rho)[one])


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dtype_is_kept(case: Case, dtype: torch.dtype) -> None:
    operator, x = case.build(), images(dtype=dtype)
    y = operator(x)
    assert y.dtype == operator.pinv(y).dtype == dtype
    if isinstance(operator, LinearOperator):
        assert operator.adjoint(y).dtype == operator.prox(x, y, torch.tensor(0.5, dtype=dtype)).dtype == dtype


@every_case
def test_spec_builds_the_same_operator(case: Case) -> None:
    operator, x = case.build(), images()
    spec = json.loads(json.dumps(operator.spec))
    assert set(spec) == {"name", *operator_fields(case.name)}
    assert all(f"{key}={value!r}" in repr(operator) for key, value in spec.items())
    torch.testing.assert_close(build_operator(spec.pop("name"), SHAPE, **spec)(x), operator(x), rtol=0, atol=0)


def test_operator_from_text() -> None:
    by_fields = build_operator("blur", SHAPE, sigma=2.0, boundary="zero")
    assert build_operator("blur(sigma=2)", SHAPE, boundary="zero").spec == by_fields.spec
    assert build_operator({"name": "blur", "sigma": 2.0}, SHAPE, boundary="zero").spec == by_fields.spec
    with pytest.raises(ValueError, match="built by its name"):
        build_operator(5, SHAPE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma of operator blur must be float"):
        build_operator("blur", SHAPE, sigma=np.zeros(2))
    with pytest.raises(ValueError, match="operator blur is given sigma in its text and as a field; leave one out"):
        build_operator("blur(sigma=2)", SHAPE, sigma=3)


def test_a_path_is_a_file_name() -> None:
    operator = build_operator("blur-kernel", SHAPE, kernel=Path(KERNEL_FILE))
    assert operator.spec == {"name": "blur-kernel", "kernel": KERNEL_FILE, "boundary": "unknown"}


@every_case
def test_image_shape_is_the_inverse_of_data_shape(case: Case) -> None:
    shape = (3, 12, 18)
    fields = case.fields(shape[1:])
    assert image_shape_of(case.name, case.build(shape).data_shape, **fields) == shape


def test_image_shape_takes_the_default_factor() -> None:
    assert image_shape_of("downsample", (1, 5, 6)) == (1, 20, 24)


@every_case
def test_data_shape_is_found_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = case.build()
    expected = tuple(operator(images(1)).shape[1:])
    assert operator.data_shape == expected
    monkeypatch.setattr(type(operator), "forward", None)
    assert operator.data_shape == expected and copy.deepcopy(operator).data_shape == expected


@every_case
def test_casts_and_moves_of_the_module(case: Case) -> None:
    operator, x = case.build(), images(dtype=torch.float32).clamp(-1, 1)
    assert relative(case.build().to(torch.float32)(x), operator(x)) < 1e-5
    shape = operator.data_shape
    moved = case.build().to("meta")
    assert all(buffer.is_meta for buffer in moved.buffers()) and moved.data_shape == shape
    if isinstance(moved, LinearOperator):  # libjpeg runs on the CPU, on true numbers
        y = moved(x.to("meta"))
        assert y.is_meta and tuple(y.shape[1:]) == shape and moved.adjoint(y).is_meta


@every_case
def test_wrong_shape_gives_the_sentence(case: Case) -> None:
    """Whatever is called, and however: a wrong height, one channel that would broadcast, no batch axis."""
    operator = case.build()
    data, one = operator.data_shape, torch.tensor(1.0)
    x, y = torch.zeros(2, *SHAPE), torch.zeros(2, *data)
    bad_x = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 7, 8), torch.zeros(SHAPE), torch.zeros(20), torch.zeros(())]
    bad_y = [torch.zeros(2, *data[:-1], data[-1] + 1), torch.zeros(2, 5, *data[1:]), torch.zeros(data), torch.zeros(20)]
    of_x = [operator, operator.forward, lambda x: operator.project(x, y)]
    of_y = [operator.pinv, lambda y: operator.pinv(y=y), lambda y: operator.project(x, y)]
    if isinstance(operator, LinearOperator):
        of_x.append(lambda x: operator.prox(x, y, one))
        of_y += [operator.adjoint, lambda y: operator.prox(x, y, rho=one), lambda y: LinearOperator.pinv(operator, y)]
    if isinstance(operator, SpectralOperator):
        of_x.append(lambda x: operator.spectral(x, torch.ones_like))
    for methods, kind, bad in ((of_x, "images", bad_x), (of_y, "data", bad_y)):
        for method in methods:
            for wrong in bad:
                with pytest.raises(
                    ValueError, match=rf"expects {kind} \(B, .*, got .*; build it .* or resize the input"
                ):
                    method(wrong)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    operator, x = case.build(), images(dtype=dtype)
    y = operator(x)
    assert y.dtype == dtype and torch.equal(y, operator(x.float()).to(dtype))
    assert torch.equal(operator.pinv(y), operator.pinv(y.float()).to(dtype))
    if isinstance(operator, LinearOperator):
        rho = torch.tensor([0.5, 1.0])
        assert torch.equal(operator.adjoint(y), operator.adjoint(y.float()).to(dtype))
        for given in (rho, rho.double(), rho.to(dtype)):
            assert torch.equal(operator.prox(x, y, given), operator.prox(x.float(), y.float(), rho).to(dtype))
    if isinstance(operator, SpectralOperator):
        assert operator.spectral(x, lambda v: v + 1).dtype == dtype


@every_linear
def test_data_mask_marks_what_depends_on_the_image(case: Case) -> None:
    operator = case.build()
    changed = operator(images()) != operator(images(seed=1))
    mask = torch.ones(()) if operator.data_mask is None else operator.data_mask
    assert (changed == mask.expand(changed.shape)).all()


def test_inpaint_hides_single_channels() -> None:
    observed = torch.ones(SHAPE)
    observed[1] = 0
    operator, x = Inpaint(SHAPE, observed=observed), images()
    assert (operator(x)[:, 1] == 0).all() and (operator(x)[:, ::2] == x[:, ::2]).all()
    assert torch.equal(operator.data_mask, observed)


BAD_FIELDS = [
    ("blurr", {}, r"Unknown operator 'blurr' \(did you mean 'blur'\?\); choose one of identity"),
    ("blur", {"sigm": 1.0}, r"blur has no field 'sigm' \(did you mean 'sigma'\?\); its fields are sigma: float"),
    ("identity", {"x": 1}, "identity has no field 'x'; it has no fields"),
    ("inpaint", {}, "inpaint needs mask; its fields are mask: str"),
    ("inpaint-box", {"top": 1}, "inpaint-box needs left, height, width"),
    ("inpaint-box", {"top": 5, "left": 0, "height": 3, "width": 2}, r"does not lie inside a picture of 7 x 8 pixels"),
    ("inpaint-box", {"top": 0, "left": 0, "height": 7, "width": 8}, "this mask hides every pixel"),
    ("inpaint-random", {"fraction": 1.5}, "lies between 0 and 1, got 1.5"),
    ("inpaint-random", {"fraction": 0.001}, "this mask observes every pixel"),
    ("inpaint-brush", {"fraction": 0.0}, "lies between 0 and 1, got 0.0"),
    ("blur", {"sigma": -1.0}, "sigma is the width of the Gaussian in pixels, positive and at most 511, got -1.0; 1"),
    ("blur", {"sigma": 1e308}, r"at most 511, got 1e\+308; 1 to 5 blur"),
    ("blur", {"sigma": 1e308, "boundary": "zero"}, r"at most 511, got 1e\+308; 1 to 5 blur"),
    ("blur", {"sigma": 600.0}, "at most 511, got 600.0"),
    ("blur", {"sigma": 1.0, "boundary": "circular"}, r"The kernel \(9, 9\) is larger than the picture \(7, 8\)"),
    ("blur", {"sigma": 1.0}, r"Nothing is left of a picture \(7, 8\) without the border that the kernel \(9, 9\)"),
    ("blur-shake", {"size": 9}, r"Nothing is left of a picture \(7, 8\)"),
    ("defocus", {"radius": 0.0}, "in pixels, positive and at most 2047, got 0.0; 2 to 20"),
    ("defocus", {"radius": 1e9}, "at most 2047, got 1000000000.0"),
    ("blur", {"sigma": 2.0, "boundary": "reflect"}, r"The kernel \(17, 17\) reaches over the mirrored picture"),
    (
        "blur",
        {"sigma": 0.5, "boundary": "wrap"},
        "boundary of operator blur must be 'unknown' or 'circular' or 'zero' or 'reflect', got 'wrap'",
    ),
    ("blur-uniform", {"size": 4}, "odd number of pixels, so that it has a middle, got 4"),
    ("blur-motion", {"length": 0.0}, "at least 1 and at most 4094, got 0.0; 5 to 30"),
    ("blur-shake", {"size": 5, "intensity": -1.0}, r"intensity from 0 \(a.*\) to 10, got size=5, intensity=-1.0"),
    ("blur-shake", {"intensity": 1e308}, r"to 10, got size=31, intensity=1e\+308"),
    ("blur-shake", {"size": 1}, "size >= 3"),
    ("blur-kernel", {"kernel": "absent.png"}, "Cannot read the picture 'absent.png'"),
    ("downsample", {"factor": 0}, "factor must be a whole number of at least 1, got 0"),
    ("downsample-bicubic", {"factor": -1}, "factor must be a whole number of at least 1, got -1"),
    ("downsample-bicubic", {"factor": 8}, "factor is at most 7 for pictures of 7 x 8 pixels, got 8"),
    ("grayscale", {"weights": "rgb"}, "weights of operator grayscale must be 'mean' or 'luma', got 'rgb'"),
    ("blur", {"sigma": "wide"}, "sigma of operator blur must be float, got 'wide'"),
    ("blur", {"sigma": math.inf}, "sigma of operator blur must be finite, got inf"),
    ("jpeg", {"quality": 10.5}, "quality of operator jpeg must be int or None, got 10.5"),
    ("inpaint-random", {"seed": 2**70}, r"seed is a whole number from 0 to 2\^63 - 1, got 1180591620717411303424"),
    ("inpaint-brush", {"seed": -1}, "from 0 to"),
    ("blur-shake", {"size": 5, "seed": 2**64}, "seed is a whole number"),
    ("blur", {"sigma": 1e6}, "at most 511, got 1000000.0; 1 to 5 blur"),
    ("blur-uniform", {"size": 2000001}, "at most 4095 pixels wide, this one has 2000001"),
    ("blur-motion", {"length": 1e308}, r"at most 4094, got 1e\+308; 5 to 30"),
    ("blur-shake", {"size": 4097}, "at most 4095 pixels wide, this one has 4097"),
    ("jpeg", {"quality": 0}, r"quality is a number from 1 \(worst\) to 100, got 0"),
    ("jpeg", {"subsampling": "4:1:1"}, "subsampling of operator jpeg must be '4:4:4' or '4:2:0', got '4:1:1'"),
    ("jpeg", {"tables_from": "absent.jpg"}, "Cannot read 'absent.jpg'"),
    ("jpeg", {}, r"jpeg got no quality, .*jpeg\(quality=30\), or that JPEG file"),
    ("jpeg", {"quality": 30, "tables_from": "a.jpg"}, "give one of the two"),
]


@pytest.mark.parametrize(("name", "fields", "sentence"), BAD_FIELDS)
def test_bad_fields_give_the_sentence(name: str, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_operator(name, SHAPE, **fields)


def clear_file() -> str:
    return save("clear.png", np.full((7, 8, 4), 200))


BAD_ARGUMENTS = [
    (lambda: build_operator("identity", (1, 3, 7, 8)), r"all positive, got \(1, 3, 7, 8\); leave the batch axis out"),
    (lambda: build_operator("identity", (3, 0, 8)), r"all positive, got \(3, 0, 8\)"),
    (lambda: build_operator("grayscale", (2, 7, 8), weights="luma"), "got 2 channels; use weights='mean'"),
    (lambda: build_operator("jpeg", (2, 7, 8), quality=10), "1 or 3 channels"),
    (lambda: build_operator("jpeg", SHAPE, tables_from=KERNEL_FILE), "is a PNG file"),
    (lambda: build_operator("inpaint", SHAPE, mask=mask_file((9, 9))), r"expects a mask \(7, 8\).*got \(9, 9\)"),
    (lambda: build_operator("inpaint", SHAPE, mask=save("k.png", np.zeros((7, 8)))), "has no hole; paint"),
    (
        lambda: build_operator("inpaint", SHAPE, mask=save("w.png", np.full((7, 8), 255))),
        "is white everywhere; white = hole",
    ),
    (lambda: build_operator("inpaint", SHAPE, mask="absent.png"), "Cannot read the picture 'absent.png'"),
    (lambda: build_operator("blur-kernel", SHAPE, kernel=save("b.png", np.zeros((3, 3)))), "is black"),
    (lambda: Inpaint(SHAPE, observed=torch.full((7, 8), 0.5)), r"zeros \(hidden\) and ones"),
    (lambda: CircularBlur(SHAPE, kernel=torch.ones(2, 3)), r"odd height and width, got \(2, 3\)"),
    (
        lambda: PaddedBlur(SHAPE, kernel=torch.ones(3, 3), boundary="circular"),
        "is one of unknown, zero, reflect, got",
    ),
    (lambda: Separable(SHAPE, vertical=torch.ones(2, 7), horizontal=torch.ones(2, 7)), r"got \(2, 7\) and \(2, 7\)"),
    (lambda: JPEG(SHAPE, tables=torch.zeros(2, 8, 8)), "values 1 to 255"),
    (lambda: JPEG((1, 1, 70000), tables=torch.ones(2, 8, 8)), "at most 65500 pixels a side"),
    (lambda: Grayscale(SHAPE, weights="rgb"), "weights is one of mean, luma, got 'rgb'"),
    (lambda: build_operator("blur-kernel", SHAPE, kernel=clear_file()), "has transparent pixels; save it opaque"),
    (lambda: build_operator("inpaint", SHAPE, mask=clear_file()), "has transparent pixels; save it opaque"),
    (lambda: image_shape_of("blurr", SHAPE), "Unknown operator 'blurr' .*; choose one of identity"),
    (lambda: image_shape_of("downsample", SHAPE, factor=0), "factor must be a whole number of at least 1, got 0"),
    (lambda: image_shape_of("grayscale", SHAPE), r"expects a grey picture \(1 channel\), got 3; save it as grey"),
]


@pytest.mark.parametrize(("build", "sentence"), BAD_ARGUMENTS)
def test_bad_arguments_give_the_sentence(build: Callable[[], Operator], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


def test_fields_have_simple_types() -> None:
    """The command line maps strings to fields by these types."""
    for name, entry in OPERATORS.items():
        parameters = dict(inspect.signature(entry, eval_str=True).parameters)
        del parameters["image_shape"]
        assert set(operator_fields(name)) == set(parameters)
        for parameter in parameters.values():
            assert parameter.kind is parameter.KEYWORD_ONLY
            parts = getattr(parameter.annotation, "__args__", (parameter.annotation,))  # of a literal or a union
            assert parts and all(part in (int, float, str, NoneType) or isinstance(part, str) for part in parts)


# ---------------------------------------------------------------------------------------------------------------------
# A @ B
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [2.0, None, "blur", torch.zeros(1, *SHAPE)], ids=["2.0", "None", "blur", "tensor"])
def test_operator_at_something_else_is_a_type_error(other: Any) -> None:
    with pytest.raises(TypeError):
        build_operator("identity", SHAPE) @ other


def test_linear_at_linear_is_linear() -> None:
    outer, inner = build_operator("downsample", (1, 7, 8), factor=2), Grayscale(SHAPE)
    operator, x = outer @ inner, images()
    assert isinstance(operator, Compose) and operator.data_shape == (1, 4, 4)
    assert relative(operator(x), outer(inner(x))) == 0
    assert_adjoint(operator, torch.float64, 1e-10)
    y = operator(x)
    assert relative(operator(operator.pinv(y)), y) < 1e-5


def test_anything_at_jpeg_is_a_chain() -> None:
    codec, grey = build_operator("jpeg", SHAPE, quality=10), Grayscale(SHAPE)
    operator, x = grey @ codec, images()
    assert isinstance(operator, Chain) and not isinstance(operator, LinearOperator)
    assert relative(operator(x), grey(codec(x))) == 0
    assert isinstance(codec @ build_operator("identity", SHAPE), Chain)


def test_mask_of_a_product_is_that_of_its_data() -> None:
    holes, smooth = build_operator("inpaint-random", SHAPE), build_operator("blur", SHAPE, sigma=0.5, boundary="zero")
    assert torch.equal((holes @ smooth).data_mask, holes.data_mask)
    assert torch.equal((holes @ build_operator("jpeg", SHAPE, quality=10)).data_mask, holes.data_mask)
    assert (smooth @ holes).data_mask is None


def test_product_of_unequal_shapes_gives_the_sentence() -> None:
    for outer in (Grayscale(SHAPE), build_operator("jpeg", SHAPE, quality=10)):
        with pytest.raises(
            ValueError, match=r"gives \(3, 4, 4\); build the left operator with image_shape=\(3, 4, 4\)"
        ):
            outer @ build_operator("downsample", SHAPE, factor=2)


# ---------------------------------------------------------------------------------------------------------------------
# A border that nobody knows
# ---------------------------------------------------------------------------------------------------------------------


def test_unknown_border_is_the_interior_of_any_other() -> None:
    """Against SciPy, whose convolution pads: what its padding does not reach is what the data show."""
    shape, kernel = (1, 40, 37), kernels.camera_shake(9, 3, 1.0)
    operator, x = build_operator("blur-shake", shape, size=9, seed=3, intensity=1.0), images(1, shape)
    expected = ndimage.convolve(x[0, 0].numpy(), kernel.numpy(), mode="nearest")[4:-4, 4:-4]
    assert operator.data_shape == operator.shown_shape == (1, 32, 29)
    assert relative(operator(x)[0, 0], torch.from_numpy(expected)) < 1e-12
    assert torch.equal(operator.crop(x), x[..., 4:-4, 4:-4])


@pytest.mark.parametrize(
    ("outer", "inner", "border", "data"),
    [
        ("downsample(factor=4)", "blur-shake(size=9)", (4, 4), (3, 14, 18)),
        ("blur-shake(size=9)", "downsample(factor=4)", (16, 16), (3, 8, 12)),
        ("defocus(radius=2.5)", "blur(sigma=1)", (6, 6), (3, 52, 68)),
        ("jpeg(quality=50)", "blur-uniform(size=5)", (2, 2), (3, 60, 76)),
        ("grayscale", "blur-motion(length=5, angle=0)", (0, 3), (1, 64, 74)),
    ],
)
def test_border_of_a_product(outer: str, inner: str, border: tuple[int, int], data: tuple[int, int, int]) -> None:
    """What is left without it are the pixels at which the data look."""
    first = build_operator(inner, (3, 64, 80))
    operator = build_operator(outer, first.data_shape) @ first
    assert operator.data_shape == data and operator.border == border
    if isinstance(operator, LinearOperator):
        assert_adjoint(operator, torch.float64, 1e-10)
        x, y = images(1, (3, 64, 80)), randn(1, *data, seed=1)
        u = operator.prox(x, y, torch.tensor(0.1))
        slope = operator.adjoint(operator(u) - y) + 0.1 * (u - x)
        assert slope.norm() < 1e-6 * norm(operator.adjoint(operator(x) - y))


@pytest.mark.parametrize("boundary", ["unknown", "zero", "reflect"])
@pytest.mark.parametrize(("name", "fields"), [("defocus", {"radius": 3.0}), ("blur-motion", {"length": 9.0})], ids=str)
def test_proximal_step_needs_few_products(
    name: str, fields: dict[str, Any], boundary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 it ends with a few products, near to the exact answer by the measure of its own uncertainty."""
    shape, noise = (3, 64, 72), 0.04
    operator = build_operator(name, shape, boundary=boundary, **fields)
    truth = torch.nn.functional.avg_pool2d(randn(2, 3, 68, 76, seed=3), 5, 1)
    y = operator(truth) + noise * randn(2, *operator.data_shape, seed=4)
    most = {0.5: 20, 0.1: 8}
    for spread, products in most.items():
        x, rho = truth + spread / 5 * randn(2, *shape, seed=5), torch.tensor((noise / spread) ** 2)
        exact = operator.prox(x, y, rho)
        with monkeypatch.context() as patch:
            crop = mock.Mock(side_effect=operator._crop)
            patch.setattr(operator, "_crop", crop)
            u = operator.prox(x.float(), y.float(), rho.float()).double()
        error = u - exact
        misfit = dot(operator(error), operator(error)) + rho * dot(error, error)
        objective = dot(operator(exact) - y, operator(exact) - y) + rho * dot(exact - x, exact - x)
        assert crop.call_count <= products
        assert (misfit < 1e-4 * objective).all()


def test_a_large_blur_is_built_at_once() -> None:
    """No decomposition of its matrices, which takes a minute, before it is needed."""
    operator = build_operator("blur", (1, 3000, 3000))
    assert operator._decomposition is None and operator.border == (8, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["blur", "downsample", "downsample-bicubic"])
def test_a_module_that_was_cast_still_has_its_singular_values(name: str, dtype: torch.dtype) -> None:
    shape = (1, 24, 20)
    operator = build_operator(name, shape).to(dtype)
    y = operator(images(1, shape))
    assert relative(operator(operator.pinv(y)), y) < 1e-2


@every_linear
def test_rho_may_be_a_number(case: Case) -> None:
    operator, x = case.build(), images(2)
    y = operator(images(2))
    torch.testing.assert_close(operator.prox(x, y, 0.3), operator.prox(x, y, torch.tensor(0.3).double()))


@pytest.mark.parametrize("boundary", ["zero", "reflect"])
def test_the_preconditioner_saves_products(boundary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, with much and little of the spectrum below rho."""
    operator = build_operator("blur-motion", (1, 64, 64), boundary=boundary, length=15.0)
    truth = torch.nn.functional.avg_pool2d(randn(1, 1, 68, 68, seed=3, dtype=torch.float32), 5, 1)
    x = truth + 0.1 * randn(1, 1, 64, 64, seed=4, dtype=torch.float32)
    y = operator(truth) + 0.02 * randn(1, 1, 64, 64, seed=2, dtype=torch.float32)
    counts = {}
    for rho in torch.tensor([1e-4, 1e-3, 1e-2, 1.0]):
        for kind in ("plain", "preconditioned"):
            with monkeypatch.context() as patch:
                forward = mock.Mock(side_effect=operator.forward)
                patch.setattr(operator, "forward", forward)
                LinearOperator.prox(operator, x, y, rho) if kind == "plain" else operator.prox(x, y, rho)
            counts[kind, float(rho)] = forward.call_count
        assert counts["preconditioned", float(rho)] < counts["plain", float(rho)], counts
    few, many = (sum(n for (name, _), n in counts.items() if name == kind) for kind in ("preconditioned", "plain"))
    assert few < (0.8 if boundary == "reflect" else 0.5) * many, counts


LINE = torch.full((3,), 1 / 3).double()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SeparableBlur((1, 9, 9), rows=LINE[:2], columns=LINE, boundary="zero"), r"odd height and width"),
        (lambda: SeparableBlur((1, 9, 9), rows=LINE / 0, columns=LINE, boundary="zero"), r"finite"),
        (
            lambda: SeparableBlur((1, 9, 9), rows=LINE, columns=LINE, boundary="circular"),
            r"one of unknown, zero, reflect",
        ),
        (lambda: make_blur((1, 9, 9), torch.ones(2, 4) / 8, "unknown"), r"odd height and width, got \(2, 4\)"),
        (lambda: make_blur((1, 9, 9), torch.ones(3, 3) / 9, "mirror"), "boundary is one of unknown, circular, zero"),
        (lambda: image_shape_of("blur", (3, 9, 9), boundary="mirror"), "boundary"),
        (lambda: image_shape_of("blur-kernel", (3, 9, 9)), "kernel"),
        (lambda: image_shape_of("blur", (3, 9, 9), sigma="wide"), "sigma"),
        (lambda: build_operator("blur", (3, 9, 9), sigma=600.0), "positive and at most 511, got 600"),
        (lambda: build_operator("blur-motion", (3, 9, 9), length=4095.0), "at most 4094, got 4095"),
    ],
)
def test_what_blurs_refuse(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
