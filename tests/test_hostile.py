"""Hostile model folders: whatever a folder names or holds, none of its code runs.

Each attack is planted in a copy of a small pipeline and loaded with a prompt.  It is refused with one sentence, or has
no effect: then the prediction is the same, bit by bit, as without it.  CONTRIBUTING.md says how to
run it on the oldest versions.
"""

import importlib
import json
import pickle
import shutil
import sys

import pytest
import torch
from diffusers import AutoencoderTiny
from hub import PIPELINES, keeper, unet2d
from traps import PLANTED, rewrite

from invsolve.priors import Prompts, load_folder
from invsolve.priors.backbones import StableDiffusion
from invsolve.priors.text import encode_texts

INDEX, PARTS = "model_index.json", ("unet", "vae", "scheduler", "safety_checker", "feature_extractor", "image_encoder")
NAMES = {  # what stands for a class of a part
    "module": ["evilmod", "X"],
    "module of the part": ["evil", "Evil2"],
    "package": ["evilpackage", "X"],
    "function": ["os", "system"],
    "program": ["subprocess", "Popen"],
    "builtin": ["builtins", "exec"],
    "automatic": ["transformers", "AutoModel"],
    "inner module": ["transformers.dynamic_module_utils", "get_class_from_dynamic_module"],
    "fake modules": ["diffusers_modules.local.pipeline", "X"],
    "parent": ["../evil", "X"],
    "absolute": ["/evil", "X"],
    "relative": [".evil", "X"],
    "nested": [["evilmod"], "X"],
    "nested class": ["transformers", ["evilmod", "X"]],
    "longer": ["transformers", "CLIPTextModel", "evilmod"],
    "mapping": {"evilmod": "X"},
    "text": "evilmod",
    "number": 3,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    of = keeper(tmp_path_factory)
    return lambda name: of(name)[0]


@pytest.fixture(scope="module")
def expected(folders, tmp_path_factory):
    return {of: of(folders("sd1.5"), tmp_path_factory.mktemp("cache")) for of in (predict, encode)}


def predict(folder, cache=None):
    """The prediction of a loaded folder under a prompt."""
    prior = load_folder(folder, prompts=Prompts(texts=("a face",), cache=cache))
    z = torch.randn(1, *prior.latent_shape((3, 32, 32)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return prior.predict(z, torch.tensor(0.5)).clean


def encode(folder, cache=None):
    """What the text encoder of a folder makes of the prompt."""
    encoded = encode_texts(folder, StableDiffusion, ["a face"], torch.float32, Prompts(cache=cache))
    return encoded["a face"]["encoder_hidden_states"]


def refused(folder, sentence, **options):
    """Loading is refused with that one sentence."""
    with pytest.raises(ValueError, match=sentence) as raised:
        load_folder(folder, **{"prompts": Prompts(texts=("a face",))} | options)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".") and len(str(raised.value)) < 700


@pytest.fixture
def copy(folders, tmp_path):
    return shutil.copytree(folders("sd1.5"), tmp_path / "copy")


def test_the_trap_would_catch(trap):
    """Every planted module leaves the mark when it is imported, and so does the pickle."""
    for name in PLANTED:
        module = importlib.import_module(name.removesuffix("/__init__").replace("/", "."))
        assert trap.ran() == [module.__name__, module.__file__]
        del sys.modules[module.__name__]
        trap.mark.unlink()
    trap.raw_pickle(trap.root / "x.bin")
    pickle.loads((trap.root / "x.bin").read_bytes())
    assert trap.ran() == [""]
    trap.mark.unlink()


@pytest.mark.parametrize("value", NAMES.values(), ids=NAMES)
def test_names_of_classes_are_not_imported(value, copy, trap, expected):
    """Of the parts that need no encoder the index is not asked; of the encoders it must name what is loaded anyway."""
    rewrite(copy / INDEX, **dict.fromkeys((*PARTS, "evil_part"), value))
    assert torch.equal(predict(copy), expected[predict])
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(trap.root.parent / "cache")
        rewrite(
            copy / INDEX, text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"]
        )
        rewrite(copy / INDEX, **{part: value})
        refused(copy, f"model_index.json in .* has .* for {part}; the StableDiffusionPipeline has")
        (trap.root.parent / "cache").mkdir()


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in ("dit", "sd2.1", "flux-schnell")])
def test_no_part_of_any_pipeline_is_of_another_class(name, folders, tmp_path, trap):
    index = json.loads((folders(name) / INDEX).read_text())
    parts = [part for part in index if part.startswith(("text_encoder", "tokenizer"))]
    assert len(parts) >= 2
    copy = shutil.copytree(folders(name), tmp_path / "copy")
    for part in parts:
        (copy / INDEX).write_text(json.dumps(index | {part: ["evilmod", "X"]}))
        refused(copy, rf"has \['evilmod', 'X'\] for {part}; the \w+ has")
    (copy / INDEX).write_text(json.dumps(index | {"text_encoder_9": ["transformers", "CLIPTextModel"]}))
    refused(copy, "has text_encoder_9, and the .* has none")


