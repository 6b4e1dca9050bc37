"""The high-level call, the result object, noise models and determinism of the random numbers."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

import invsolve
from invsolve import GaussianNoise, ImageRng, NoNoise, PoissonNoise, Problem, Result, Status, build_operator, simulate
from invsolve.defaults import estimate_sigma
from invsolve.linalg import cg, grad
from invsolve.metrics import coverage, psnr, ssim
from invsolve.rng import derive_seed, image_seeds
from invsolve.solvers import DDNM, SOLVERS


def picture(size=(24, 20), channels=3):
    """A smooth coloured test picture, uint8."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / max(size)
    layers = [0.5 + 0.4 * np.sin(6 * x + k) * np.cos(5 * y - k) for k in range(channels)]
    return (255 * np.stack(layers, axis=-1)).round().astype(np.uint8).squeeze()


def test_restore_takes_names_objects_and_every_kind_of_picture(tmp_path):
    path = tmp_path / "y.png"
    Image.fromarray(picture()).save(path)
    tensor = torch.from_numpy(picture()).permute(2, 0, 1).float() / 127.5 - 1
    kinds = [path, str(path), Image.open(path), picture(), tensor, tensor[None], tensor.numpy()]
    options = {"prior": "gaussian", "solver": "ddnm", "steps": 4, "sigma": 0.1, "seed": 1}
    results = [invsolve.restore(y, operator="inpaint-random(fraction=0.5)", **options) for y in kinds]
    for result in results:
        assert result.samples.shape == (1, 1, 3, 24, 20)
        torch.testing.assert_close(result.samples, results[0].samples, rtol=0, atol=1e-5)
    operator = build_operator("inpaint-random", (3, 24, 20), fraction=0.5)
    solver, prior = invsolve.build_solver("ddnm"), invsolve.load_prior("gaussian")
    objects = invsolve.restore(
        tensor, operator=operator, **{**options, "solver": solver, "prior": prior, "sigma": GaussianNoise(0.1)}
    )
    torch.testing.assert_close(objects.samples, results[0].samples, rtol=0, atol=1e-5)


def test_a_time_grid_goes_by_its_name():
    y, solver, prior = torch.zeros(1, 3, 8, 8), invsolve.build_solver("diffpir"), invsolve.load_prior("gaussian")
    problem = Problem(build_operator("identity", (3, 8, 8)), GaussianNoise(0.1), y)
    times = invsolve.make_times("uniform", 5, prior.schedule)
    expected = invsolve.solve(problem, prior, solver, times).samples
    assert torch.equal(invsolve.solve(problem, prior, solver, "uniform", steps=5).samples, expected)
    assert not torch.equal(invsolve.solve(problem, prior, solver, steps=5).samples, expected)
    options = {"operator": "identity", "sigma": 0.1, "prior": prior, "solver": solver, "steps": 5}
    result = invsolve.restore(y, times="uniform", **options)
    assert torch.equal(result.samples, expected.clamp(-1, 1))
    assert result.record["times"] == "uniform"
    assert invsolve.restore(y, **options).record["times"] == solver.times == "restoration"
    with pytest.raises(TypeError, match="times must be a tensor or the name"):
        invsolve.solve(problem, prior, solver, [1.0, 0.0])
    with pytest.raises(TypeError, match="times must be the name of a time grid"):
        invsolve.restore(y, **options | {"times": times})


def test_one_step_denoises_from_the_noise_of_the_data_only():
    options = {"operator": "identity", "sigma": 0.2, "prior": "gaussian"}
    y = torch.zeros(1, 3, 8, 8)
    steps = {
        times: invsolve.restore(y, times=times, **options).record["steps"] for times in (None, "uniform", "from_data")
    }
    assert steps == {None: 1, "uniform": invsolve.build_solver("ddrm").steps, "from_data": 1}


