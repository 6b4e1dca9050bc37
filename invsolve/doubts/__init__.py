"""What speaks against a result: the chi2 that a solver leaves, masks, values that no picture has."""

from __future__ import annotations

from .judge import DoubtWarning, doubts_of, judge

__all__ = ["DoubtWarning", "doubts_of", "judge"]
