"""Our loop against diffusers' own pipelines, on small random models of every kind."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from hub import PIPELINES, keeper, unet2d

from invsolve.priors import Prompts, load_folder
from invsolve.sample import follow_flow

STEPS = 4
PROMPT, NEGATIVE = "a face", "a dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return keeper(tmp_path_factory)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INVSOLVE_CACHE", str(tmp_path / "cache"))


def their_times(scheduler):
    """The times that a pipeline walked through, in ours."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return scheduler.sigmas.double()
    n = scheduler.config.num_train_timesteps
    last = 0.0 if scheduler.config.set_alpha_to_one else 1 / n
    return torch.cat([(scheduler.timesteps.double() + 1) / n, torch.tensor([last]).double()])


def latents_of(name, height, width):
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(1))


def run_theirs(name, pipeline, latents, scale, negative):
    """Latents of the pipeline after STEPS steps."""
    height, width = (2 * n for n in latents.shape[-2:])  # pixels per latent is 2 in these models
    options = {"num_inference_steps": STEPS, "output_type": "latent", "height": height, "width": width}
    if name.startswith("flux"):
        packed = pipeline._pack_latents(latents, *latents.shape)
        out = pipeline([PROMPT] * 2, latents=packed, guidance_scale=scale, **options).images
        return pipeline._unpack_latents(out, height, width, 2)
    if name == "sana":
        options |= {"complex_human_instruction": None, "use_resolution_binning": False}
    negatives = {} if negative is None else {"negative_prompt": [negative] * 2}
    return pipeline([PROMPT] * 2, latents=latents, guidance_scale=scale, **negatives, **options).images


@pytest.mark.parametrize("name", ["sd1.5", "sdxl", "sd3"])
def test_guidance_without_a_negative_prompt_is_the_pipelines(name, folders):
    folder, pipeline = folders(name)
    latents = latents_of(name, 16, 16)
    expected = run_theirs(name, pipeline, latents, 4.0, None)
    prior = load_folder(folder, prompts=Prompts(texts=(PROMPT,), scale=4.0))
    with torch.no_grad():
        z = follow_flow(prior, latents, their_times(pipeline.scheduler).float())
    assert (z - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "dit"])
def test_our_loop_is_the_pipelines(name, scale, folders):
    folder, pipeline = folders(name)
    if name == "sana":  # its DPM-Solver++ is of second order; the network and its conditions are what is compared
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    latents = latents_of(name, 16, 16 if name == "sana" else 12)  # its pipeline takes multiples of 32 pixels
    guided = scale > 1 and not name.startswith("flux")
    negative = NEGATIVE if guided else None
    expected = run_theirs(name, pipeline, latents, scale, negative)
    prompts = Prompts(texts=(PROMPT,), negative=negative or "", scale=1.0 if name == "flux-schnell" else scale)
    prior = load_folder(folder, prompts=prompts)
    with torch.no_grad():
        z = follow_flow(prior, latents, their_times(pipeline.scheduler).float())
    assert prior.sized((3, 32, 32)).calls_per_predict == (2 if guided else 1)
    assert (z - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (z - latents).abs().max() > 0.1 * expected.abs().max()  # something happened


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_our_loop_is_the_dit_pipeline(scale, folders):
    folder, pipeline = folders("dit")
    pictures = pipeline(
        [207, 3], guidance_scale=scale, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(1),
        output_type="np",
    ).images  # fmt: skip
    pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    prior = load_folder(folder, prompts=Prompts(texts=("207", "3"), scale=scale))
    times = their_times(pipeline.scheduler).float()
    with torch.no_grad():
        for k, label in enumerate(("207", "3")):
            one = prior.prompted(label)
            x = one.decode(follow_flow(one, latents[k : k + 1], times))
            torch.testing.assert_close((x / 2 + 0.5).clamp(0, 1)[0], pictures[k], atol=1e-4, rtol=0)


def test_our_loop_is_the_ddim_pipeline(tmp_path):
    unet2d(tmp_path)
    pipeline = DDIMPipeline(UNet2DModel.from_pretrained(tmp_path), DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        2, generator=torch.Generator().manual_seed(1), num_inference_steps=STEPS, output_type="np"
    ).images  # fmt: skip
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = follow_flow(load_folder(tmp_path), noise, their_times(pipeline.scheduler).float())
    expected = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    torch.testing.assert_close((x / 2 + 0.5).clamp(0, 1), expected, atol=1e-4, rtol=0)
    assert 0.05 < expected.mean() < 0.95
