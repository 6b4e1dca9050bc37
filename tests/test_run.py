"""A run is decided once: its record, its key, noise levels of several pictures, and what it refuses."""

import json
import sys
import warnings

import pytest
import torch

import invsolve
from invsolve import GaussianNoise, NoNoise, build_operator, load_prior, plan, restore
from invsolve.doubts import DoubtWarning
from invsolve.priors import GaussianPrior, PowerLaw

OPTIONS = {"operator": "blur(sigma=1)", "prior": "gaussian", "steps": 3}


def pictures(n=1, seed=0):
    return torch.rand(n, 3, 24, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def quiet(run):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtWarning)
        return run()


def test_restore_is_a_plan_that_is_called():
    run = plan(pictures(), sigma=0.1, samples=2, seed=5, **OPTIONS)
    assert run.network_calls == 3
    result, again = run(), quiet(lambda: restore(pictures(), sigma=0.1, samples=2, seed=5, **OPTIONS))
    assert torch.equal(result.samples, again.samples)
    assert result.record == again.record
    assert run.record().items() <= result.record.items()
    assert json.loads(json.dumps(run.record())) == run.record()


def test_the_record_has_every_field_and_no_folder(tmp_path):
    import numpy as np

    np.save(tmp_path / "kernel.npy", np.outer([1.0, 2, 1], [1.0, 2, 1]))
    record = plan(pictures(), operator=f"blur-kernel(kernel='{tmp_path / 'kernel.npy'}')", prior="gaussian").record()
    assert record["operator"] == {"name": "blur-kernel", "kernel": "kernel.npy", "boundary": "unknown"}
    assert record["solver"] == {"name": "diffpir", "weight": 0.6, "zeta": 1.0, "data_std": 1.0}
    assert (record["times"], record["steps"], record["samples"], record["seed"]) == ("restoration", 50, 1, 0)
    assert record["prior"] == {"name": "gaussian"} and record["sha256"].keys() == {"kernel", "data"}
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize(
    "change",
    [
        {"sigma": 0.2},
        {"seed": 1},
        {"steps": 4},
        {"samples": 2},
        {"times": "uniform"},
        {"solver": "diffpir(weight=2)"},
        {"operator": "blur(sigma=1.1)"},
        {"dtype": "float64"},
        {"y": pictures(seed=1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_changes_with_all_that_decides_the_pictures(change):
    options = {"y": pictures(), "sigma": 0.1, **OPTIONS}
    assert plan(**options).key == plan(**options, batch_size=1).key == plan(**options, checkpointing=True).key
    assert plan(**options).key != plan(**options | change).key


def test_the_key_of_an_operator_without_a_name_is_that_of_its_numbers():
    masks = [torch.rand(24, 24, generator=torch.Generator().manual_seed(k)) > 0.5 for k in (0, 1)]
    operators = [invsolve.operators.Inpaint((3, 24, 24), observed=mask) for mask in (*masks, masks[0])]
    first, other, same = (plan(pictures() * 0, operator=o, prior="gaussian", sigma=0.1).key for o in operators)
    assert first == same != other


@pytest.mark.parametrize("sigma", [[0.05, 0.2, 0.1], torch.tensor([0.05, 0.2, 0.1]), ["0.05", "25.5/255", 0.1]])
def test_one_noise_level_for_each_picture(sigma):
    """They go through the network together, and each comes out as it does alone."""
    y, seeds = pictures(3), [3, 1, 4]
    together = quiet(lambda: restore(y, sigma=sigma, seed=seeds, solver="pigdm", **OPTIONS))
    for b, level in enumerate((0.05, 0.2, 0.1)):
        alone = quiet(lambda b=b, level=level: restore(y[b], sigma=level, seed=seeds[b], solver="pigdm", **OPTIONS))
        torch.testing.assert_close(together.samples[b], alone.samples[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.chi2[b], alone.chi2[0], rtol=1e-3, atol=1e-4)
    assert len(plan(y, sigma=sigma, **OPTIONS).problems) == 1


def test_noisy_and_noiseless_pictures_are_held_apart():
    run = plan(pictures(4), sigma=[0.1, 0.2, 0.0, 0.1], **OPTIONS)
    kinds = [(type(problem.noise), len(problem.y)) for problem in run.problems]
    assert kinds == [(GaussianNoise, 2), (NoNoise, 1), (GaussianNoise, 1)]
    assert run.record()["sigma"] == [0.1, 0.2, 0.0, 0.1]
    assert run().samples.shape == (4, 1, 3, 24, 24)


@pytest.mark.parametrize(
    ("sigma", "words"),
    [
        ([0.1, 0.2], "2 numbers for 3"),
        ([], "0 numbers for 3"),
        ([0.1, -1, 0.1], "negative"),
        ([None] * 3, "must be a nu"),
    ],
)
def test_wrong_noise_levels_are_one_sentence(sigma, words):
    with pytest.raises(ValueError, match=words):
        plan(pictures(3), sigma=sigma, **OPTIONS)


def test_what_cannot_work_is_refused_before_weights_are_loaded(monkeypatch):
    module = sys.modules["invsolve.plan"]
    monkeypatch.setattr(module, "load_prior", lambda *_, **__: pytest.fail("the weights were loaded"))
    with pytest.raises(TypeError, match="needs a LinearOperator"):
        plan(pictures(), operator="jpeg(quality=20)", solver="diffpir")
    with pytest.raises(TypeError, match="krylov_steps=4 needs a linear operator"):
        plan(pictures(), operator="jpeg(quality=20)", solver="tds(krylov_steps=4)")
    with pytest.raises(TypeError, match="use 'half_sq' or 'norm'"):
        plan(pictures(), operator="jpeg(quality=20)", solver="flowdps(step_size=1, data_term=adjoint_norm)")
    run = plan(pictures(), operator="blur", prior="natural", load=False)
    with pytest.raises(ValueError, match="planned without its prior"):
        run()


def test_checkpointing_ends_with_the_call():
    """The prior is as it was, on and off."""
    prior = load_prior("natural", "float32")
    (network,) = [m for m in prior.modules() if getattr(m, "_supports_gradient_checkpointing", False)][:1]
    seen = []
    options = {"operator": "blur(sigma=1)", "sigma": 0.1, "solver": "dps", "steps": 1, "prior": prior}
    for before in (False, True):
        if before:
            prior.checkpoint_gradients()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DoubtWarning)
            watch = [lambda *_: seen.append(network.is_gradient_checkpointing)]
            restore(pictures(), checkpointing=True, observers=watch, **options)
        assert network.is_gradient_checkpointing is before
    assert seen == [True, True]


def test_a_prior_that_was_given_keeps_its_name_for_the_record():
    run = plan(pictures(), operator=build_operator("blur", (3, 40, 40)), prior=GaussianPrior(PowerLaw()))
    assert run.record()["prior"] == {"name": "GaussianPrior"} and "prior" not in run.record()["sha256"]
