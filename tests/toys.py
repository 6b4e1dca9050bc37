"""Small exact priors and recorded randomness shared by the tests."""

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
