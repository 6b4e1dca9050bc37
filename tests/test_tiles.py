"""Windows: weights that sum to one, gradients, memory, seams, and priors and solvers that work through them."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import IsotropicPrior, ToyLatentPrior

from invsolve import GaussianNoise, ImageRng, Problem, build_operator, build_solver, simulate, solve
from invsolve.priors import VE, Diagonal, Endpoints, GaussianPrior, Guided, LinearFlow, Metered, Prior, Rescheduled
from invsolve.priors.tiles import TiledPrior, tiled
from invsolve.sample import sample_prior

EIGHTH = Fraction(1, 8)
WINDOWS = [  # height, width, size, overlap
    (40, 40, 16, 4),
    (37, 53, 16, 5),
    (24, 61, 32, 12),  # lower than a window
    (61, 10, 16, 3),
    (33, 33, 32, 31),  # as many windows as it takes
    (30, 41, 12, 10),  # more than two windows over one element
    (48, 32, 16, 0),
    (50, 17, 16, 0),
    (5, 4, 1, 0),
]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counted(fn):
    """The function, and the shapes that it was called with."""
    shapes = []

    def call(x):
        shapes.append(tuple(x.shape))
        return fn(x)

    return call, shapes


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def along(length, size, overlap):
    """Number of windows along an axis."""
    return 1 if length <= size else math.ceil((length - overlap) / (size - overlap))


class RandomNetwork(Prior):
    """A random network with zero padding and group norms: its answer depends on the window it is given."""

    def __init__(self, seed, channels=3, width=16):
        super().__init__()
        self.schedule, self.channels, self.calibration = LinearFlow(), channels, torch.ones(4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                *(nn.Conv2d(channels, width, 5, padding=2), nn.GroupNorm(1, width), nn.SiLU()),
                *(nn.Conv2d(width, width, 5, padding=2), nn.GroupNorm(1, width), nn.SiLU()),
                nn.Conv2d(width, channels, 5, padding=2),
            ).double()

    def predict(self, z, t):
        t = t.reshape(-1, 1, 1, 1).to(z)
        velocity = self.network(z.double()).to(z)
        return Endpoints(z - t * velocity, z + (1 - t) * velocity)


# The function


@pytest.mark.parametrize(("height", "width", "size", "overlap"), WINDOWS)
def test_weights_sum_to_one(height, width, size, overlap):
    x = draw(2, 3, height, width)
    fn, shapes = counted(lambda window: window)
    close(tiled(fn, x, size=size, overlap=overlap), x)
    assert set(shapes) == {(2, 3, min(size, height), min(size, width))}
    assert len(shapes) == along(height, size, overlap) * along(width, size, overlap)


@pytest.mark.parametrize(("height", "width", "size", "overlap"), WINDOWS)
def test_a_decoder_and_an_encoder(height, width, size, overlap):
    def decode(z):
        return F.interpolate(z, scale_factor=8, mode="nearest")

    def encode(x):
        assert x.shape[-1] % 8 == x.shape[-2] % 8 == 0
        return F.avg_pool2d(x, 8)

    z = draw(1, 2, height, width)
    close(tiled(decode, z, size=size, overlap=overlap, scale=8), decode(z))
    x = draw(1, 2, 8 * height, 8 * width, seed=1)
    for side, shared in ((8 * size, 8 * overlap), (8 * size + 7, max(8 * overlap - 7, 0))):
        call, shapes = counted(encode)
        close(tiled(call, x, size=side, overlap=shared, scale=EIGHTH), encode(x))
        assert len(shapes) == along(height, size, overlap) * along(width, size, overlap)


def test_neighbours_overlap_by_what_was_asked():
    """The places are read off windows of a ramp."""
    for length in range(17, 60):
        for overlap in (0, 1, 5, 8, 15):
            first = []

            def fn(x, first=first):
                first.append(round(float(x[0, 0, 0, 0])))
                return x

            tiled(fn, torch.arange(length).double().reshape(1, 1, 1, length), size=16, overlap=overlap)
            assert first[0] == 0 and first[-1] == length - 16
            gaps = [b - a for a, b in pairwise(first)]
            assert max(gaps) <= 16 - overlap and max(gaps) - min(gaps) <= 1


def test_what_fits_has_the_same_bits():
    prior, x, t = RandomNetwork(0), draw(2, 3, 12, 16), torch.tensor(0.4)
    assert torch.equal(tiled(prior.network, x, size=16, overlap=4), prior.network(x))
    odd = draw(1, 3, 11, 13)  # what pads by itself may have any size
    assert torch.equal(
        tiled(lambda v: F.pad(v, (0, 3, 0, 5))[..., ::8, ::8], odd, size=16, overlap=0, scale=EIGHTH),
        F.pad(odd, (0, 3, 0, 5))[..., ::8, ::8],
    )
    for got, expected in zip(TiledPrior(prior, size=16, overlap=4).predict(x, t), prior.predict(x, t), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    x = draw(1, 3, 40, 52)
    fn, _ = counted(lambda window: window.to(dtype))
    result = tiled(fn, x, size=16, overlap=6)
    assert result.dtype == dtype
    error = (result.double() - x.to(dtype).double()).abs() / x.abs()
    assert error.max() <= 2.1 * torch.finfo(dtype).eps  # rounded once per axis


def test_gradients():
    weights = draw(2, 3, 40, 29, seed=1)
    network = RandomNetwork(0).network

    def gradient(fn):
        leaf = draw(2, 3, 40, 29).requires_grad_(True)
        (fn(leaf) * weights).sum().backward()
        parameters = [p.grad for p in network.parameters()]
        network.zero_grad()
        return [leaf.grad, *parameters]

    def pointwise(x):
        return torch.sin(3 * x) * x

    close(gradient(lambda x: tiled(pointwise, x, size=12, overlap=5)), gradient(pointwise))
    plain = gradient(lambda x: tiled(network, x, size=12, overlap=5))
    again = gradient(lambda x: tiled(network, x, size=12, overlap=5, checkpoint=True))
    assert len(plain) == 1 + len(list(network.parameters()))
    close(again, plain)


def test_checkpoints_keep_less_and_run_each_window_twice():
    network, x = RandomNetwork(0).network, draw(1, 3, 40, 40).requires_grad_(True)

    def kept(checkpoint):
        sizes, (fn, shapes) = [], counted(network)

        def pack(saved):
            sizes.append(saved.numel() * saved.element_size())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            result = tiled(fn, x, size=16, overlap=4, checkpoint=checkpoint)
        forward = len(shapes)
        result.sum().backward()
        with torch.no_grad():
            tiled(fn, x, size=16, overlap=4, checkpoint=checkpoint)
        return sum(sizes), forward, len(shapes)

    plain, again = kept(False), kept(True)
    assert plain[1:] == (9, 18) and again[1:] == (9, 27)
    assert again[0] < 0.1 * plain[0]


def test_a_local_network_is_the_same_away_from_seams():
    network = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1)).double()
    x, size, overlap, reach = draw(1, 2, 40, 52), 16, 8, 2
    starts = [[0, 8, 16, 24], [0, 7, 14, 21, 28, 36]]
    with torch.no_grad():
        error = (tiled(network, x, size=size, overlap=overlap) - network(x)).abs()[0].amax(0)
    near = []
    for length, firsts in zip(error.shape, starts, strict=True):
        edges = torch.tensor([e for s in firsts for e in (s, s + size) if 0 < e < length])
        place = torch.arange(length)[:, None]
        near.append(((place >= edges - reach) & (place < edges + reach)).any(1))
    near = near[0][:, None] | near[1]
    assert error[~near].max() < 1e-12 < 1e-4 < error[near].max()
    assert 0.1 < near.double().mean() < 0.9


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (-3, 0), (8, 8), (8, -1)])
def test_windows_that_cannot_be(size, overlap):
    for make in (
        lambda **k: tiled(lambda x: x, draw(1, 1, 20, 20), **k),
        lambda **k: TiledPrior(RandomNetwork(0), **k),
    ):
        with pytest.raises(ValueError, match=f"got {'size' if size < 1 else 'overlap'}=") as error:
            make(size=size, overlap=overlap)
        assert str(error.value).count(";") == 1


def test_sides_that_do_not_fit_the_scale():
    with pytest.raises(ValueError, match=r"that 8 divides, got 36 x 40; pad"):
        tiled(lambda x: x, draw(1, 1, 36, 40), size=16, overlap=0, scale=EIGHTH)
    x = draw(1, 1, 40, 40)
    with pytest.raises(ValueError, match=r"steps of 8, which size=20 and overlap=9 .* at least 24"):
        tiled(lambda x: x, x, size=20, overlap=9, scale=EIGHTH)
    close(tiled(lambda x: F.avg_pool2d(x, 8), x, size=24, overlap=9, scale=EIGHTH), F.avg_pool2d(x, 8))


# Seams


def seam_ratio(x, size, overlap, dim):
    """Mean jump |x[j] - x[j - 1]| where a window begins or ends, relative to that elsewhere."""
    length = x.shape[dim]
    n = along(length, size, overlap)
    starts = [k * (length - size) // (n - 1) for k in range(n)]
    edges = {e for start in starts for e in (start, start + size) if 0 < e < length}
    jump = x.diff(dim=dim).abs().mean([k for k in (0, 1, 2, 3) if k != dim])
    seam = torch.tensor([j in edges for j in range(1, length)])
    inner = torch.tensor([6 < j < length - 6 for j in range(1, length)])  # the border of the picture is an edge too
    return float(jump[seam].mean() / jump[~seam & inner].mean())


@pytest.mark.parametrize("seed", range(4))
def test_no_seams(seed):
    """Where windows meet the picture changes as it does elsewhere; side by side, without overlap, they show."""
    z, t = F.interpolate(draw(8, 3, 9, 11, seed=seed), size=(72, 96), mode="bicubic"), torch.tensor(0.7)
    prior = RandomNetwork(seed)

    def velocity(prior):
        clean, noise = prior.predict(z, t)
        return noise - clean

    with torch.no_grad():
        whole = velocity(prior)
        naive, quarter, half = (velocity(TiledPrior(prior, size=24, overlap=n)) for n in (0, 6, 12))
    for dim in (2, 3):
        assert seam_ratio(naive, 24, 0, dim) > 2
        assert seam_ratio(quarter, 24, 6, dim) < 1.2
        assert seam_ratio(half, 24, 12, dim) < 1.2
        assert 0.8 < seam_ratio(whole, 24, 6, dim) < 1.2  # what the measure says where there are no windows
    errors = [float((x - whole).square().mean()) for x in (naive, quarter, half)]
    assert errors[0] > errors[1] > errors[2]


# The prior


@pytest.mark.parametrize("schedule", [LinearFlow(), VE(20.0)], ids=["flow", "ve"])
@pytest.mark.parametrize("value", [0.02, 0.5, 0.98])
def test_the_path_identity(schedule, value):
    z = draw(2, 3, 40, 29)
    prior = Rescheduled(TiledPrior(RandomNetwork(0), size=16, overlap=6), schedule)
    for t in (torch.tensor(value).double(), torch.tensor([value, 0.3]).double()):
        with torch.no_grad():
            ends = prior.predict(z, t)
        torch.testing.assert_close(prior.at(t, *ends), z, rtol=1e-10, atol=1e-10)
        assert ends.clean.shape == ends.noise.shape == z.shape
        assert (ends.clean - z).abs().max() > 1e-3


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor([0.1, 0.8])], ids=["scalar", "rows"])
def test_independent_pixels_do_not_see_the_windows(t):
    prior, z = GaussianPrior(Diagonal(torch.tensor(0.4).double()), 0.2), draw(2, 3, 40, 29)
    tiles = TiledPrior(prior, size=16, overlap=6)
    for got, expected in zip(tiles.predict(z, t.double()), prior.predict(z, t.double()), strict=True):
        close(got, expected)


def test_what_a_wrapper_passes_on():
    inner = RandomNetwork(0, channels=4)
    prior = TiledPrior(inner, size=16, overlap=4)
    assert (prior.channels, prior.schedule, prior.calls_per_predict) == (4, inner.schedule, 1)
    assert prior.calibration is inner.calibration
    prior.calibration = torch.zeros(4)
    sized = prior.sized((4, 40, 29))
    assert isinstance(sized, TiledPrior) and sized.calibration is prior.calibration
    assert (sized.size, sized.overlap, sized.calls_per_predict) == (16, 4, 3 * 3)
    assert sized.sized((4, 16, 29)).calls_per_predict == 3
    assert sized.sized((4, 9, 16)).calls_per_predict == 1
    assert Guided(prior, prior, 2.0).sized((4, 40, 29)).positive.calls_per_predict == 9
    assert TiledPrior(Guided(inner, inner, 2.0), size=16, overlap=4).sized((4, 40, 29)).calls_per_predict == 18
    assert Rescheduled(prior, VE()).sized((4, 40, 29)).prior.calls_per_predict == 9


def test_a_prompt_keeps_the_windows():
    class Prompted(RandomNetwork):
        prompt = ""

        def prompted(self, prompt):
            other = Prompted(0)
            other.prompt, other.calls_per_predict = prompt, 2
            return other

    prior = TiledPrior(Prompted(0), size=16, overlap=4, checkpoint=True)
    prior.calibration = torch.zeros(4)
    for one in (prior.prompted("a house").sized((3, 40, 29)), prior.sized((3, 40, 29)).prompted("a house")):
        assert (one.prior.prompt, one.calls_per_predict, one.checkpoint) == ("a house", 2 * 9, True)
        assert one.calibration is prior.calibration
    with pytest.raises(ValueError, match="takes no prompt"):
        TiledPrior(RandomNetwork(0), size=16, overlap=4).prompted("a house")


def test_windows_of_latents():
    """Sizes are those of the latent; coding is the inner prior's."""
    inner = ToyLatentPrior(0.1, 0.6, draw(3, 4))
    prior, x = TiledPrior(inner, size=10, overlap=2), draw(1, 3, 36, 20)
    sized = prior.sized((3, 36, 20))
    assert sized.latent_shape((3, 36, 20)) == (4, 18, 10) and sized.calls_per_predict == 2
    assert torch.equal(prior.encode(x), inner.encode(x))
    assert torch.equal(prior.decode(draw(1, 4, 18, 10)), inner.decode(draw(1, 4, 18, 10)))


