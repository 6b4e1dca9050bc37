"""Numbers published by others, printed beside ours.  Every value is (mean, standard deviation or None)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published"]

Value = tuple[float, float | None]


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published results of one setting.

    Arguments:
        kind: what the table calls their rows.
        source: where they are from.
        note: what must be known to compare them with ours.
        rows: by sampler, then by metric.
    """

    kind: str = "published"
    source: str
    note: str
    rows: dict[str, dict[str, Value]]


def _bimodal(rows: dict[str, tuple[float, float | None, float, float | None]]) -> Published:
    return Published(
        source="arXiv 2602.04189v2, supplement B: mean and standard deviation of 5 noise draws, a learned prior",
        note=(
            "Their exact samples have nearly four times our KSD, and four is sqrt(d), as if it were not divided by: "
            "compare it with four times ours.  With few-strong data their exact RMSE is above the closed form's, 1.09."
        ),
        rows={
            name: {"rmse": (rmse, rmse_std), "ksd": (ksd, ksd_std)}
            for name, (rmse, rmse_std, ksd, ksd_std) in rows.items()
        },
    )


def _benchopt(ddrm: Value, dps: Value, few: Value, many: Value) -> Published:
    rows = {"ddrm": ddrm, "dps": dps, "mcgdiff, 32 particles": few, "mcgdiff, 128 particles": many}
    return Published(
        source="MCG-diff's benchopt run of 2024-03-15, commit 59559eb: 1000 samples against 10000",
        note=(
            "Mean and standard deviation over repetitions.  Which torch drew their problems is not known; they may be "
            "others than ours, on which independent writings of the two boxes give 30, 21 and 0.95 for DDRM and 16, 12 "
            "and 11 for DPS (dy = 1, 2, 4).  Their DPS code differs from its box: it multiplies z_t by sqrt(abar_t) "
            "where the ancestral step has sqrt(abar_t / abar_s), which here gives 26, 35 and 25."
        ),
        rows={name: {"max_sw2": value} for name, value in rows.items()},
    )


def _rerun(floor: Value, mcgdiff: Value, pigdm: Value, dps: Value, ddrm: Value, prior: Value) -> Published:
    values = (floor, mcgdiff, pigdm, dps, ddrm, prior)
    names = ("exact samples", "mcgdiff", "pigdm", "dps", "ddrm", "prior samples")
    return Published(
        kind="re-run",
        source="MCG-diff's protocol run once with its authors' particle filter and independent writings of the others",
        note=(
            "The first 20 problems (10 for d = 800), 100 steps on the variance-preserving path in the units of the "
            "mixture; mcgdiff with 1000 particles, all returned; DPS with zeta = 0.1 and a noise of 0.85."
        ),
        rows={name: {"sw1": value} for name, value in zip(names, values, strict=True)},
    )