def test_pictures_of_different_noise_have_grids_of_their_own():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(2, 3, 16, 16, generator=g) * torch.tensor([0.05, 0.3])[:, None, None, None]
    options = {"operator": "identity", "sigma": "auto", "prior": "gaussian", "solver": "diffpir", "steps": 4}
    together = invsolve.restore(y, times="from_data", seed=[3, 1], **options)
    alone = [invsolve.restore(row, times="from_data", seed=k, **options) for row, k in zip(y, (3, 1), strict=True)]
    torch.testing.assert_close(together.samples, torch.cat([one.samples for one in alone]))


def test_restore_infers_the_picture_size():
    y = torch.zeros(1, 3, 6, 5)
    options = {"prior": "gaussian", "steps": 2}
    assert invsolve.restore(y, operator="downsample(factor=3)", **options).images.shape == (1, 3, 18, 15)
    assert invsolve.restore(y[:, :1], operator="grayscale", **options).images.shape == (1, 3, 6, 5)
    assert invsolve.restore(y[:, :1], operator="identity", sigma=0.1, **options).images.shape == (1, 1, 6, 5)


def test_restore_removes_noise_better_than_nothing():
    clean = torch.from_numpy(picture((32, 32))).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = clean + 0.3 * ImageRng([0]).randn_like(clean)
    for sigma in (0.3, "auto"):
        result = invsolve.restore(y, operator="identity", prior="gaussian", sigma=sigma, samples=4, steps=20)
        assert float(psnr(result.mean, clean)) > float(psnr(y, clean)) + 3


def test_samples_and_batches():
    y = torch.zeros(2, 3, 8, 8)
    options = {"operator": "identity", "prior": "gaussian", "sigma": 0.5, "steps": 3}
    many = invsolve.restore(y, samples=3, **options)
    assert many.samples.shape == (2, 3, 3, 8, 8)
    few = invsolve.restore(y, samples=2, batch_size=1, **options)
    torch.testing.assert_close(many.samples[:, :2], few.samples, rtol=1e-4, atol=1e-5)
    assert (many.samples[0, 0] - many.samples[1, 0]).abs().max() > 0.01  # two images, two draws