def test_gradients_through_a_prediction():
    prior, t = TiledPrior(RandomNetwork(0), size=12, overlap=4), torch.tensor(0.6)
    assert not prior.checkpoint

    def gradient():
        z, sizes = draw(1, 3, 28, 20).requires_grad_(True), []

        def pack(saved):
            sizes.append(saved.numel())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            loss = prior.sized((3, 28, 20)).predict(z, t).clean.square().sum()
        return torch.autograd.grad(loss, z)[0], sum(sizes)

    plain, much = gradient()
    prior.checkpoint_gradients()
    again, little = gradient()
    close(again, plain)
    assert little < 0.1 * much


# Samples and solvers


def test_samples():
    prior = TiledPrior(IsotropicPrior(0.3, 0.5), size=12, overlap=4)
    rng, times = ImageRng(range(2)), torch.linspace(1, 0, 30)
    z = sample_prior(prior, (3, 40, 24), rng, times)
    assert z.shape == (2, 3, 40, 24) and z.isfinite().all()
    assert float(z.mean()) == pytest.approx(0.3, abs=0.05) and float(z.std()) == pytest.approx(0.5, abs=0.05)
    z = sample_prior(TiledPrior(RandomNetwork(0), size=12, overlap=4), (3, 28, 20), ImageRng([0]), times[::6])
    assert z.shape == (1, 3, 28, 20) and z.isfinite().all()


