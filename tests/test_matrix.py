"""The dense-matrix operator against NumPy's own linear algebra."""

import copy

import numpy as np
import pytest
import torch
from toys import IsotropicPrior

from invsolve import GaussianNoise, Problem, build_solver, make_times, solve
from invsolve.linalg import dot, expand_to
from invsolve.operators import LinearOperator, Matrix, SpectralOperator

SHAPE = (2, 3, 2)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def of_rank(m, rank, seed=7):
    """A (m, 12) of the given rank."""
    return randn(m, rank, seed=seed) @ randn(rank, 12, seed=seed + 1)


MATRICES = {"wide": randn(5, 12), "square": randn(12, 12), "tall": randn(20, 12), "one row": randn(1, 12)}
MATRICES |= {"wide of rank 3": of_rank(5, 3), "tall of rank 4": of_rank(20, 4)}

every = pytest.mark.parametrize("name", MATRICES)


def relative(a, b):
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


@every
def test_equals_numpy(name):
    a, operator = MATRICES[name], Matrix(SHAPE, matrix=MATRICES[name])
    x, y = randn(3, *SHAPE), randn(3, len(a), seed=1)
    rho = torch.tensor([0.3, 1.0, 20.0], dtype=torch.float64)
    assert isinstance(operator, SpectralOperator)
    assert operator.data_shape == (len(a),)
    a = a.numpy()
    for b in range(3):
        flat, data = x[b].numpy().ravel(), y[b].numpy()
        prox = np.linalg.solve(a.T @ a + float(rho[b]) * np.eye(12), a.T @ data + float(rho[b]) * flat)
        for got, expected in (
            (operator(x)[b], a @ flat),
            (operator.adjoint(y)[b].flatten(), a.T @ data),
            (operator.pinv(y)[b].flatten(), np.linalg.pinv(a, rcond=1e-9) @ data),
            (operator.prox(x, y, rho)[b].flatten(), prox),
        ):
            assert relative(got, torch.from_numpy(np.asarray(expected))) < 1e-9


@every
def test_spectral_equals_dense_algebra(name):
    """f depends on the image and is not zero in the null space."""
    operator, x = Matrix(SHAPE, matrix=MATRICES[name]), randn(2, *SHAPE)
    shift = torch.tensor([1.0, 3.0], dtype=torch.float64)
    result = operator.spectral(x, lambda v: (v + expand_to(shift, x)).log() + (v > 0))
    _, values, vt = np.linalg.svd(MATRICES[name].numpy())
    values = np.pad(values, (0, 12 - len(values)))
    values[values < 1e-9] = 0
    for b in range(2):
        f = np.log(values + float(shift[b])) + (values > 0)
        assert relative(result[b].flatten(), torch.from_numpy(vt.T @ (f * (vt @ x[b].numpy().ravel())))) < 1e-9
    assert relative(operator.spectral(x, torch.ones_like), x) < 1e-14


@every
def test_adjoint_gradient_and_closed_forms(name):
    operator = Matrix(SHAPE, matrix=MATRICES[name])
    x, v = randn(2, *SHAPE).requires_grad_(True), randn(2, *operator.data_shape, seed=1)
    torch.testing.assert_close(dot(operator(x), v), dot(x, operator.adjoint(v)))
    (gradient,) = torch.autograd.grad(operator(x), x, v)
    torch.testing.assert_close(gradient, operator.adjoint(v))
    x, rho = x.detach(), torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert relative(operator.pinv(operator(x)), LinearOperator.pinv(operator, operator(x))) < 1e-5
    assert relative(operator.prox(x, v, rho), LinearOperator.prox(operator, x, v, rho)) < 1e-6
    assert relative(operator(operator.pinv(operator(x))), operator(x)) < 1e-10


def test_the_rank_is_judged_by_the_precision_of_the_matrix():
    """A matrix of rank 3 rounded to float32 is still one of rank 3."""
    rounded = of_rank(5, 3).to(torch.float32)
    assert np.linalg.matrix_rank(rounded.double().numpy()) == 5
    assert len(Matrix(SHAPE, matrix=rounded).values) == 3
    assert len(Matrix(SHAPE, matrix=torch.eye(12)[:5].long()).values) == 5


def test_dtypes_casts_and_copies():
    operator, x = Matrix(SHAPE, matrix=randn(5, 12)), randn(2, *SHAPE)
    y, rho = operator(x), torch.tensor([0.5, 2.0])
    single = operator(x.float())
    assert single.dtype == operator.pinv(single).dtype == operator.prox(x.float(), single, rho).dtype == torch.float32
    assert relative(single.double(), y) < 1e-6
    assert relative(copy.deepcopy(operator).float()(x.float()).double(), y) < 1e-6
    moved = operator.to("meta")
    assert moved(x.to("meta")).shape == (2, 5)
    assert "matrix=Tensor(5, 12)" in repr(operator)


@pytest.mark.parametrize("spec", ["ddnm", "diffpir", "dps(step_size=0.3)"])
def test_data_without_axes_suit_the_solvers(spec):
    """Data (B, m): nothing takes them for pictures."""
    operator = Matrix((1, 1, 12), matrix=randn(5, 12))
    prior = IsotropicPrior(torch.zeros(1, 1, 1, 12).double(), 1.0)
    x = randn(3, 1, 1, 12, seed=1)
    problem = Problem(operator, GaussianNoise(0.01), operator(x))
    solver = build_solver(spec)
    times = make_times(solver.times, 20, prior.schedule)
    together, alone = (solve(problem, prior, solver, times, samples=8, batch_size=n).samples for n in (24, 1))
    torch.testing.assert_close(together, alone)
    assert (operator(together.mean(dim=1)) - problem.y).norm() < 0.25 * problem.y.norm()


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (torch.ones(5, 11), r"expects a matrix \(m, 12\) for images \(2, 3, 2\), got \(5, 11\)"),
        (torch.ones(12), r"got \(12,\)"),
        (torch.full((5, 12), torch.nan), "finite"),
        (torch.zeros(5, 12), "not all zero"),
    ],
)
def test_bad_matrices_give_the_sentence(matrix, sentence):
    with pytest.raises(ValueError, match=sentence):
        Matrix(SHAPE, matrix=matrix)