@pytest.mark.parametrize("value", [["pipeline", "Evil"], [["pipeline"], "Evil"], {"evil": "X"}, 3, None])
def test_a_pipeline_of_its_own_is_refused(value, copy, trap):
    rewrite(copy / INDEX, _class_name=value)
    refused(copy, "names a pipeline with code of its own")


@pytest.mark.parametrize("value", ["evilmod", "evilmod.X", "custom_pipeline", "StableDiffusionInpaintPipeline"])
def test_the_name_of_the_pipeline_is_not_imported(value, copy, trap, expected):
    rewrite(
        copy / INDEX, _class_name=value, custom_pipeline="pipeline", custom_revision="evil", auto_map={"X": "evil.X"}
    )
    assert torch.equal(encode(copy), expected[encode])


@pytest.mark.parametrize("value", [*(v for v in NAMES.values()), "evilmod.X", "os.system", "../evil", "AutoModel"])
@pytest.mark.parametrize(("file", "words"), [("unet", "network is a"), ("vae", "autoencoder is a")])
def test_classes_of_configs_are_on_the_list(file, words, value, copy, trap):
    rewrite(copy / file / "config.json", _class_name=value)
    refused(copy, rf"The prior's {words} .*; known ")


@pytest.mark.parametrize("value", ["evilmod", ["evilmod", "X"], "os.system", "DDIMScheduler.evil"])
def test_classes_of_schedulers_are_on_the_list(value, copy, trap):
    rewrite(copy / "scheduler" / "scheduler_config.json", _class_name=value)
    refused(copy, "known are flow-matching and EDM schedulers")


CODE = (
    *("None.py", "pipeline.py", "__init__.py", "unet/evil.py", "scheduler/scheduling.py", "text_encoder/modeling.py"),
    *("tokenizer/tokenization.py", "safety_checker/evil.py", "deep/er/evil.PY", ".hidden/evil.py", "evil.pyc"),
    *("unet/evil.cpython-311-x86_64-linux-gnu.so", "text_encoder/custom_generate/generate.py", "evil.py/empty"),
)


@pytest.mark.parametrize("name", CODE)
def test_code_in_the_folder_is_refused(name, copy, trap):
    trap.module(copy / name)
    refused(copy, "holds code .*, and a model needs none here; remove the code from the folder, or download")
    refused(copy, r"holds code", prompts=None)


def test_code_behind_a_link_is_refused(copy, trap):
    (copy / "unet" / "circle").symlink_to(copy, target_is_directory=True)
    load_folder(copy)  # a circle of links ends
    (copy / "more").symlink_to(trap.cwd, target_is_directory=True)
    refused(copy, r"holds code \(more/\w+\.py\)")


