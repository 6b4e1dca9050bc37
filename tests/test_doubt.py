"""What speaks against a result: chi2 beside what its solver leaves by itself, on data that other libraries made."""

import dataclasses
import json
import math
import re
import warnings

import numpy as np
import pytest
import torch
from combinations import check_cases, further
from PIL import Image
from scipy import ndimage
from skimage import data

import invsolve as package
from invsolve import GaussianNoise, NoNoise, Problem, build_operator, build_solver, load_prior
from invsolve.defaults import estimate_sigma
from invsolve.doubts.expected import EIGHT_BITS, TABLE, Band, chi2_of, expected_band, kind_of, misfit_ratio, rounding_of
from invsolve.doubts.judge import DoubtWarning, doubts_of, judge
from invsolve.files.images import to_tensor
from invsolve.operators import OPERATORS, Compose
from invsolve.priors.identity import prior_sha256
from invsolve.solvers import SOLVERS

SHAPE = 3, 24, 32
LEVEL = 2 / 255


def identity_problem(y, sigma):
    return Problem(build_operator("identity", tuple(y.shape[1:])), GaussianNoise(sigma) if sigma else NoNoise(), y)


# --- chi2 -------------------------------------------------------------------------------------------------------------


def test_chi2_of_noiseless_data_is_against_their_rounding():
    x = torch.rand(2, 3, 200, 200, generator=torch.Generator().manual_seed(0)).double() * 1.8 - 0.9
    y = ((x + 1) * 127.5).round() / 127.5 - 1
    torch.testing.assert_close(chi2_of(identity_problem(y, 0), x), torch.ones(2).double(), rtol=0.02, atol=0)
    assert pytest.approx(0.2887, abs=1e-4) == EIGHT_BITS / LEVEL
    noisy = chi2_of(identity_problem(y, 0.1), x)
    torch.testing.assert_close(noisy, torch.full((2,), (EIGHT_BITS / 0.1) ** 2).double(), rtol=0.02, atol=0)


