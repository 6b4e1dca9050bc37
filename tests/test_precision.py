"""The dtype of networks: what "auto" takes, what is recorded, what stays in float32; and the memory of a solve."""

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from combinations import SHORT
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from typer.testing import CliRunner

import invsolve
from invsolve import (
    GaussianNoise,
    Problem,
    allocator,
    build_operator,
    build_solver,
    devices,
    load_prior,
    solve,
)
from invsolve.cli.app import app
from invsolve.devices import has_fast_bfloat16, native_bfloat16, parse_dtype
from invsolve.priors import BUNDLED, as_grey, default_dtype, load_cards
from invsolve.priors.precision import precise

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = (3, 16, 16)


@pytest.fixture(params=["float32", "bfloat16"])
def machine(request, monkeypatch):
    """A machine whose CPU is faster in this dtype."""
    monkeypatch.delenv("INVSOLVE_DTYPE", raising=False)
    monkeypatch.setattr(devices, "native_bfloat16", lambda: request.param == "bfloat16")
    return request.param


# --- what the processor can -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mkldnn", "supported", "machine", "avx512", "expected"),
    [
        (True, True, "x86_64", True, True),
        (True, True, "AMD64", True, True),  # as Windows says it
        (True, True, "x86_64", False, False),  # AVX512 without BF16: by way of float32
        (True, False, "x86_64", True, False),
        (True, True, "aarch64", False, True),
        (True, False, "aarch64", False, False),
        (False, True, "arm64", False, False),  # a Mac: no oneDNN
        (True, None, "x86_64", True, False),  # a torch without the question
    ],
)
def test_native_bfloat16(mkldnn, supported, machine, avx512, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
    ask = None if supported is None else lambda: supported
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", ask, raising=False)
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert native_bfloat16.__wrapped__() is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: X\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n", True),
        ("model name\t: avx512_bf16\nflags\t\t: fpu avx2 avx512_bf16_not\n", False),
        (None, False),
    ],
)
def test_linux_tells_what_torch_does_not(text, expected, monkeypatch, tmp_path):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.setattr(devices, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert devices._has_avx512_bf16() is expected


def test_the_environment_decides_for_the_cpu(machine, monkeypatch):
    assert has_fast_bfloat16(CPU) is (machine == "bfloat16")
    assert has_fast_bfloat16(CUDA)
    for value, expected in (("float32", False), ("bfloat16", True), ("auto", machine == "bfloat16")):
        monkeypatch.setenv("INVSOLVE_DTYPE", value)
        assert has_fast_bfloat16(CPU) is expected
        assert has_fast_bfloat16(CUDA)
    monkeypatch.setenv("INVSOLVE_DTYPE", "float16")
    with pytest.raises(ValueError, match="INVSOLVE_DTYPE is 'float16' in the environment; set it to auto, float32 or"):
        has_fast_bfloat16(CPU)


def test_dtypes_have_names():
    assert [parse_dtype(d) for d in ("float64", torch.float16, "auto")] == [torch.float64, torch.float16, None]
    with pytest.raises(ValueError, match="Unknown dtype 'half'; choose one of auto, float32, float64, bfloat16"):
        parse_dtype("half")
    for wrong in (torch.int8, None, 16):
        with pytest.raises(TypeError, match="dtype must be a floating-point dtype"):
            parse_dtype(wrong)


# --- which dtype a prior gets -----------------------------------------------------------------------------------------


def test_auto_is_bfloat16_where_it_is_fast_and_costs_nothing(machine, tmp_path):
    fast = getattr(torch, machine)
    card = next(iter(load_cards()))
    for name in ("natural", "natural-latent"):
        assert default_dtype(name, CPU) == fast
        assert default_dtype(name, CUDA) == torch.float32
    assert default_dtype("gaussian", CPU) == torch.float32
    assert default_dtype(card, CPU) == fast
    assert default_dtype(card, CUDA) == torch.bfloat16
    assert default_dtype(shutil.copytree(BUNDLED / "natural", tmp_path / "ours"), CPU) == fast
    assert default_dtype(tmp_path, CPU) == torch.float32  # an empty folder: load_prior says so
    UNet2DModel(
        block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1, norm_num_groups=4, add_attention=False,
    ).save_pretrained(tmp_path / "theirs/unet")  # fmt: skip
    DDPMScheduler().save_pretrained(tmp_path / "theirs/scheduler")
    assert default_dtype(tmp_path / "theirs", CPU) == torch.float32  # it takes x_t in its own dtype
    assert load_prior("natural").backbone.network.dtype == fast
    assert load_prior("natural", "float32").backbone.network.dtype == torch.float32
    assert load_prior(tmp_path / "theirs").backbone.network.dtype == torch.float32
    latent = load_prior("natural-latent")
    assert latent.autoencoder.dtype == torch.float32
    assert latent.prior.backbone.network.dtype == fast


def test_restore_takes_auto_and_records_what_it_was(machine):
    y = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = {"operator": "blur(sigma=1)", "sigma": 0.1, "solver": "diffpir", "steps": 2}
    found = {dtype: invsolve.restore(y, dtype=dtype, **options) for dtype in ("auto", "float32", torch.bfloat16)}
    assert {str(dtype): result.record["dtype"] for dtype, result in found.items()} == {
        "auto": machine,
        "float32": "float32",
        "torch.bfloat16": "bfloat16",
    }
    same, other = ("float32", torch.bfloat16) if machine == "float32" else (torch.bfloat16, "float32")
    assert torch.equal(found["auto"].samples, found[same].samples)
    assert not torch.equal(found["auto"].samples, found[other].samples)
    torch.testing.assert_close(found["auto"].samples, found[other].samples, rtol=0, atol=0.1)
    prior = load_prior("natural", "bfloat16")
    assert invsolve.restore(y, prior=prior, **options).record["dtype"] == "bfloat16"  # its own
    assert torch.equal(invsolve.restore(y, prior=prior, **options).samples, found[torch.bfloat16].samples)
    for dtype in ("float32", "float64"):
        assert invsolve.restore(y, prior="gaussian", dtype=dtype, **options).record["dtype"] == dtype


def test_the_dtype_is_part_of_what_is_done(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16), (90, 120, 150)).save("a.png")
    words = ["restore", "a.png", "--operator", "blur(sigma=1)", "--sigma", "0.1", "--steps", "1", "--device", "cpu"]

    def run(default, *more):
        monkeypatch.setenv("INVSOLVE_DTYPE", default)
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 0, result.output
        return result.stdout.split()[0], json.loads(Path("restored/a.json").read_text())["dtype"]

    assert run("bfloat16") == ("restored", "bfloat16")
    assert run("bfloat16") == run("float32", "--dtype", "bfloat16") == ("skipped", "bfloat16")
    assert run("float32") == ("restored", "float32")
    assert run("bfloat16", "--dtype", "float32") == run("float32", "--dtype", "auto") == ("skipped", "float32")