def test_code_beside_another_autoencoder_is_refused(copy, trap, tmp_path):
    AutoencoderTiny(latent_channels=4).save_pretrained(tmp_path / "tiny")
    trap.module(tmp_path / "tiny" / "autoencoder.py")
    refused(copy, r"tiny holds code \(autoencoder.py\)", autoencoder=tmp_path / "tiny")


AUTO = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "evil.X")}
REMOTE = {"auto_map": {"AutoModel": "someone/evil--modeling.Model", "AutoTokenizer": ["evil.X", "evil.X"]}}
IGNORED = {
    "network: auto_map": ("unet/config.json", AUTO),
    "network: custom": ("unet/config.json", {"custom_class": "evil", "_module": "evilmod", "library_name": "evilmod"}),
    "autoencoder: auto_map": ("vae/config.json", AUTO),
    "scheduler: auto_map": ("scheduler/scheduler_config.json", AUTO),
    "encoder: auto_map": ("text_encoder/config.json", AUTO),
    "encoder: auto_map of the hub": ("text_encoder/config.json", REMOTE),
    "encoder: names": ("text_encoder/config.json", {"architectures": ["evilmod.X"], "model_type": "evil"}),
    "encoder: attention": ("text_encoder/config.json", {"_attn_implementation": "someone/evil:attend"}),
    "encoder: inner attention": ("text_encoder/config.json", {"_attn_implementation_internal": "someone/evil"}),
    "encoder: public attention": ("text_encoder/config.json", {"attn_implementation": "someone/evil@main"}),
    "encoder: kernels": (
        "text_encoder/config.json",
        {"use_kernels": True, "kernel_config": {"Linear": "someone/evil"}},
    ),
    "encoder: experts": ("text_encoder/config.json", {"_experts_implementation": "someone/evil"}),
    "encoder: fusion": ("text_encoder/config.json", {"fusion_config": {"evil": True}}),
    "encoder: quantiser": ("text_encoder/config.json", {"quantization_config": {"quant_method": "quark"}}),
    "encoder: other weights": ("text_encoder/config.json", {"transformers_weights": "pytorch_model.bin"}),
    "encoder: dtype": ("text_encoder/config.json", {"dtype": "save", "torch_dtype": "load"}),
    "encoder: adapter": (
        "text_encoder/adapter_config.json",
        {
            "base_model_name_or_path": "../../evil",
            "peft_type": "LORA",
            "auto_mapping": {"base_model_class": "X", "parent_library": "evilmod"},
        },
    ),
    "encoder: generation": (
        "text_encoder/generation_config.json",
        {"custom_generate": "evil", "trust_remote_code": True},
    ),
    "tokenizer: auto_map": ("tokenizer/tokenizer_config.json", AUTO),
    "tokenizer: auto_map of the hub": ("tokenizer/tokenizer_config.json", REMOTE),
    "tokenizer: class": ("tokenizer/tokenizer_config.json", {"tokenizer_class": "evilmod.Tokenizer"}),
    "tokenizer: processor": ("tokenizer/tokenizer_config.json", {"processor_class": "evilmod.X", "backend": "evilmod"}),
    "tokenizer: trust": ("tokenizer/tokenizer_config.json", {"trust_remote_code": True, **AUTO}),
    "tokenizer: inputs": ("tokenizer/tokenizer_config.json", {"init_inputs": ["/etc/passwd"], "use_fast": False}),
    "tokenizer: files": (
        "tokenizer/tokenizer_config.json",
        {"fast_tokenizer_files": ["tokenizer.1.json", "../x.json"]},
    ),
    "tokenizer: path": ("tokenizer/tokenizer_config.json", {"tokenizer_file": "../../x", "vocab_file": "/etc/passwd"}),
    "tokenizer: template": ("tokenizer/tokenizer_config.json", {"chat_template": "{{ cycler.__init__.__globals__ }}"}),
    "tokenizer: attributes": ("tokenizer/tokenizer_config.json", {"extra_special_tokens": {"__class__": "evil"}}),
    "tokenizer: tokens": (
        "tokenizer/special_tokens_map.json",
        {
            "trust_remote_code": True,
            "tokenizer_object": "evil",
            "vocab": "/etc/passwd",
            "merges": "/etc/passwd",
            **AUTO,
        },
    ),
    "tokenizer: config": ("tokenizer/config.json", {"model_type": "evil", **AUTO}),
}