@pytest.mark.parametrize("sigma", [0.02, 0.2, 0.6])
def test_clipping_and_rounding_are_taken_into_account(sigma):
    """Where the truth is the result, the misfit is the expected one, however much of it is clipped."""
    x = 2 * torch.rand(1, 3, 300, 300, generator=torch.Generator().manual_seed(0)) - 1
    noise = sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    y = (((x + noise).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    problem = identity_problem(y, sigma)
    assert float(misfit_ratio(problem, x, rounding_of(y))) == pytest.approx(1, abs=0.015)
    if sigma > 0.1:
        assert float(chi2_of(problem, x)) < 0.9  # by itself


def test_the_grid_that_data_lie_on():
    rng = np.random.default_rng(0)
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        values = rng.integers(0, top, (40, 50, 3)).astype(dtype)
        y = to_tensor(values)
        assert rounding_of(y) == pytest.approx(2 / top / math.sqrt(12))
    deep = to_tensor(rng.integers(0, 255, (40, 50, 3)).astype(np.uint16) * 257)  # 8 bits in a deep file
    assert rounding_of(deep) == EIGHT_BITS
    assert rounding_of(torch.from_numpy(rng.random((1, 3, 40, 50))).float()) == 0


# --- the stored table -------------------------------------------------------------------------------------------------


def test_every_operator_has_its_kind():
    fields = {"inpaint-box": {"top": 2, "left": 2, "height": 5, "width": 5}, "jpeg": {"quality": 20}}
    expected = dict.fromkeys(("inpaint-box", "inpaint-random", "inpaint-brush"), "inpainting")
    expected |= dict.fromkeys(("blur", "blur-uniform", "defocus", "blur-motion", "blur-shake"), "deblurring")
    expected |= dict.fromkeys(("downsample", "downsample-bicubic"), "super-resolution")
    expected |= {"identity": "denoising", "jpeg": "JPEG", "grayscale": ""} | further("KINDS")
    check_cases(set(OPERATORS) - {"inpaint", "blur-kernel"}, expected, "expected", "test_doubt.py")
    for name, kind in expected.items():
        assert kind_of(build_operator(name, (3, 64, 64), **fields.get(name, {}))) == kind, name
    both = build_operator("downsample", (3, 64, 64)) @ build_operator("blur", (3, 64, 64), boundary="circular")
    assert isinstance(both, Compose) and kind_of(both) == "super-resolution"


def test_the_table_holds_bands_of_known_solvers():
    table = json.loads(TABLE.read_text())
    assert table["about"]["prior"] == "natural"
    assert table["about"]["weights"] == prior_sha256("natural")  # else measure again: scripts/expected_chi2.py
    assert {"ddrm", "ddnm", "diffpir"} <= set(table["solvers"]) <= set(SOLVERS)
    for name, kinds in table["solvers"].items():
        for kind, steps in kinds.items():
            assert kind in ("denoising", "inpainting", "deblurring", "super-resolution", "JPEG")
            for count, bands in steps.items():
                assert int(count) in (1, SOLVERS[name].steps)
                assert all(0 <= low <= high for low, high in bands.values()), (name, kind)
    assert set(table["solvers"]["ddrm"]["denoising"]) == {"1", str(SOLVERS["ddrm"].steps)}  # 1: `default_steps`


@pytest.fixture
def table(monkeypatch):
    """Two solvers with bands of round numbers."""
    bands = {"0.0": [0.5, 4.0], "0.02": [0.1, 0.2], "0.08": [0.4, 0.8]}
    rows = {"deblurring": {"50": bands}, "inpainting": {"50": {"0.02": [3.0, 20.0], "0.0": [150.0, 300.0]}}}
    jpeg = {"JPEG": {"50": {"0.0": [90.0, 800.0]}}}
    stored = {"about": {"prior": "natural"}, "solvers": {"diffpir": rows, "ddnm": jpeg}}
    monkeypatch.setattr("invsolve.doubts.expected._table", lambda: stored)
    return load_prior("gaussian")


def band(prior, sigma, name="blur", solver="diffpir", steps=50, times=None, label="natural", size=(3, 64, 64)):
    """The band of unclipped data without rounding, from which the deviation of chi2 is taken out."""
    prior.name = label
    operator = build_operator(name, size, **({"boundary": "circular"} if name == "blur" else {}))
    y = torch.zeros(1, *operator.data_shape)
    problem = Problem(operator, GaussianNoise(sigma) if sigma else NoNoise(), y)
    found = expected_band(problem, torch.zeros(1, *size), build_solver(solver), steps, times, prior, 0.0)
    if found is None:
        return None
    deviation = 3 * math.sqrt(2 / problem.n_data)
    high = found.high if found.high in (10, 100, 3000) else found.high / (1 + deviation)
    return round(found.low / (1 - deviation), 4), round(high, 4), found.own


def test_the_band_is_the_measured_one_with_its_margin(table):
    assert band(table, 0.02) == (0.08, 0.23, True)
    assert band(table, 0.08) == (0.32, 0.92, True)
    assert band(table, 0.04) == (0.16, 0.46, True)  # half way in logarithms
    assert band(table, 0.5) == (0.32, 0.92, True)  # as the highest level
    assert band(table, 0.015) == (0.08, 0.23, True)
    assert band(table, 0.005) == (0.08, 4.6, True)  # as at 0 or as at 0.02
    assert band(table, 0.0) == (0.0, 4.6, True)  # data that are held too closely are no doubt without noise
    assert band(table, 0.04, steps=25) == band(table, 0.04, steps=100) == (0.08, 0.92, True)
    assert band(table, 0.04, steps=40) == (0.128, 0.575, True)


def test_what_is_not_measured_has_a_general_band(table):
    """With what the solver leaves by its defaults, if that is known."""
    assert band(table, 0.04, solver="ddrm") == band(table, 0.04, name="grayscale") == (0.25, 4.0, False)
    general = 0.16, 4.0, False
    assert band(table, 0.04, label="") == general  # another prior
    assert band(table, 0.04, solver="diffpir(weight=3.0)") == general
    assert band(table, 0.04, steps=24) == band(table, 0.04, steps=101) == (0.08, 4.0, False)
    assert band(table, 0.04, times="uniform") == general
    assert band(table, 0.04, times="restoration") == (0.16, 0.46, True)  # its own
    assert band(table, 0.0, solver="ddrm") == (0.0, 100, False)
    assert band(table, 0.0, name="jpeg(quality=10)") is None  # diffpir has no entry, and cannot
    assert band(table, 0.1, name="jpeg(quality=10)") == (0.0, 10, False)
    latent = load_prior("natural-latent")
    assert band(latent, 0.1, label="natural-latent") == (0.25, 10, False)
    assert band(latent, 0.0, label="natural-latent") == (0.0, 3000, False)


def test_no_solver_excuses_a_result_far_from_its_data(table):
    assert band(table, 0.02, name="inpaint-random") == (2.4, 10, True)
    assert band(table, 0.0, name="inpaint-random") == (0.0, 100, True)
    assert band(table, 0.0, name="jpeg(quality=10)", solver="ddnm") == (0.0, 920.0, True)  # JPEG loses more


def test_few_data_widen_the_band(table):
    few = {"size": (3, 16, 16), "name": "downsample"}
    deviation = 3 * math.sqrt(2 / (3 * 4 * 4))
    problem = Problem(build_operator("downsample", (3, 16, 16)), GaussianNoise(0.1), torch.zeros(1, 3, 4, 4))
    found = expected_band(problem, torch.zeros(1, 3, 16, 16), build_solver("ddrm"), 20, None, table, 0.0)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.25 * (1 - deviation), 4 * (1 + deviation)))
    assert band(table, 0.1, **few) == (0.25, 4.0, False)