@pytest.mark.parametrize("solver", ["diffpir", "dps"])
def test_a_posterior(solver):
    shape, steps = (3, 28, 20), 3
    operator, noise = build_operator("inpaint-random", shape, fraction=0.5), GaussianNoise(0.05)
    y = simulate(operator, noise, draw(2, *shape).float() / 2, ImageRng(range(2)))
    problem, solver = Problem(operator, noise, y), build_solver(solver)
    inner = RandomNetwork(0)
    windows = along(28, 12, 4) * along(20, 12, 4)
    assert windows == 6
    result = solve(problem, TiledPrior(inner, size=12, overlap=4), solver, steps=steps)
    whole = solve(problem, inner, solver, steps=steps)
    assert result.ok and result.samples.shape == (2, 1, *shape)
    for name in ("network", "network_vjp"):
        assert result.stats[name] == windows * whole.stats[name]
    assert result.stats["network"] >= windows * steps
    independent = IsotropicPrior(0.0, 0.5)
    tiles = solve(problem, TiledPrior(independent, size=12, overlap=4), solver, steps=steps)
    torch.testing.assert_close(tiles.samples, solve(problem, independent, solver, steps=steps).samples)


def test_rows_times_windows_are_counted():
    z, calls = draw(2, 3, 28, 20).requires_grad_(True), []
    prior = RandomNetwork(0)
    prior.network.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    metered = Metered(TiledPrior(prior, size=12, overlap=4).sized((3, 28, 20)))
    metered.predict(z, torch.tensor(0.5)).clean.sum().backward()
    assert metered.counts["network"] == metered.counts["network_vjp"] == sum(calls) == 12