def test_result_statistics_and_round_trip(tmp_path):
    result = invsolve.restore(
        torch.zeros(2, 3, 8, 8), operator="identity", prior="gaussian", sigma=0.5, steps=3, samples=3
    )
    torch.testing.assert_close(result.mean, result.samples.mean(dim=1))
    torch.testing.assert_close(result.std, result.samples.std(dim=1), rtol=1e-4, atol=1e-6)
    result.save(tmp_path / "out")
    again = Result.load(tmp_path / "out")
    assert torch.equal(again.samples, result.samples)
    assert again.status == result.status
    assert again.stats == result.stats
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"0000_sample01.png", "0001_mean.png", "0001_std.png", "result.json"} <= names
    assert np.asarray(Image.open(tmp_path / "out" / "0000_mean.png")).shape == (8, 8, 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="choose another folder"):
        result.save(tmp_path / "other")
    assert (tmp_path / "other" / "mine.txt").read_text() == "keep"
    result.plot(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)).savefig(tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").width > 500


def test_a_failed_sample_is_left_out_of_the_statistics_and_of_the_folder(tmp_path):
    samples = torch.zeros(1, 3, 1, 2, 2)
    samples[0, 1], samples[0, 2] = torch.nan, 0.5
    status = ((Status.ok, Status.nonfinite, Status.ok),)
    result = Result(samples, status, torch.ones(1, 3), {})
    assert not result.ok
    torch.testing.assert_close(result.mean, torch.full((1, 1, 2, 2), 0.25))
    torch.testing.assert_close(result.std, torch.full((1, 1, 2, 2), 0.5**0.5 / 2))
    result.save(tmp_path / "out")
    assert not (tmp_path / "out" / "0000_sample02.png").exists()
    assert (tmp_path / "out" / "0000_sample03.png").exists()


def test_chi2_counts_what_was_measured():
    operator = build_operator("inpaint-random", (3, 40, 40), fraction=0.7)
    x = torch.zeros(1, 3, 40, 40)
    noise = GaussianNoise(0.2)
    problem = Problem(operator, noise, simulate(operator, noise, x, ImageRng([0])))
    assert float(problem.chi2(x)) == pytest.approx(1, abs=0.1)
    assert problem.n_data == pytest.approx(0.3 * 3 * 1600, rel=0.01)
    hidden = operator.data_mask.expand(3, 40, 40) == 0
    assert (problem.y[0][hidden] == 0).all()
    assert Problem(operator, NoNoise(), problem.y).chi2(x).isnan().all()


@pytest.mark.parametrize("noise", [GaussianNoise(0.3), PoissonNoise(20.0)])
def test_noise_models(noise):
    """The likelihood is the density of the samples: its mean slope at the truth vanishes; std is the spread."""
    clean = torch.full((1, 1, 200, 200), 0.4, dtype=torch.float64)
    y = noise.sample(clean, ImageRng([0]))
    assert float(y.mean()) == pytest.approx(0.4, abs=0.01)
    assert float(y.std()) == pytest.approx(float(noise.std(y)), rel=0.03)
    mask = torch.zeros(1, 1, 200, 200)
    mask[..., :50] = 1
    assert float(noise.std(y * mask, mask)) == pytest.approx(float(noise.std(y[..., :50])), rel=1e-6)
    dark = grad(lambda x: noise.nll(y, x).flatten(1).sum(dim=1), torch.full_like(clean, -1.5))
    assert (dark < 0).all()  # from below black the likelihood pulls up
    slope = grad(lambda x: noise.nll(y, x).flatten(1).mean(dim=1), clean)
    assert abs(float(slope.sum())) < 0.05
    worse = noise.nll(y, clean + 0.2).mean(), noise.nll(y, clean - 0.2).mean()
    assert min(worse) > noise.nll(y, clean).mean()
    torch.testing.assert_close(y, noise.sample(clean, ImageRng([0])), rtol=0, atol=0)


def test_estimate_sigma():
    y = torch.from_numpy(picture((64, 64))).permute(2, 0, 1)[None].float() / 127.5 - 1
    noisy = y + 0.2 * ImageRng([0]).randn_like(y)
    assert estimate_sigma(noisy) == pytest.approx(0.2, rel=0.1)


def test_rng_rows_do_not_depend_on_the_batch():
    draws = ImageRng([5, 6, 7]).randn((2, 3), dtype=torch.float64)
    assert torch.equal(draws[1:2], ImageRng([6]).randn((2, 3), dtype=torch.float64))
    assert derive_seed(0, 1, 2) != derive_seed(0, 12)
    assert derive_seed(0, 1) != derive_seed(1, 0)
    assert derive_seed(3, "a") == derive_seed(3, "a")


def test_cg_rows_do_not_depend_on_the_batch():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(3, 6, 6, generator=g).double()
    matrices = a @ a.mT + 0.1 * torch.eye(6)
    b = torch.randn(3, 6, generator=g).double()
    x = cg(lambda v: torch.einsum("bij,bj->bi", matrices, v), b, tolerance=1e-12)
    torch.testing.assert_close(x, torch.linalg.solve(matrices, b), rtol=1e-8, atol=1e-8)
    alone = cg(lambda v: torch.einsum("bij,bj->bi", matrices[1:2], v), b[1:2], tolerance=1e-12)
    torch.testing.assert_close(x[1:2], alone, rtol=1e-12, atol=1e-12)
    assert (cg(lambda v: v, torch.zeros(1, 4)) == 0).all()


def test_coverage_is_the_level_for_normal_samples():
    """Whatever their number; half of it, where the samples spread half as far as the truth does from their mean."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(1, 3, 80, 80, generator=generator)
    for n in (2, 4, 20):
        samples = torch.randn(1, n, 3, 80, 80, generator=generator)
        assert float(coverage(samples, truth)) == pytest.approx(0.9, abs=0.01)
        assert float(coverage(samples, truth, 0.5)) == pytest.approx(0.5, abs=0.02)
    assert float(coverage(0.5 * samples, truth)) == pytest.approx(0.6, abs=0.03)  # 1.77 / 2 standard deviations
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        coverage(truth[:, None], truth)


def test_metrics():
    truth = torch.from_numpy(picture((32, 32))).permute(2, 0, 1)[None].float() / 127.5 - 1
    noisy = truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    expected = 10 * np.log10(4 / float((noisy.clamp(-1, 1) - truth).square().mean()))
    assert float(psnr(noisy, truth)) == pytest.approx(expected, rel=1e-5)
    assert float(ssim(truth, truth)) == pytest.approx(1)
    bytes_like = [((image.clamp(-1, 1) + 1) * 127.5)[0].double().permute(1, 2, 0).numpy() for image in (noisy, truth)]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    expected = structural_similarity(*bytes_like, data_range=255, **options)  # as of pictures in 0 .. 255
    assert float(ssim(noisy, truth)) == pytest.approx(expected, abs=1e-6)
    assert expected < 0.95
    grey = torch.zeros(1, 3, 32, 32)
    assert float(ssim(grey + 0.04, grey)) == pytest.approx(0.9992, abs=1e-4)  # 5 of 255 grey levels are hardly seen


def test_unknown_names_are_sentences():
    y = torch.zeros(1, 3, 8, 8)
    for change, message in (
        ({"operator": "blurr"}, "blur"),
        ({"operator": "blur(sigm=2)"}, "sigma"),
        ({"solver": "ddpm"}, "diffpir"),
        ({"prior": "nature"}, "natural"),
        ({"sigma": -1.0}, "must not be negative"),
        ({"sigma": "lots"}, "auto"),
        ({"steps": 0}, "steps"),
        ({"times": "evenly"}, "restoration"),
    ):
        with pytest.raises(ValueError, match=message):
            invsolve.restore(y, **{"operator": "identity", "prior": "gaussian", "steps": 2, **change})
    problem = Problem(build_operator("identity", (3, 8, 8)), NoNoise(), y)
    with pytest.raises(ValueError, match="either times or steps"):
        invsolve.solve(
            problem, invsolve.load_prior("gaussian"), invsolve.build_solver("ddnm"), torch.tensor([1.0, 0.0]), steps=2
        )
    with pytest.raises(ValueError, match="3 channels"):
        invsolve.solve(
            Problem(build_operator("identity", (1, 8, 8)), NoNoise(), y[:, :1]),
            invsolve.load_prior("natural"),
            invsolve.build_solver("ddnm"),
        )


def test_a_seed_per_picture_gives_what_each_gets_alone():
    x = torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = {"operator": "blur(sigma=1)", "prior": "gaussian", "solver": "ddnm", "steps": 4, "samples": 2}
    for sigma in (0.1, "auto"):
        batch = invsolve.restore(x, sigma=sigma, seed=[7, 3, 7], **options)
        for row, seed in enumerate([7, 3, 7]):
            alone = invsolve.restore(x[row : row + 1], sigma=sigma, seed=seed, **options)
            torch.testing.assert_close(batch.samples[row], alone.samples[0], rtol=1e-4, atol=1e-4)
    poisson = {"operator": "identity", "prior": "gaussian", "solver": "ddrm", "steps": 4, "sigma": PoissonNoise(30.0)}
    light = torch.stack([x[0] / 8, x[1] / 8 + 0.8, x[2] / 8 - 0.8])  # as noisy as it is light
    batch = invsolve.restore(light, seed=[7, 3, 7], **poisson)
    for row, seed in enumerate([7, 3, 7]):
        alone = invsolve.restore(light[row : row + 1], seed=seed, **poisson)
        torch.testing.assert_close(batch.samples[row], alone.samples[0], rtol=1e-4, atol=1e-4)
    whole = invsolve.restore(x, sigma=0.1, seed=5, **options)
    backwards = invsolve.restore(x.flip(0), sigma=0.1, seed=image_seeds(5, 3)[::-1], **options)
    torch.testing.assert_close(whole.samples, backwards.samples.flip(0), rtol=1e-4, atol=1e-4)
    first = invsolve.restore(x[:1], sigma=0.1, seed=5, **options)
    torch.testing.assert_close(whole.samples[:1], first.samples, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("seed", "message"), [([1, 2], "2 seeds for 3 images"), (1.5, "must be an integer"), (None, "must be an integer")]
)
def test_wrong_seeds(seed, message):
    with pytest.raises((ValueError, TypeError), match=message):
        invsolve.restore(torch.zeros(3, 3, 8, 8), operator="identity", sigma=0.1, prior="gaussian", seed=seed)


def test_every_row_has_a_seed():
    with pytest.raises(ValueError, match="1 seeds got a batch of 3"):
        GaussianNoise(1.0).sample(torch.zeros(3, 1, 8, 8), ImageRng([0]))
    with pytest.raises(ValueError, match="1 seeds got a batch of 2"):
        PoissonNoise(10.0).sample(torch.zeros(2, 1, 8, 8), ImageRng([0]))
    with pytest.raises(ValueError, match="Seeds must be from 0"):
        ImageRng([2**70])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": None}, "operator must be"),
        ({"operator": 5}, "operator must be"),
        ({"prior": None}, "prior must be"),
        ({"solver": 5}, "solver must be"),
        ({"solver": DDNM}, "solver must be"),
        ({"device": "meta"}, "'meta' is not supported"),
        ({"sigma": 1e300}, "more than the whole range"),
        ({"sigma": "5/256"}, "sigma 5/256 is not a noise level"),
        ({"steps": 1.5}, "steps must be an integer"),
        ({"steps": True}, "steps must be an integer"),
        ({"samples": True}, "samples must be an integer"),
        ({"sigma": None}, "sigma must be"),
        ({"samples": "2"}, "samples must be an integer"),
        ({"samples": 0}, "samples must be an integer"),
        ({"dtype": "float"}, "Unknown dtype 'float'; choose one of auto, float32"),
        ({"dtype": None}, "dtype must be"),
        ({"dtype": torch.int32}, "dtype must be"),
    ],
)
def test_wrong_arguments_are_sentences(options, message):
    defaults = {"operator": "identity", "sigma": 0.1, "prior": "gaussian", "solver": "ddnm", "steps": 2}
    with pytest.raises((ValueError, TypeError), match=message):
        invsolve.restore(torch.zeros(3, 8, 8), **{**defaults, **options})


@pytest.mark.parametrize("peak", [100.0, 1e5])
def test_poisson_counts_in_half_precision(peak):
    y = PoissonNoise(peak).sample(torch.zeros(1, 1, 16, 16, dtype=torch.float16), ImageRng([0]))
    assert y.dtype == torch.float16
    assert y.isfinite().all()
    assert y.float().mean().abs() < 0.05


SLOW = {"sgfm", "dflow", "daps", "mcgdiff", "tds", "mmdflow"}  # or not for single pictures


@pytest.mark.slow
@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in SLOW])
def test_bfloat16_changes_the_quality_by_less_than_a_twentieth_of_a_decibel(solver):
    truth = torch.from_numpy(picture((64, 64))).permute(2, 0, 1)[None].float() / 127.5 - 1
    operator, noise = build_operator("downsample", (3, 64, 64), factor=2), GaussianNoise(0.02)
    y = simulate(operator, noise, truth, ImageRng([0]))
    options = {"operator": operator, "sigma": noise, "prior": "natural", "solver": solver, "steps": 10}
    full, half = (
        float(psnr(invsolve.restore(y, dtype=dtype, **options).samples[:, 0].clamp(-1, 1), truth))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert full > 25
    assert abs(full - half) < 0.05
