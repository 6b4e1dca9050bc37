"""invsolve: imaging inverse problems with pretrained generative priors.

Images are in [-1, 1]; t = 0 is data and t = 1 is noise; sigma of the measurement noise is in [-1, 1] units.
"""

from __future__ import annotations

from importlib.metadata import version

from .api import restore
from .noise import GaussianNoise, Noise, NoNoise, PoissonNoise
from .operators import OPERATORS, LinearOperator, Operator, build_operator
from .plan import plan
from .priors import PRIORS, Prior, load_prior
from .problem import Problem, simulate
from .result import Result, Status
from .rng import ImageRng
from .run import Run
from .solve import default_times, solve
from .solver import Solver
from .solvers import SOLVERS, build_solver
from .times import TIMES, make_times

__all__ = [
    "OPERATORS",
    "PRIORS",
    "SOLVERS",
    "TIMES",
    "GaussianNoise",
    "ImageRng",
    "LinearOperator",
    "NoNoise",
    "Noise",
    "Operator",
    "PoissonNoise",
    "Prior",
    "Problem",
    "Result",
    "Run",
    "Solver",
    "Status",
    "build_operator",
    "build_solver",
    "default_times",
    "load_prior",
    "make_times",
    "plan",
    "restore",
    "simulate",
    "solve",
]

__version__ = version("invsolve")