# --- what stays in float32 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", [lambda prior: prior, as_grey], ids=["colour", "grey"])
def test_precise_is_float32(around):
    g = torch.Generator().manual_seed(0)
    z, t = torch.randn(2, 1 if around is as_grey else 3, 24, 20, generator=g), torch.tensor(0.4)
    full, half = (around(load_prior("natural", dtype)) for dtype in ("float32", "bfloat16"))

    def ends_and_gradient(prior, inside):
        leaf = z.clone().requires_grad_()
        with ExitStack() as stack:
            if inside:
                stack.enter_context(precise())
            clean, noise = prior.predict(leaf, t)
        return clean, noise, *torch.autograd.grad(clean.square().sum(), leaf)

    expected = ends_and_gradient(full, False)
    for got, wanted in zip(ends_and_gradient(half, True), expected, strict=True):
        assert torch.equal(got, wanted)
    for got, wanted in zip(ends_and_gradient(half, False), expected, strict=True):
        assert 0 < (got - wanted).norm() / wanted.norm() < 0.1
    for got, wanted in zip(ends_and_gradient(full, True), expected, strict=True):
        assert torch.equal(got, wanted)


def test_precise_is_of_this_thread_and_ends_with_an_error():
    half, z, t = load_prior("natural", "bfloat16"), torch.ones(1, 3, 16, 16), torch.tensor(0.4)
    outside, inside = half.predict(z, t).clean, []
    with pytest.raises(RuntimeError, match="stop"), precise():
        thread = threading.Thread(target=lambda: inside.append(half.predict(z, t).clean))
        thread.start()
        thread.join()
        assert not torch.equal(half.predict(z, t).clean, outside)
        raise RuntimeError("stop")
    assert torch.equal(inside[0], outside)
    assert torch.equal(half.predict(z, t).clean, outside)