PUBLISHED: dict[tuple[str, str], Published] = {  # by suite and setting
    ("bimodal16", "many-weak sigma=0.2"): _bimodal(
        {
            "daps": (1.04, 0.06, 0.64, 0.05),
            "ddnm": (1.23, 0.25, 1.23, 0.21),
            "ddrm": (1.08, 0.10, 0.51, 0.05),
            "diffpir": (1.20, 0.11, 0.50, 0.07),
            "dps": (1.14, 0.01, 0.74, 0.12),
            "fps, N runs": (1.27, 0.23, 0.96, 0.17),
            "fps, one run": (1.21, 0.21, 1.77, 0.29),
            "mcgdiff, N runs": (1.07, 0.03, 0.28, 0.01),
            "mcgdiff, one run": (1.21, 0.21, 1.09, 0.17),
            "pnp-dm": (1.19, 0.18, 1.04, 0.13),
            "reddiff": (1.11, 0.08, 1.57, 0.05),
            "exact samples": (1.13, 0.04, 0.35, 0.00),
        }
    ),
    ("bimodal16", "many-weak sigma=0.5"): _bimodal(
        {
            "daps": (1.57, 0.29, 1.10, 0.21),
            "ddnm": (1.86, 0.42, 2.12, 0.46),
            "ddrm": (1.29, 0.17, 0.60, 0.10),
            "diffpir": (1.69, 0.28, 0.99, 0.22),
            "dps": (1.23, 0.04, 0.25, 0.04),
            "fps, N runs": (1.76, 0.34, 1.20, 0.29),
            "fps, one run": (1.83, 0.32, 1.71, 0.47),
            "mcgdiff, N runs": (1.26, 0.08, 0.25, 0.02),
            "mcgdiff, one run": (1.37, 0.15, 0.85, 0.30),
            "pnp-dm": (1.83, 0.38, 1.61, 0.35),
            "reddiff": (1.65, 0.29, 2.14, 0.29),
            "exact samples": (1.30, 0.06, 0.24, 0.00),
        }
    ),
    ("bimodal16", "few-strong sigma=0.2"): _bimodal(
        {
            "daps": (1.10, None, 0.60, None),
            "ddnm": (0.89, None, 1.46, None),
            "ddrm": (1.05, None, 0.73, None),
            "diffpir": (1.24, None, 0.67, None),
            "dps": (1.17, None, 0.50, None),
            "fps, N runs": (0.95, None, 2.02, None),
            "fps, one run": (1.02, None, 9.65, None),
            "mcgdiff, N runs": (1.10, None, 1.19, None),
            "mcgdiff, one run": (1.17, None, 13.08, None),
            "pnp-dm": (0.96, None, 0.68, None),
            "reddiff": (0.85, None, 1.16, None),
            "exact samples": (1.17, None, 1.31, None),
        }
    ),
    ("bimodal16", "few-strong sigma=0.5"): _bimodal(
        {
            "daps": (1.11, None, 0.48, None),
            "ddnm": (0.82, None, 0.89, None),
            "ddrm": (1.06, None, 0.44, None),
            "diffpir": (1.25, None, 0.44, None),
            "dps": (1.17, None, 0.44, None),
            "fps, N runs": (0.98, None, 0.71, None),
            "fps, one run": (1.01, None, 1.96, None),
            "mcgdiff, N runs": (1.13, None, 0.44, None),
            "mcgdiff, one run": (1.12, None, 1.72, None),
            "pnp-dm": (0.97, None, 0.52, None),
            "reddiff": (0.86, None, 1.18, None),
            "exact samples": (1.20, None, 0.64, None),
        }
    ),
    ("gmm25-benchopt", "dy=1"): _benchopt((29.68, 1.96), (27.22, 2.43), (19.82, 2.39), (5.23, 0.59)),
    ("gmm25-benchopt", "dy=2"): _benchopt((13.60, 1.53), (18.70, 1.23), (10.84, 0.67), (4.28, 0.42)),
    ("gmm25-benchopt", "dy=4"): _benchopt((0.49, 0.07), (12.40, 0.85), (1.00, 0.15), (0.18, 0.03)),
    ("gmm25-8", "dy=1"): _rerun((0.23, 0.07), (1.37, 0.42), (3.35, 1.30), (3.02, 0.96), (3.85, 0.62), (7.18, 1.10)),
    ("gmm25-8", "dy=2"): _rerun((0.10, 0.04), (0.73, 0.36), (3.14, 1.34), (2.29, 1.15), (2.42, 1.14), (9.61, 1.15)),
    ("gmm25-8", "dy=4"): _rerun((0.06, 0.01), (0.19, 0.02), (2.86, 1.08), (0.94, 0.49), (1.41, 0.62), (10.32, 0.98)),
    ("gmm25-80", "dy=1"): _rerun((0.26, 0.06), (2.25, 0.65), (5.79, 1.66), (4.15, 0.94), (6.52, 0.95), (7.18, 1.01)),
    ("gmm25-80", "dy=2"): _rerun((0.12, 0.04), (0.85, 0.43), (5.29, 1.70), (1.72, 0.60), (7.37, 0.80), (9.15, 0.96)),
    ("gmm25-80", "dy=4"): _rerun((0.07, 0.01), (0.41, 0.25), (6.25, 1.63), (1.21, 0.62), (6.86, 0.89), (9.47, 0.74)),
    ("gmm25-800", "dy=1"): _rerun((0.21, 0.07), (3.34, 1.72), (2.15, 1.04), (4.22, 1.87), (8.71, 2.10), (9.07, 1.65)),
    ("gmm25-800", "dy=2"): _rerun((0.11, 0.05), (1.39, 1.30), (2.57, 1.85), (2.73, 1.56), (10.26, 1.87), (10.64, 1.65)),
    ("gmm25-800", "dy=4"): _rerun((0.09, 0.03), (0.65, 0.40), (2.38, 1.95), (1.79, 0.93), (9.20, 1.67), (10.36, 1.24)),
}