# --- sentences --------------------------------------------------------------------------------------------------------


def sentences(name, chi2, found, outside=0.0):
    operator = build_operator(name, (3, 64, 64))
    return doubts_of(torch.tensor(chi2), found, outside, operator, "diffpir")


def test_a_doubt_names_what_was_got_what_is_expected_and_what_to_look_at():
    own, general = Band(0.8, 1.2, True, 1.2), Band(0.5, 2.0, False, 2.0)
    assert sentences("blur", [1.0], own) == sentences("blur", [9.0], None) == []
    assert sentences("blur", [3.0], own) == [
        "chi2 is 3, and diffpir leaves 0.8 to 1.2 on data of its own: the result does not explain the data; look at "
        "the border (boundary=...), the kernel and the noise."
    ]
    assert sentences("blur", [0.4], general) == [
        "chi2 is 0.4, and 0.5 to 2 is usual: less noise is in the data than was given; look at the border "
        "(boundary=...), the kernel and the noise."
    ]
    assert "look at the noise (its level" in sentences("identity", [0.2], own)[0]
    assert "look at the mask and the noise" in sentences("inpaint-random", [4.0], own)[0]
    assert "how the picture was made smaller" in sentences("downsample", [4.0], own)[0]
    assert sentences("blur", [150.0], Band(0.0, 100.0, True, 400.0)) == [
        "chi2 is 150: diffpir explains such data no better by itself; choose another solver, or give the noise of the "
        "data if they have any."
    ]
    assert "does not explain" in sentences("blur", [500.0], Band(0.0, 100.0, True, 400.0))[0]
    assert "60 % of the values lay far outside" in sentences("blur", [1.0], own, 0.6)[0]


def test_samples_are_judged_by_their_median():
    """One at a time: the mean of several explains the data better than each, and says nothing of the solver."""
    own = Band(0.8, 1.2, True, 1.2)
    assert sentences("blur", [1.0, 1.1, 5.0], own) == []
    assert sentences("blur", [1.0, 4.0, 5.0, math.nan], own) != []


# --- from end to end --------------------------------------------------------------------------------------------------


def photograph(size=64):
    return data.astronaut()[90 : 90 + size, 180 : 180 + size].astype(float)


def restored(y, operator, sigma, **more):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = y.round().clip(0, 255).astype(np.uint8)
        result = package.restore(values, operator=operator, sigma=sigma * LEVEL, **more)
    told = [str(w.message) for w in caught if w.category is DoubtWarning]
    assert told == ([" ".join(result.doubts[0])] if result.doubts[0] else [])
    return result


def test_noise_of_the_given_level_is_no_doubt_and_another_is():
    y = photograph() + 30 * np.random.default_rng(0).standard_normal((64, 64, 3))
    right = restored(y, "identity", 30)
    low, high = right.record["expected_chi2"][0]
    assert low < float(right.chi2) < high
    assert right.doubts == ((),)
    low, high = (restored(y, "identity", sigma) for sigma in (15, 60))
    assert "the result does not explain the data; look at the noise" in low.doubts[0][0]
    assert "less noise is in the data than was given" in high.doubts[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0, 3])
def test_a_wrong_border_and_a_wrong_kernel_are_doubted(noise):
    rng = np.random.default_rng(0)
    large = data.astronaut()[70:174, 160:264].astype(float)
    blurred = ndimage.gaussian_filter(large, (2, 2, 0), truncate=5) + noise * rng.standard_normal(large.shape)
    real = blurred[20:-20, 20:-20]
    around = ndimage.gaussian_filter(photograph(), (2, 2, 0), mode="wrap", truncate=5)
    around = around + noise * rng.standard_normal(around.shape)
    circular = "blur(sigma={}, boundary='circular')"
    assert restored(around, circular.format(2.0), noise).doubts == ((),)
    for y, operator in ((real, circular.format(2.0)), (around, circular.format(2.6))):
        (doubts,) = restored(y, operator, noise).doubts
        assert "look at the border (boundary=...), the kernel and the noise" in doubts[0]


