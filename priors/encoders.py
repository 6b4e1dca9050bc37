"""Networks and tokenizers of transformers from a folder, each by a class of our own list.

Transformers is given no folder to look into: it gets a config made of the fields listed here, the tensors of the
safetensors files, and a copy of the vocabulary.  What else a folder names (classes, code, adapters, kernels of
attention, quantisers, templates) is not read, so that no version of a library can act on it.
"""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import check_counts, quiet_diffusers, read_json, reading, weight_files

__all__ = ["TRANSFORMERS", "check_parts", "load_encoders", "load_tokenizer", "load_transformer"]

CLIP_TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range"),
    *("initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id"),
)
T5 = (
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "feed_forward_proj"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate", "layer_norm_epsilon"),
    *("initializer_factor", "is_encoder_decoder", "tie_word_embeddings", "pad_token_id", "eos_token_id"),
)
GEMMA2 = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "hidden_activation", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "attention_dropout"),
    *("query_pre_attn_scalar", "sliding_window", "layer_types", "final_logit_softcapping", "attn_logit_softcapping"),
    *("use_bidirectional_attention", "pad_token_id", "bos_token_id", "eos_token_id"),
)
VISION = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "initializer_range", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels"),
)
VIT = (*VISION, "intermediate_size", "hidden_dropout_prob", "attention_probs_dropout_prob", "qkv_bias")
DINO = (
    *(*VISION, "mlp_ratio", "hidden_dropout_prob", "attention_probs_dropout_prob", "qkv_bias", "layerscale_value"),
    *("drop_path_rate", "use_swiglu_ffn", "use_mask_token", "num_register_tokens"),
)
DINO3 = (
    *(*VISION, "intermediate_size", "attention_dropout", "rope_theta", "query_bias", "key_bias", "value_bias"),
    *("proj_bias", "mlp_bias", "layerscale_value", "drop_path_rate", "use_gated_mlp", "num_register_tokens"),
    *("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"),
)
TRANSFORMERS: dict[str, tuple[str, ...]] = {  # class of transformers -> the fields of its config.json that are read
    "CLIPTextModel": CLIP_TEXT,
    "CLIPTextModelWithProjection": CLIP_TEXT,
    "T5EncoderModel": T5,
    "Gemma2Model": GEMMA2,
    "ViTModel": VIT,
    "Dinov2Model": DINO,
    "Dinov2WithRegistersModel": DINO,
    "DINOv3ViTModel": DINO3,
}
OPTIONS: dict[str, dict[str, Any]] = {"ViTModel": {"add_pooling_layer": False}}  # many checkpoints have none

