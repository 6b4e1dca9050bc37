"""The latent prior: a tiny autoencoder and network from diffusers' own classes, saved to a folder and loaded again."""

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from PIL import Image

from invsolve import (
    GaussianNoise,
    ImageRng,
    Problem,
    build_operator,
    build_solver,
    load_prior,
    make_times,
    restore,
    simulate,
    solve,
)
from invsolve.files.images import to_tensor
from invsolve.metrics import psnr
from invsolve.priors import LatentPrior, as_grey
from invsolve.priors.network import ResidualUNet

SHAPE = (3, 21, 30)  # not a multiple of the factor 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("latent")
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        latent_channels=5,
        norm_num_groups=2,
        mid_block_add_attention=False,
        scaling_factor=0.7,
        shift_factor=0.2,
    )
    autoencoder.save_pretrained(path / "vae")
    ResidualUNet(widths=(8, 8), blocks=(1, 1), channels=5, patch=1, data_std=1.0).save_pretrained(path / "unet")
    FlowMatchEulerDiscreteScheduler().save_pretrained(path / "scheduler")
    return path


def test_scale_shift_and_sizes(folder):
    prior, x = load_prior(str(folder)), torch.rand(2, *SHAPE) * 2 - 1
    assert isinstance(prior, LatentPrior)
    assert prior.latent_shape(SHAPE) == (5, 6, 8)
    z = prior.encode(x)
    assert z.shape == (2, 5, 6, 8)
    padded = torch.nn.functional.pad(x, (0, 2, 0, 3), mode="reflect")
    torch.testing.assert_close(z, (prior.autoencoder.encode(padded).latent_dist.mode() - 0.2) * 0.7)
    assert prior.decode(z).shape == (2, 3, 24, 32)
    decoded = prior.autoencoder.decode(z / 0.7 + 0.2).sample
    torch.testing.assert_close(prior.sized(SHAPE).decode(z), decoded[..., :21, :30])
    assert prior.sized(SHAPE).decode(z.double()).dtype == torch.float64


def test_the_operator_sees_the_users_size(folder):
    operator, noise = build_operator("downsample", SHAPE, factor=3), GaussianNoise(0.1)
    y = simulate(operator, noise, torch.rand(1, *SHAPE), ImageRng([0]))
    prior, solver = load_prior(str(folder)), build_solver("flowdps")
    result = solve(Problem(operator, noise, y), prior, solver, make_times("uniform", 3, prior.schedule), samples=2)
    assert result.ok
    assert result.samples.shape == (1, 2, *SHAPE)


def test_parts_that_do_not_fit_are_one_sentence(folder, tmp_path):
    for part in ("vae", "scheduler"):
        (tmp_path / part).symlink_to(folder / part)
    ResidualUNet(widths=(8, 8), blocks=(1, 1), channels=4, patch=1).save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match=r"network of 4 channels and an autoencoder with 5"):
        load_prior(str(tmp_path))


def stored_bytes(prior, z):
    """The gradient of a decoded clean end, and what autograd kept for it."""
    kept, leaf = [], z.clone().requires_grad_(True)

    def keep(x):
        kept.append(x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = prior.decode(prior.predict(leaf, torch.tensor(0.3)).clean).square().sum()
    return torch.autograd.grad(loss, leaf)[0], sum(kept)


def test_checkpointed_gradients_are_the_same_and_keep_less(folder):
    z = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(1))
    prior = load_prior(str(folder))
    torch.nn.init.normal_(prior.prior.backbone.network.conv_out.weight, generator=torch.Generator().manual_seed(2))
    plain, much = stored_bytes(prior, z)
    prior.checkpoint_gradients()
    checkpointed, little = stored_bytes(prior, z)
    torch.testing.assert_close(checkpointed, plain)
    assert little < 0.5 * much


def test_checkpointing_can_be_asked_for(folder, monkeypatch):
    y, asked = torch.zeros(3, 8, 8), []
    monkeypatch.setattr(LatentPrior, "checkpoint_gradients", lambda self: asked.append(self))
    for checkpointing in (False, True):
        options = {"prior": load_prior(str(folder)), "solver": "dps", "steps": 2, "checkpointing": checkpointing}
        assert restore(y, operator="downsample(factor=2)", sigma=0.1, **options).ok
    assert len(asked) == 1


def test_natural_latent_knows_photographs():
    """The bar of its card: the autoencoder's own error, and a network call that beats leaving the noise in."""
    from skimage import data

    prior = load_prior("natural-latent")
    truth = torch.cat(
        [
            to_tensor(Image.fromarray(picture).resize((256, 256), Image.Resampling.LANCZOS))
            for picture in (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
        ]
    )
    with torch.no_grad():
        z0 = prior.encode(truth)
        assert float(psnr(prior.decode(z0).clamp(-1, 1), truth).mean()) >= 29
        assert abs(float(z0.mean())) < 0.2 and float(z0.std()) == pytest.approx(1, abs=0.2)
        t, noise = torch.tensor(0.5), ImageRng(range(4)).randn_like(z0)
        clean = prior.predict(prior.at(t, z0, noise), t).clean
    linear = (z0 + noise) / 2  # the best that is known without a network: half of a noise as large as the latent
    assert (clean - z0).norm() < 0.8 * (linear - z0).norm()


def test_natural_latent_takes_any_size():
    prior = load_prior("natural-latent")
    x = torch.zeros(2, 3, 45, 38)
    sized = prior.sized((3, 45, 38))
    z = sized.encode(x)
    assert tuple(z.shape[1:]) == prior.latent_shape((3, 45, 38)) == (8, 12, 10)
    assert sized.decode(z).shape == x.shape
    assert (sized.decode(z) - x).abs().mean() < 0.1


@pytest.mark.parametrize("solver", ["diffpir", "flowdps", "psld", "reddiff"])
def test_grey_pictures_with_a_latent_prior(folder, solver):
    y = torch.rand(1, 1, 9, 11) * 2 - 1
    result = restore(y, operator="downsample(factor=2)", prior=load_prior(folder), solver=solver, sigma=0.1, steps=3)
    assert result.ok and result.samples.shape == (1, 1, 1, 18, 22)


def test_grey_latents_are_those_of_the_grey_picture_in_colour(folder):
    prior = load_prior(folder)
    grey = as_grey(prior)
    x = torch.rand(2, 1, 12, 10) * 2 - 1
    torch.testing.assert_close(grey.encode(x), prior.encode(x.expand(-1, 3, -1, -1)))
    z = torch.randn(2, *grey.latent_shape((1, 12, 10)))
    sized = grey.sized((1, 11, 10))
    torch.testing.assert_close(sized.decode(z), prior.sized((3, 11, 10)).decode(z).mean(dim=1, keepdim=True))