def test_a_jpeg_is_restored_by_its_own_tables_from_python(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(photograph(32).astype(np.uint8)).save(path, quality=20)
    options = {"prior": "gaussian", "steps": 2}
    known = package.restore(path, operator="jpeg", **options)
    assert known.record["operator"]["tables_from"] == "a.jpg"
    stated = package.restore(path, operator="jpeg(quality=20)", **options)
    assert torch.equal(known.samples, stated.samples)
    for y in (Image.open(path), np.asarray(Image.open(path)), known.images):
        with pytest.raises(ValueError, match="jpeg got no quality"):
            package.restore(y, operator="jpeg", **options)


@pytest.mark.filterwarnings("ignore::invsolve.doubts.judge.DoubtWarning")
def test_what_a_mask_hides_is_in_the_record(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[4:12, 4:20] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    options = {"prior": "gaussian", "steps": 2, "sigma": 0.1}
    y = photograph(32).astype(np.uint8)
    result = package.restore(y, operator=f"inpaint(mask={str(tmp_path / 'm.png')!r})", **options)
    assert result.record["hidden"] == pytest.approx(8 * 16 / 32**2)
    mask[:] = 255
    mask[:1] = 0
    Image.fromarray(mask).save(tmp_path / "m.png")
    with pytest.warns(DoubtWarning, match=r"hides 96\.9 % of the picture; white = hole"):
        package.restore(y, operator=f"inpaint(mask={str(tmp_path / 'm.png')!r})", **options)
    Image.fromarray(y).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png is no mask"):
        package.restore(y, operator=f"inpaint(mask={str(tmp_path / 'm.png')!r})", **options)
    blur = package.restore(y, operator="blur", **options)
    assert "hidden" not in blur.record


def test_doubts_are_kept_with_a_result(tmp_path):
    y = torch.from_numpy(photograph(32) / 127.5 - 1).permute(2, 0, 1).repeat(2, 1, 1, 1)
    with pytest.warns(DoubtWarning, match=r"chi2 is .* is usual: the result does not explain the data; look at the b"):
        result = package.restore(y, operator="blur", prior="gaussian", sigma=0.02, steps=2)
    assert len(result.doubts) == 2
    assert all(result.doubts)
    result.save(tmp_path / "result")
    assert package.Result.load(tmp_path / "result").doubts == result.doubts


def test_a_sample_that_is_not_finite_makes_no_doubt_of_the_others():
    """The band comes from a finite one, and nothing that JSON does not know enters the record."""
    y = (torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2.6 - 1.3).clamp(-1, 1)
    problem, solver, prior = identity_problem(y, 0.1), build_solver("diffpir"), load_prior("natural")
    good = package.solve(problem, prior, solver, samples=2)
    bad = good.samples.clone()
    bad[0, 0] = torch.nan
    chi2 = torch.stack([chi2_of(problem, bad[:, k]) for k in range(2)], dim=1)
    spoilt = dataclasses.replace(good, samples=bad, chi2=chi2)
    told = [judge(r, [problem], solver, prior, None, [0.0], torch.zeros(1)) for r in (good, spoilt)]
    texts = [[re.sub(r"0\.\d+", "#", text) for text in result.doubts[0]] for result in told]  # bands of two pictures
    assert texts[0] == texts[1] != []
    assert "NaN" not in json.dumps(told[1].record["expected_chi2"])
    nothing = judge(
        dataclasses.replace(spoilt, samples=bad * torch.nan), [problem], solver, prior, None, [0.0], torch.zeros(1)
    )
    assert nothing.record["expected_chi2"] == [None]


def test_a_picture_that_is_flat_for_the_most_part_has_no_estimated_noise():
    """The estimate of a drawing is 1e-31 of a level: chi2 against it would be infinite."""
    page = np.full((64, 64, 3), 255, dtype=np.uint8)
    page[20:24, 8:56] = 0
    y = torch.from_numpy(page).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert estimate_sigma(y) == 0.0
    with pytest.warns(DoubtWarning, match="Nothing was undone"):
        result = package.restore(y, operator="identity", sigma="auto", prior="natural", steps=1)
    json.dumps(result.record, allow_nan=False)
    assert result.record["sigma"] == 0.0
