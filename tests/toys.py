"""Small exact priors and recorded randomness shared by the tests."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F

from invsolve.priors.base import Endpoints, Prior
from invsolve.priors.schedule import LinearFlow


class ReplayRng:
    """Gives out recorded draws instead of fresh ones."""

    def __init__(self, draws):
        self.draws = list(draws)

    def randn_like(self, x):
        return self.draws.pop(0).reshape(x.shape)

    def randn(self, shape, *, dtype, device="cpu"):
        return self.draws.pop(0).reshape(-1, *shape).to(dtype)


class IsotropicPrior(Prior):
    """x ~ N(mean, std^2 I) on any schedule."""

    def __init__(self, mean, std, schedule=None):
        super().__init__()
        self.mean, self.std, self.schedule = mean, std, schedule or LinearFlow()

    def predict(self, z, t):
        alpha, sigma = self.schedule(t)
        centred = (z - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        return Endpoints(self.mean + alpha * self.std**2 * centred, sigma * centred)


class ToyLatentPrior(IsotropicPrior):
    """The latent toy of the golden traces: a decoder that mixes channels, doubles the size and saturates."""

    def __init__(self, mean, std, mix):
        super().__init__(mean, std)
        self.mix = mix  # (3, 4)

    def decode(self, z):
        return torch.tanh(F.interpolate(torch.einsum("oc,bchw->bohw", self.mix, z), scale_factor=2, mode="nearest"))

    def encode(self, x):
        return torch.einsum("co,bohw->bchw", torch.linalg.pinv(self.mix), F.avg_pool2d(x, 2))

    def latent_shape(self, image_shape):
        return (4, image_shape[1] // 2, image_shape[2] // 2)


class ProbeRng:
    """Hands out the noise whose effect is to be measured: zeros, but for one row and one number of it."""

    def __init__(self, rows, first):
        self.rows, self.place = rows, first  # of the batch; the row in which the next number is 1

    def randn_like(self, x):
        return self.randn(x.shape[1:], dtype=x.dtype)

    def randn(self, shape, *, dtype, device="cpu"):
        draw = torch.zeros(self.rows, *shape, dtype=dtype)
        size = draw[0].numel()
        inside = range(self.place, min(self.place + size, self.rows))
        for k, row in enumerate(inside):
            draw[row].view(-1)[k] = 1
        self.place += size
        return draw


def affine_moments(solver, times, problem, prior):
    """Mean and covariance of a solver's pictures, exactly, where every step is an affine map of state and noise.

    Such are all steps made of a Gaussian prior and a linear operator.  Each map is read off its values at zero and at
    all unit vectors of state and noise.  Pixel priors and one measurement.
    """
    shape = problem.operator.image_shape
    size = math.prod(shape)

    def respond(fn):
        """The value at zero, and the responses to the unit vectors of state (size, size) and noise (size, n)."""
        counter = ProbeRng(1 + size, 1 + size)
        fn(1 + size, counter)
        rows = counter.place
        out = fn(rows, ProbeRng(rows, 1 + size)).flatten(1)
        change = (out[1:] - out[0]).T
        return out[0], change[:, :size], change[:, size:]

    def at_units(rows):
        state = torch.zeros(rows, size, dtype=problem.y.dtype)
        state[1 : 1 + size] = torch.eye(size, dtype=problem.y.dtype)
        return state.reshape(rows, *shape)

    def many(rows):
        return problem.rows(torch.zeros(rows, dtype=torch.long))

    mean, _, noise = respond(lambda rows, rng: solver.init(times[0], many(rows), prior, rng))
    covariance = noise @ noise.T
    for t, s in pairwise(times):
        offset, state, noise = respond(
            lambda rows, rng, t=t, s=s: solver.step(at_units(rows), t, s, many(rows), prior, rng)
        )
        mean, covariance = state @ mean + offset, state @ covariance @ state.T + noise @ noise.T
    return mean, covariance
