"""A problem of ours as deepinv sees it: physics, denoiser and measurement.

deepinv works in [0, 1]: its measurement is (y + A(1)) / 2 for a linear operator A, its noise sigma / 2, its denoiser
one call of our prior.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from setting import NotApplicableError, Setting
from torch import Tensor

from invsolve import LinearOperator, Prior
from invsolve.operators import CircularBlur, Identity, Inpaint, Separable
from invsolve.priors import Metered


def network(prior: Prior) -> Any:
    """The prior as a denoiser D(x, sigma) of deepinv; its `prior.counts` has the calls and gradients."""
    from deepinv.models import Denoiser

    class Network(Denoiser):
        """D(x, sigma) in [0, 1] by one call of the prior."""

        def __init__(self) -> None:
            super().__init__()
            self.prior = Metered(prior)

        def forward(self, x: Tensor, sigma: Tensor | float, **_: Any) -> Tensor:
            ratio = 2 * torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)
            t = self.prior.schedule.time(ratio if len(ratio) > 1 else ratio[0])
            alpha, _ = self.prior.schedule(t)
            z = alpha.reshape(-1, 1, 1, 1) * (2 * x - 1)
            return (self.prior.predict(z, t).clean + 1) / 2

    return Network()


def measured(setting: Setting) -> Tensor:
    """The measurement in [0, 1]."""
    problem, operator = setting.problem, setting.problem.operator
    if isinstance(operator, LinearOperator):
        return (problem.y + operator(problem.y.new_ones(1, *operator.image_shape))) / 2
    return (problem.y + 1) / 2


def noise_of(sigma: float) -> Any:
    """Noise of standard deviation sigma, in [0, 1] units."""
    from deepinv.physics import GaussianNoise, ZeroNoise

    return GaussianNoise(sigma) if sigma > 0 else ZeroNoise()


def plain(setting: Setting, sigma: float, closed_prox: bool = True) -> Any:
    """Physics with the adjoint, pseudo-inverse and proximal step of our operator.

    Arguments:
        setting: with any operator.
        sigma: of the noise, in [0, 1] units.
        closed_prox: our proximal step, as in deepinv's BlurFFT and Downsampling, not its conjugate gradients.
    """
    from deepinv.physics import LinearPhysics, Physics

    operator = setting.problem.operator

    class Linear(LinearPhysics):
        """A linear operator; its closed forms serve deepinv too."""

        def A(self, x: Tensor, **_: Any) -> Tensor:  # noqa: N802 - deepinv's name
            return operator(x)

        def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:  # noqa: N802
            return linear.adjoint(y)

        def A_dagger(self, y: Tensor, **_: Any) -> Tensor:  # noqa: N802
            return linear.pinv(y)

        def prox_l2(self, z: Tensor, y: Tensor, gamma: Tensor | float, **_: Any) -> Tensor:
            """argmin_x gamma |A x - y|^2 / 2 + |x - z|^2 / 2."""
            if not closed_prox:
                return super().prox_l2(z, y, gamma)
            return linear.prox(z, y, 1 / torch.as_tensor(gamma, dtype=z.dtype, device=z.device))

    class Affine(Physics):
        """Any other operator on [-1, 1] pictures, seen from [0, 1]."""

        def A(self, x: Tensor, **_: Any) -> Tensor:  # noqa: N802
            return (operator(2 * x - 1) + 1) / 2

    if isinstance(operator, LinearOperator):
        linear = operator
        return Linear(noise_model=noise_of(sigma))
    return Affine(noise_model=noise_of(sigma))


def decomposed(setting: Setting, sigma: float) -> Any:
    """Physics with a singular value decomposition: deepinv's own class where it has the operator.

    Arguments:
        setting: with an operator whose decomposition is known.
        sigma: of the noise, in [0, 1] units.

    Raises:
        NotApplicableError: it is not known.
    """
    from deepinv.physics import BlurFFT, DecomposablePhysics, Denoising, Inpainting

    operator, device = setting.problem.operator, setting.problem.y.device
    shape, noise = operator.image_shape, noise_of(sigma)
    if isinstance(operator, Identity):
        return Denoising(noise_model=noise)
    if isinstance(operator, Inpaint):
        return Inpainting(
            img_size=shape, mask=operator.observed.expand(shape).clone(), noise_model=noise, device=device
        )
    if isinstance(operator, CircularBlur):
        kernel = operator.kernel.float()[None, None]
        return BlurFFT(img_size=shape, filter=kernel, noise_model=noise, device=device)
    if not isinstance(operator, Separable):
        raise NotApplicableError("needs a linear operator whose singular value decomposition is known")
    (u, a, vt), (p, b, qt) = (torch.linalg.svd(side) for side in (operator.vertical, operator.horizontal))
    u, vt, p, qt = (matrix.float() for matrix in (u, vt, p, qt))
    rest = (0, shape[2] - len(b), 0, shape[1] - len(a))  # the null space
    values = F.pad(torch.outer(a, b).float(), rest).expand(1, *shape).contiguous()
    return DecomposablePhysics(
        U=lambda c: u @ c[..., : len(a), : len(b)] @ p.mT,
        U_adjoint=lambda y: F.pad(u.mT @ y @ p, rest),
        V=lambda c: vt.mT @ c @ qt,
        V_adjoint=lambda x: vt @ x @ qt.mT,
        mask=values,
        noise_model=noise,
        device=device,
    )