def test_what_failed_in_half_precision_goes_on_in_float32(monkeypatch):
    """`finite_or_wider` widens a network that keeps float32 weights, too."""
    half, z, t = load_prior("natural", "bfloat16"), torch.ones(1, 3, 16, 16), torch.tensor(0.4)
    forward = type(half.backbone.network).forward

    def fails(network, sample, timestep):
        out = forward(network, sample, timestep)
        return type(out)(sample=out.sample * torch.inf) if network.dtype == torch.bfloat16 else out

    monkeypatch.setattr(type(half.backbone.network), "forward", fails)
    assert half.predict(z, t).clean.isfinite().all()
    assert half.backbone.network.dtype == torch.float32


@pytest.mark.parametrize(
    "solver",
    [
        "otode",
        "diffpir",
        *(
            pytest.param(spec, marks=pytest.mark.slow)
            for spec in ("flowpriors", "dflow(ode_steps=2,evaluations=1)", SHORT["sgfm"])
        ),
    ],
)
def test_solvers_that_magnify_rounding_run_in_float32(solver):
    y = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    problem = Problem(build_operator("downsample", (3, 32, 32), factor=2), GaussianNoise(0.1), y)
    full, half = (load_prior("natural", dtype) for dtype in ("float32", "bfloat16"))
    samples = [solve(problem, prior, build_solver(solver), steps=1).samples for prior in (full, half)]
    assert torch.equal(*samples) is build_solver(solver).needs_float32 is (solver != "diffpir")


# --- the memory of a solve --------------------------------------------------------------------------------------------

MEMORY = """
import resource, sys, threading, torch
from pathlib import Path
from invsolve import allocator
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
def work():
    torch.ones(2**24)
    before = faults()
    for _ in range(5): torch.ones(2**24)
    return faults() - before
before, outside = resident(), work()
with allocator.memory_kept():
    with allocator.memory_kept(): pass
    inside, most = work(), resident()
after = resident()
print(int(allocator._glibc() is not None), outside, inside, most - before, after - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.slow
def test_a_solve_keeps_its_memory_and_gives_it_back():
    def run(**environment):
        command = [sys.executable, "-c", MEMORY]
        inherited = {key: value for key, value in os.environ.items() if key != "INVSOLVE_KEEP_MEMORY"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=inherited | environment)
        return [int(word) for word in done.stdout.split()]

    known, outside, inside, most, left = run()
    if not known:
        pytest.skip("the C library has no mallopt")
    assert inside < 0.2 * outside
    assert most > 2**25
    assert left < 2**24  # 64 MiB were in use
    _, outside, inside, *_ = run(INVSOLVE_KEEP_MEMORY="0")
    assert inside > 0.8 * outside


def test_memory_is_given_back_by_the_last_solve(monkeypatch):
    calls = []
    monkeypatch.setattr(allocator, "_keep", lambda: calls.append("keep") or True)
    monkeypatch.setattr(allocator, "_give_back", lambda: calls.append("give"))
    monkeypatch.setattr(allocator, "_forever", False)
    monkeypatch.delenv("INVSOLVE_KEEP_MEMORY", raising=False)
    entered, leave = threading.Event(), threading.Event()

    def other():
        with allocator.memory_kept():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with allocator.memory_kept():
        thread.start()
        entered.wait()
    assert calls == ["keep"]
    leave.set()
    thread.join()
    assert calls == ["keep", "give"]
    with pytest.raises(RuntimeError), allocator.memory_kept():
        raise RuntimeError
    assert calls == ["keep", "give"] * 2
    problem = Problem(build_operator("identity", SHAPE), GaussianNoise(0.1), torch.zeros(1, *SHAPE))
    solve(problem, load_prior("gaussian"), build_solver("ddnm"), steps=1)
    assert calls == ["keep", "give"] * 3
    invsolve.restore(torch.zeros(2, *SHAPE), operator="identity", sigma="auto", prior="gaussian", steps=1)
    assert calls == ["keep", "give"] * 4  # two problems, once
    with allocator.memory_kept():
        assert allocator.keep_memory()
    assert calls[8:] == ["keep", "keep"]  # for good
    with allocator.memory_kept():
        pass
    assert calls[10:] == []
