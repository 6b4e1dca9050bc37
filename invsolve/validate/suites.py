"""The suites: families of problems from the literature, drawn as their authors drew them, and three of our own.

gaussian-100: the Gaussian setting of MGPS (Moufad et al., arXiv 2410.09945): random correlated prior, dense A.
gmm25-d: twenty-five Gaussians on a grid, A with random singular values (MCG-diff, Cardoso et al., arXiv 2308.07983).
gmm25-benchopt: the three problems with seed 27 of MCG-diff's public benchmark, on its path and with its settings.
bimodal16: sixteen dimensions with one bimodal pair (arXiv 2602.04189, supplement B).
latent-linear: a mixture in a latent space of 16 numbers, decoded linearly to 8x8 pictures, two numbers measured.
digits: a mixture fitted to scikit-learn's 8x8 digits, bottom half observed.
"""

from __future__ import annotations

import functools
import itertools

from .cases import (
    benchopt,
    benchopt_grid,
    bimodal,
    digits,
    gaussian,
    gmm25,
    latent_linear,
)
from .problems import Row, Suite, wide_grid

__all__ = ["SUITES", "find_suite"]

GENERAL = ("mean_error", "cov_error", "sw1", "sw2", "mode_tv", "coverage", "chi2")

SGFM_ROW = Row(spec="sgfm(ode_steps=16, global_moves=8)", steps=100)  # 44,234 calls: less tips the weights of the modes


def _settings(step_size: float, **rows: Row) -> dict[str, Row]:
    """DPS's default step is for the norm of thousands of residuals; this one was the best of six at 100 calls."""
    return {"dps": Row(spec=f"dps(step_size={step_size})"), "sgfm": SGFM_ROW} | rows


def _gmm25_suite(d: int, problems: int, step_size: float) -> Suite:
    return Suite(
        name=f"gmm25-{d}",
        about=f"25 Gaussians in {d} dimensions, 1, 2 or 4 measured numbers.",
        settings=("dy=1", "dy=2", "dy=4"),
        make=functools.partial(gmm25, d),
        grid=wide_grid,
        problems=problems,
        columns=GENERAL,
        settings_of=_settings(step_size, mmdflow=Row(spec="mmdflow(flow_steps=250)")),  # the modes are far apart
    )


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="gaussian-100",
            about="Correlated Gaussian in 100 dimensions, 50 measured numbers.",
            settings=("dy=50",),
            make=gaussian,
            grid=functools.partial(wide_grid, end=0.002),  # the data are precise to 0.006
            samples=2000,
            reference=2000,
            columns=("mean_error", "cov_error", "bures", "kl", "sw1", "sw2", "coverage", "chi2"),
            settings_of=_settings(
                1.5,
                sgfm=Row(spec="sgfm(ode_steps=12)", steps=60),  # one mode
                tds=Row(spec="tds(krylov_steps=4, resample_below=0.5)", steps=1000),
            ),
        ),
        _gmm25_suite(8, problems=50, step_size=0.3),
        _gmm25_suite(80, problems=50, step_size=1.0),
        _gmm25_suite(800, problems=10, step_size=3.0),
        Suite(
            name="gmm25-benchopt",
            about="The three problems of MCG-diff's public benchmark (seed 27), on its path.",
            settings=("dy=1", "dy=2", "dy=4"),
            make=benchopt,
            grid=benchopt_grid,
            problems=1,
            reference=10000,
            columns=("max_sw2", *GENERAL),
            calls=99,
            rows=(
                Row(spec="ddrm(eta_a=0.85, eta_b=1.0, eta_c=1.0)", calls=99),
                Row(spec="dps(step_size=2.0, temperature=0.6)", calls=99),
                # A grid as fine at low noise as the benchmark's for this method.
                Row(spec="mcgdiff(eta=0.6)", calls=99, times="vp", particles=32, one_each=True),
                Row(spec="mcgdiff(eta=0.6)", calls=99, times="vp", particles=128, one_each=True),
            ),
        ),
        Suite(
            name="bimodal16",
            about="16 dimensions, two modes, observed weakly (14 numbers) or strongly (4 numbers).",
            settings=tuple(
                f"{kind} sigma={level}"
                for kind, level in itertools.product(("many-weak", "few-strong"), ("0.2", "0.5"))
            ),
            make=bimodal,
            grid=wide_grid,
            problems=5,
            samples=500,
            columns=("rmse", "ksd", *GENERAL),
            settings_of=_settings(0.2),
        ),
        Suite(
            name="latent-linear",
            about="8 Gaussians in 16 latent dimensions with a linear decoder to 8x8, 2 measured numbers.",
            settings=("dy=2",),
            make=latent_linear,
            grid=functools.partial(wide_grid, scale=0.15),
            columns=GENERAL,
            settings_of=_settings(0.7),
        ),
        Suite(
            name="digits",
            about="8x8 digits under a fitted mixture of 30 Gaussians, lower half observed.",
            settings=("bottom-half",),
            make=digits,
            grid=functools.partial(wide_grid, scale=0.2),
            columns=GENERAL,
            settings_of=_settings(0.7),
        ),
    )
}


def find_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in SUITES:
        raise ValueError(f"Unknown suite {name!r}; choose one of {', '.join(SUITES)}.")
    return SUITES[name]
