"""Half precision: solvers ask for float32 where they need it, and a stage that failed is tried again in float32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

__all__ = ["finite_or_wider", "is_precise", "precise"]

LOG = logging.getLogger("invsolve")
REPORTED: WeakSet[nn.Module] = WeakSet()
REMEDY = {
    "network": "lower the solver's step size or weight",
    "encoder": "check that the picture is in [-1, 1]",
    "decoder": "lower the solver's step size or weight, which drives the latents away from pictures",
}

PRECISE: ContextVar[bool] = ContextVar("precise", default=False)


@contextmanager
def precise(wanted: bool = True) -> Iterator[None]:
    """Inside, networks that were loaded in half precision compute in float32, those that keep such weights.

    For solvers that magnify rounding.  A gradient is as precise as the prediction that it goes through, wherever it is
    taken.  The networks of the bundled priors keep float32 weights; networks of diffusers, which can be gigabytes, do
    not.

    Arguments:
        wanted: False changes nothing.
    """
    token = PRECISE.set(PRECISE.get() or wanted)
    try:
        yield
    finally:
        PRECISE.reset(token)


def is_precise() -> bool:
    """Whether this is inside `precise`."""
    return PRECISE.get()


def finite_or_wider(stage: str, module: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
    """call(x); where that is not finite though x is, the stage is named, and tried again in float32.

    From then on the module stays in float32.  What is not finite in float32 either is returned as it is: `solve`
    reports those rows and goes on with the others.

    Arguments:
        stage: a name of `REMEDY`.
        module: what computes, in its own dtype.
        x: the input of the stage.
        call: the stage.
    """
    out = call(x)
    finite = x.isfinite().flatten(1).all(dim=1)
    if bool(out[finite].isfinite().all()):
        return out
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    if own in (torch.float16, torch.bfloat16):
        LOG.warning("The %s gave values that are not finite in %s; it goes on in float32.", stage, _name(own))
        module.float()
        out = call(x)
        if bool(out[finite].isfinite().all()):
            return out
    if module not in REPORTED:  # once, not in every step
        REPORTED.add(module)
        LOG.warning("The %s gave values that are not finite; %s.", stage, REMEDY[stage])
    return out


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