@pytest.mark.parametrize(("file", "changes"), IGNORED.values(), ids=IGNORED)
def test_what_configs_name_has_no_effect(file, changes, copy, trap, expected):
    rewrite(copy / file, **changes)
    of = encode if "tokenizer" in file or "encoder" in file else predict
    assert torch.equal(of(copy), expected[of])


def test_a_quantised_network_is_refused(copy, trap):
    rewrite(copy / "unet" / "config.json", quantization_config={"quant_method": "quark"})
    refused(copy, "are quantised by another library; take the unquantised ones")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet", {"layers_per_block": 10**8}),
        ("unet", {"layers_per_block": [10**8, 1]}),
        ("unet", {"transformer_layers_per_block": 10**8}),
        ("unet", {"transformer_layers_per_block": [[10**8]]}),
        ("vae", {"layers_per_block": 1e8}),
        ("text_encoder", {"num_hidden_layers": 10**8}),
    ],
)
def test_more_layers_than_weights_are_refused(file, changes, copy, trap):
    """Building them would not end."""
    rewrite(copy / file / "config.json", **changes)
    refused(copy, r"layers.* 100000000(\.0)?, and the weights hold \d+ tensors")


def test_a_network_that_cannot_be_called_is_refused(tmp_path):
    """Its config lets it load, and nothing more."""
    unet2d(tmp_path / "prior")
    rewrite(tmp_path / "prior" / "config.json", downsample_padding=7)
    prior = load_folder(tmp_path / "prior")
    with pytest.raises(ValueError, match=r"network fails in its first call .*does not fit its weights"):
        prior.predict(torch.zeros(1, *prior.latent_shape((3, 32, 32))), torch.tensor(0.5))


@pytest.mark.parametrize("value", ["os.system", "evilmod.X", ["evilmod", "X"], "torch.nn.functional.gelu"])
def test_activations_are_those_of_the_libraries(value, copy, trap):
    for file, field in (("unet", "act_fn"), ("vae", "act_fn"), ("text_encoder", "hidden_act")):
        before = (copy / file / "config.json").read_text()
        rewrite(copy / file / "config.json", **{field: value})
        refused(copy, "does not hold the weights of the")
        (copy / file / "config.json").write_text(before)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_are_safetensors(part, copy, trap, expected):
    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    weights, pickled = copy / part / f"{stem}.safetensors", copy / part / f"{stem}.bin"
    for name in (pickled.name, "pytorch_model.bin", "model.pt", "model.ckpt", "training_args.bin"):
        trap.pickle(copy / part / name)
    trap.raw_pickle(copy / part / ".metadata")
    assert torch.equal(predict(copy), expected[predict])  # beside safetensors they are not read
    shutil.rmtree(trap.root.parent / "cache")
    kept = weights.read_bytes()
    for disguise in (trap.pickle, trap.raw_pickle):
        disguise(weights)
        refused(copy, "does not hold the weights of the")
    weights.unlink()
    weights.symlink_to(pickled)
    refused(copy, "does not hold the weights of the")
    weights.unlink()
    refused(copy, "has its weights in .*, which can hold code, and not as safetensors; convert the whole prior")
    for name in (pickled.name, f"../{part}/{weights.name}", str(trap.root / "x.safetensors"), ["evil"], None):
        rewrite(copy / part / f"{stem}.safetensors.index.json", metadata={}, weight_map={"weight": name})
        (copy / part / "other.safetensors").write_bytes(kept)
        refused(copy, "names files that are not safetensors beside it")