CLIP_PART, PROJECTED_PART = ("CLIPTextModel", "CLIPTokenizer"), ("CLIPTextModelWithProjection", "CLIPTokenizer")
T5_PART = ("T5EncoderModel", "T5Tokenizer")
PARTS: dict[str, dict[str, tuple[str, str]]] = {  # pipeline -> ending of its parts' names -> encoder, tokenizer
    "StableDiffusionPipeline": {"": CLIP_PART},
    "StableDiffusionXLPipeline": {"": CLIP_PART, "_2": PROJECTED_PART},
    "StableDiffusion3Pipeline": {"": PROJECTED_PART, "_2": PROJECTED_PART, "_3": T5_PART},
    "FluxPipeline": {"": CLIP_PART, "_2": T5_PART},
    "SanaPipeline": {"": ("Gemma2Model", "GemmaTokenizer")},
}
ALSO = {  # other names in a model_index.json of what is loaded by the class
    "Gemma2Model": ("Gemma2ForCausalLM",),
    **{name: (f"{name}Fast",) for name in ("CLIPTokenizer", "T5Tokenizer", "GemmaTokenizer")},
}
VOCABULARY = ("vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json", "spiece.model", "tokenizer.model")
TOKENS = (
    *(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")),
    *("additional_special_tokens", "extra_special_tokens"),
)
TOKENIZER = (
    *TOKENS,
    *("added_tokens_decoder", "model_max_length", "padding_side", "truncation_side", "add_prefix_space", "errors"),
    *("do_lower_case", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "extra_ids", "legacy"),
)


def check_parts(folder: Path, pipeline: str) -> None:
    """Refuse text encoders without their tokenizer, and parts of other classes than the pipeline's.

    Arguments:
        folder: of a diffusers pipeline.
        pipeline: a name of `PARTS`.

    Raises:
        ValueError: there is such a one.
    """
    index = read_json(folder / "model_index.json", folder)
    if not isinstance(index.get("_class_name", ""), str):
        raise ValueError(
            f"model_index.json in {folder} names a pipeline with code of its own ({index['_class_name']!r}), which is "
            "not run; download the prior from where it was published as a diffusers pipeline."
        )
    known = {
        f"{kind}{ending}": classes[k]
        for ending, classes in PARTS[pipeline].items()
        for k, kind in enumerate(("text_encoder", "tokenizer"))
    }
    for name, part in index.items():
        if name.startswith(("text_encoder", "tokenizer")) and part != [None, None]:
            if name not in known:
                raise ValueError(f"model_index.json in {folder} has {name}, and the {pipeline} has none.")
            if part not in [["transformers", kind] for kind in (known[name], *ALSO.get(known[name], ()))]:
                raise ValueError(
                    f"model_index.json in {folder} has {part!r} for {name}; the {pipeline} has "
                    f"{['transformers', known[name]]}: download the prior again."
                )
    for ending in PARTS[pipeline]:
        encoder, tokenizer = f"text_encoder{ending}", f"tokenizer{ending}"
        if (folder / encoder).is_dir() and encoder in index and not any((folder / tokenizer).glob("*")):
            raise ValueError(f"{folder} has {encoder} without {tokenizer}; download the prior again.")


def load_encoders(folder: Path, pipeline: str, dtype: torch.dtype) -> Any:
    """The pipeline of that class with its text encoders and tokenizers, and nothing else.

    Arguments:
        folder: of a diffusers pipeline that `check_parts` let pass.
        pipeline: a name of `PARTS`.
        dtype: of the encoders.

    Raises:
        ValueError: a part is missing or damaged.
    """
    import diffusers

    kind = getattr(diffusers, pipeline)
    index = read_json(folder / "model_index.json", folder)
    parts: dict[str, Any] = {"add_watermarker": False, "requires_safety_checker": False}
    for ending, (encoder, tokenizer) in PARTS[pipeline].items():
        if index.get(f"text_encoder{ending}", [None, None]) != [None, None]:
            parts[f"text_encoder{ending}"] = load_transformer(encoder, folder / f"text_encoder{ending}", dtype)
            parts[f"tokenizer{ending}"] = load_tokenizer(tokenizer, folder / f"tokenizer{ending}")
    wanted = inspect.signature(kind).parameters
    others = {name: None for name, parameter in wanted.items() if parameter.default is parameter.empty}
    with quiet_diffusers():
        return kind(**others | {name: part for name, part in parts.items() if name in wanted})


def load_transformer(name: str, folder: Path, dtype: torch.dtype) -> Any:
    """A network of transformers from the folder with its config.json and its weights as safetensors.

    Arguments:
        name: its class, a name of `TRANSFORMERS`.
        folder: as `save_pretrained` wrote it.
        dtype: of the network.

    Raises:
        ValueError: the weights are missing, damaged or those of another network.
    """
    import transformers

    kind, config = getattr(transformers, name), read_json(folder / "config.json", folder)
    fields = {field: config[field] for field in TRANSFORMERS[name] if field in config}
    files = weight_files(folder)
    check_counts(config, folder)
    with reading(folder, f"the weights of the {name} that its config.json describes"):
        network, loading = kind.from_pretrained(
            None, config=kind.config_class(**fields), state_dict=_tensors(files), dtype=dtype,
            output_loading_info=True, **OPTIONS.get(name, {}),
        )  # fmt: skip
        if wrong := [*loading["missing_keys"], *loading["mismatched_keys"]]:
            raise ValueError(f"{len(wrong)} tensors are missing or of another shape, such as {min(map(str, wrong))}")
    return network


def load_tokenizer(name: str, folder: Path) -> Any:
    """A tokenizer of transformers from the vocabulary in a folder.

    Arguments:
        name: its class, one of `PARTS`.
        folder: as `save_pretrained` wrote it.

    Raises:
        ValueError: the vocabulary is missing or damaged.
    """
    import transformers

    fields = _fields(folder, "tokenizer_config.json", TOKENIZER)
    tokens = _fields(folder, "special_tokens_map.json", TOKENS)
    with reading(folder, f"the vocabulary of a {name}"), tempfile.TemporaryDirectory() as work:
        for file in VOCABULARY:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, Path(work) / file)
        (Path(work) / "tokenizer_config.json").write_text(json.dumps(fields))
        if tokens:
            (Path(work) / "special_tokens_map.json").write_text(json.dumps(tokens))
        return getattr(transformers, name).from_pretrained(work, local_files_only=True)


def _fields(folder: Path, file: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    """The known fields of a JSON file, which may be missing."""
    content = read_json(folder / file, folder) if (folder / file).is_file() else {}
    if isinstance(content.get("extra_special_tokens"), dict):
        del content["extra_special_tokens"]  # names of attributes, and tokens of other models
    return {field: content[field] for field in known if field in content}


def _tensors(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of these files."""
    from safetensors.torch import load_file

    return {name: tensor for file in files for name, tensor in load_file(file).items()}
