"""Hostile files of other kinds: vision transformers, flows, calibrations, checkpoints, recipes, records, texts."""

import json
import shutil

import pytest
import torch
from hub import unet2d
from PIL import Image
from safetensors import SafetensorError
from traps import rewrite
from typer.testing import CliRunner

from invsolve import OPERATORS, SOLVERS, build_solver
from invsolve.cli.app import app
from invsolve.features import load_features
from invsolve.files.record import is_done, read_record
from invsolve.flows.fitted import load_fitted
from invsolve.metrics import LPIPS_TRUNK, lpips_network
from invsolve.priors import BUNDLED, load_prior
from invsolve.priors.checkpoints import read_checkpoint
from invsolve.priors.convert import convert_folder
from invsolve.result import Result
from invsolve.spec import parse_spec

CALL = "__import__('os').system('touch ../mark')"


@pytest.fixture
def vision(tmp_path):
    """A tiny random vision transformer in a folder."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    load_features.cache_clear()
    return tmp_path / "vit"


VISION = {
    "auto_map": {"auto_map": {"AutoConfig": "evil.X", "AutoModel": "evil.X"}, "architectures": ["evilmod.X"]},
    "attention": {"_attn_implementation": "someone/evil", "_attn_implementation_internal": "someone/evil"},
    "quantiser": {"quantization_config": {"quant_method": "quark"}},
    "other weights": {"transformers_weights": "pytorch_model.bin"},
    "versions": {"configuration_files": ["config.4.0.0.json"], "dtype": "load"},
}


@pytest.mark.parametrize("changes", VISION.values(), ids=VISION)
def test_what_a_vision_transformer_names_has_no_effect(changes, vision, trap):
    x = torch.rand(1, 3, 16, 16)
    expected = load_features("dino", str(vision))(x)
    rewrite(vision / "config.json", **changes)
    rewrite(
        vision / "adapter_config.json", base_model_name_or_path="../evil", auto_mapping={"parent_library": "evilmod"}
    )
    trap.pickle(vision / "pytorch_model.bin")
    load_features.cache_clear()
    assert torch.equal(load_features("dino", str(vision))(x), expected)


def test_a_hostile_vision_transformer_is_refused(vision, trap):
    for value in ("evilmod", ["evilmod", "X"], {"vit": "evil"}, "os.system", None):
        copy = shutil.copytree(vision, vision.parent / "copy", dirs_exist_ok=True)
        rewrite(copy / "config.json", model_type=value)
        with pytest.raises(ValueError, match="takes the vision transformers vit"):
            load_features("dino", str(copy))
    trap.module(vision / "modeling.py")
    with pytest.raises(ValueError, match=r"holds code \(modeling.py\)"):
        load_features("dino", str(vision))
    (vision / "modeling.py").unlink()
    (vision / "model.safetensors").unlink()
    trap.pickle(vision / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has its weights in pytorch_model.bin, which can hold code"):
        load_features("dino", str(vision))
    for name in ("evilpackage", "../evil", "/evil", "someone/evil@main"):  # not imported
        with pytest.raises(FileNotFoundError, match=r"neither a folder with config\.json"):
            load_features("dino", name)


def test_pixel_priors_too_are_refused(tmp_path, trap):
    unet2d(tmp_path / "model")
    rewrite(tmp_path / "model" / "config.json", auto_map={"AutoModel": "evil.X"}, _name_or_path="../evil")
    load_prior(tmp_path / "model")
    trap.module(tmp_path / "model" / "None.py")
    Image.new("RGB", (16, 16)).save("a.png")
    run = CliRunner().invoke(app, ["restore", "a.png", "--operator", "identity", "--prior", str(tmp_path / "model")])
    assert run.exit_code == 2 and "holds code (None.py)" in " ".join(run.output.split())
    with pytest.raises(ValueError, match=r"holds code \(None.py\)"):
        load_prior(tmp_path / "model")
    for name in ("evil", "evilmod.X", "os.system", CALL, "natural;evil"):
        with pytest.raises(ValueError, match="Unknown prior"):
            load_prior(name)


@pytest.mark.parametrize("name", ["calibration.safetensors", "calibration.json"])
def test_calibrations_are_numbers(name, tmp_path, trap):
    copy = shutil.copytree(BUNDLED / "natural", tmp_path / "prior")
    (copy / "calibration.json").unlink()
    texts = [json.dumps({"velocity_error": value}).encode() for value in (CALL, ["evil", "X"], {"evil": 1}, [[1, 2]])]
    for content in (*texts, b"!!python/object/apply:os.system ['touch ../mark']", b"{" * 9999):
        (copy / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} in .* is damaged"):
            load_prior(copy)
    for disguise in (trap.pickle, trap.raw_pickle):
        disguise(copy / name)
        with pytest.raises(ValueError, match=rf"{name} in .* is damaged"):
            load_prior(copy)


def test_checkpoints_are_tensors(tmp_path, trap):
    (tmp_path / "in").mkdir()
    for disguise in (trap.pickle, trap.raw_pickle):
        disguise(tmp_path / "in" / "model.bin")
        with pytest.raises(ValueError, match="holds code, which is never run"):
            read_checkpoint(tmp_path / "in" / "model.bin", "an ADM network")
        with pytest.raises(ValueError, match="holds code, which is never run"):
            convert_folder(tmp_path / "in", tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "tensor", [torch.ones(3, 3).to_sparse(), torch.ones(3, dtype=torch.complex64), torch.empty(3, device="meta")]
)
def test_tensors_that_cannot_be_stored_are_refused(tensor, tmp_path):
    (tmp_path / "in").mkdir()
    torch.save({"weight": tensor}, tmp_path / "in" / "model.bin")
    with pytest.raises(ValueError, match="sparse, complex or without data"):
        convert_folder(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


CARD = {
    "operator": "identity", "noise": "GaussianNoise(sigma=0.1)", "prior": "natural", "image_shape": [1, 8, 8],
    "levels": [[1, 8, 8]], "stages": 1, "first": "score", "network": "experts", "width": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "evilmod"}, {"first": CALL}, {"levels": CALL}, {"evil": "evilmod.X"}, {},
        {"levels": [[1, 8]]}, {"levels": 3}, {"width": -1}, {"image_shape": [1, 8, "x"]}, None, [], "text",
    ],
)  # fmt: skip
def test_fitted_flows_are_tensors(changes, tmp_path, trap):
    """With hostile cards, and with weights that are a pickle."""
    card = CARD | changes if isinstance(changes, dict) else changes
    (tmp_path / "card.json").write_text(json.dumps(card))
    trap.module(tmp_path / "evilmod.py")
    for disguise in (trap.pickle, trap.raw_pickle):
        disguise(tmp_path / "flow.safetensors")
        with pytest.raises(ValueError, match=r"The fitted flow in .* cannot be used \(.*\); fit it again"):
            load_fitted(tmp_path)


def test_the_trunk_of_lpips_is_tensors(tmp_path, trap, monkeypatch):
    trap.raw_pickle(tmp_path / "trunk")
    monkeypatch.setenv(LPIPS_TRUNK, str(tmp_path / "trunk"))
    lpips_network.cache_clear()
    with pytest.raises(ValueError, match="holds no AlexNet convolutions"):
        lpips_network()


def test_results_are_tensors(tmp_path, trap):
    trap.raw_pickle(tmp_path / "result.safetensors")
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(SafetensorError):
        Result.load(tmp_path)


RECORDS = (
    {"tool": CALL, "key": "k", "outputs": CALL},
    {"key": "k", "outputs": {"../evil.py": "0" * 64, "/etc/passwd": "0" * 64}},
    {"key": "k", "outputs": ["../evil.py", ["evil"], 3]},
)


@pytest.mark.parametrize("record", RECORDS)
def test_what_a_record_names_is_neither_run_nor_opened(record, tmp_path, trap):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record))
    assert read_record(path) == record
    assert not is_done(path, "k", [tmp_path / "a.png"])
    path.write_text("!!python/object/apply:os.system ['touch ../mark']")
    assert read_record(path) == {}


TEXTS = (
    *(CALL, "blur(sigma={})", "{}()", "os.system", "os.system(command='touch ../mark')", "evilmod", "evilmod(x=1)"),
    *("blur(sigma=[{} for _ in [1]])", "blur(sigma=f'{{{}}}')", "blur(sigma=(lambda: {})())", "blur(**{})"),
    *("blur(__class__={})", "identity(x=evilmod.X)", "dps(step_size={})", "mmdflow(folder={})", "rsd(network={})"),
)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_not_called(text, trap):
    text = text.replace("{}", CALL).replace("{{", "{").replace("}}", "}")
    for table, kind in ((OPERATORS, "operator"), (SOLVERS, "solver")):
        with pytest.raises(ValueError, match=r"Cannot read|Unknown|must be named|has no field"):
            parse_spec(text, table, kind)
    with pytest.raises(ValueError, match=r"Cannot read|Unknown|must be named|has no field"):
        build_solver(text)


YAML = (
    "!!python/object/apply:os.system ['touch ../mark']",
    "prior: !!python/name:evilmod.X\nseed: 0\nsteps: 1\nsamples: 1\ntasks: []",
    "prior: !!python/module:evilmod\nseed: 0\nsteps: 1\nsamples: 1\ntasks: []",
    "!!python/object/new:evilmod.X []",
    f'{{prior: natural, seed: 0, steps: 1, samples: 1, tasks: [{{name: a, title: a, operator: "{CALL}", sigma: 0, '
    "methods: []}]}",
    "{prior: natural, seed: 0, steps: 1, samples: 1, tasks: [{name: ../a, title: a, operator: identity, sigma: 0, "
    "methods: [evilmod]}]}",
    "{prior: natural, seed: 0, steps: 1, samples: 1, tasks: [{name: a, title: a, operator: identity, sigma: 0, "
    "methods: ['evilmod.X(a=1)']}]}",
)


@pytest.mark.parametrize("text", YAML)
def test_recipes_name_no_code(text, tmp_path, trap, scripts):
    from recipe import load_recipe

    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match="is not a recipe"):
        load_recipe(tmp_path / "a.yaml")
