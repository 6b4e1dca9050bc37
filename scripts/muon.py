"""Muon: momentum with orthogonalised updates, for the convolutions of the bundled priors."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

__all__ = ["Muon", "orthogonalise"]


class Muon(torch.optim.Optimizer):
    """Momentum whose update of every weight matrix is orthogonalised by Newton-Schulz steps (Jordan et al., 2024).

    torch.optim.Muon takes matrices only and works in bfloat16, which is slow on a CPU; this one takes convolutions,
    and all of one shape at a time.
    """

    def __init__(
        self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.2
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                same[parameter.shape].append(parameter)
            for shape, parameters in same.items():
                updates = []
                for parameter in parameters:
                    average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                    average.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(average, group["momentum"]).flatten(1))
                stack = torch.stack(updates)
                scale = max(1, stack.shape[1] / stack.shape[2]) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(stack), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])  # a norm-free network must not grow
                    parameter.add_(update.reshape(shape), alpha=-group["lr"] * scale)


def orthogonalise(g: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: five Newton-Schulz steps with Jordan's coefficients.

    Every step multiplies x by a polynomial in x x^T, so the steps run on the small Gram matrices and x is multiplied
    once, by their product: for a 3 x 3 convolution a third of the work.
    """
    wide = g.shape[1] <= g.shape[2]
    x = g if wide else g.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    product = identity = torch.eye(gram.shape[1], device=g.device).expand_as(gram)
    for _ in range(5):
        factor = 3.4445 * identity + torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        gram, product = factor @ gram @ factor, factor @ product
    x = product @ x
    return x if wide else x.mT
