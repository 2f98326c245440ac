"""``params.json`` of Meta's checkpoints to and from our architecture.

Source: formats, B3 and B4 (the fields of ``TransformerArgs`` and the formulas over them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.folders import read_json
from convert.names import ConversionError
from cwm_jax.config import ModelConfig, RopeParameters
from cwm_jax.config.architecture import FULL_ATTENTION, SLIDING_ATTENTION
from cwm_jax.config.schema import nearest_hint
from cwm_jax.tokenizer import Tokenizer

PARAMS_FILE = "params.json"
_REQUIRED = object()
# Fields that would change the computation, with the only value this architecture has.
_FIXED = {
    "attn_impl": "xformers",
    "q_lora_rank": 0,
    "kv_lora_rank": 0,
    "weight_tying": False,
    "qkv_biases": False,
    "qk_norm": False,
}
# Fields of the model with Meta's defaults. Required here although Meta's code has a default: what
# differs between published configurations or from the released model.
_MODEL = {
    "dim": _REQUIRED,
    "n_layers": _REQUIRED,
    "n_heads": _REQUIRED,
    "vocab_size": _REQUIRED,
    "max_seq_len": _REQUIRED,
    "norm_eps": _REQUIRED,
    "pos_embed_impl": _REQUIRED,
    "rope_theta": _REQUIRED,
    "window_attn": _REQUIRED,
    "n_kv_heads": None,
    "head_dim": None,
    "ffn_dim_multiplier": None,
    "ffn_exp": 4,
    "multiple_of": 256,
    "scaled_rope": {},
    "attn_bias_type": None,  # of training; Meta's inference does not read it
    "qk_nope_head_dim": 128,  # of latent attention, which is off
    "qk_rope_head_dim": 64,
    **_FIXED,
}
_COUNTS = ("dim", "n_layers", "n_heads", "vocab_size", "max_seq_len", "ffn_exp", "multiple_of")
_WINDOW = {
    "window_pattern": _REQUIRED,
    "global_last_layer": _REQUIRED,
    "local_window": None,
    "global_window": None,
}
_SCALED_ROPE = {
    "scale_factor": _REQUIRED,
    "old_context_len": _REQUIRED,
    "low_freq_factor": _REQUIRED,
    "high_freq_factor": _REQUIRED,
    "use_attn_scale": False,
}
RELEASED_VOCAB_SIZE = 128_256  # formats, B3
_MAX_MULTIPLE = 4096
# What a multiplier is rounded to, if that gives the width: 1.3 for the 32B model (assumed).
_MULTIPLIER_DIGITS = range(1, 7)


# ---------------------------------------------------------------- reading


def read_params(folder: Path, tokenizer: Tokenizer | None) -> ModelConfig:
    """The architecture in ``params.json``; ids of special tokens, which it lacks, by the tokenizer.

    Keys beside ``model`` (of the run that made the weights) are left alone, as Meta's code does.

    Raises:
        ConversionError: no such file, no ``window_attn``, an unknown or missing key, or a value
            that this architecture does not have.
    """
    file = folder / PARAMS_FILE
    if not file.is_file():
        raise ConversionError(f"{folder} has no {PARAMS_FILE}; expected Meta's layout")
    try:
        return model_from_params(read_json(file), tokenizer)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConversionError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error


def model_from_params(params: Mapping[str, Any], tokenizer: Tokenizer | None) -> ModelConfig:
    """As ``read_params``, for its content."""
    if not isinstance(params.get("model"), dict):
        raise ValueError("no 'model' with the fields of TransformerArgs")
    if params["model"].get("window_attn") is None:
        raise ValueError(
            "model has no window_attn; which layers are global is never guessed: write its "
            "window_pattern, local_window and global_last_layer"
        )
    model = _fields(params["model"], _MODEL, "model")
    for name, only in _FIXED.items():
        if model[name] != only and model[name] is not None:
            raise ValueError(f"model.{name} is {model[name]!r}; this architecture has {only!r}")
    for name in _COUNTS:
        if type(model[name]) is not int or model[name] < 1:
            raise ValueError(f"model.{name} is {model[name]!r}; expected a number from 1 on")
    layer_types, sliding_window = _layers(model)
    return ModelConfig(
        vocab_size=model["vocab_size"],
        hidden_size=model["dim"],
        intermediate_size=intermediate_size(
            model["dim"], model["ffn_exp"], model["ffn_dim_multiplier"], model["multiple_of"]
        ),
        num_hidden_layers=model["n_layers"],
        num_attention_heads=model["n_heads"],
        num_key_value_heads=_or(model["n_kv_heads"], model["n_heads"]),
        head_dim=_or(model["head_dim"], model["dim"] // model["n_heads"]),
        layer_types=layer_types,
        sliding_window=sliding_window,
        rope_parameters=_rope(model),
        rms_norm_eps=float(model["norm_eps"]),
        max_position_embeddings=model["max_seq_len"],
        **_special_ids(model["vocab_size"], tokenizer),
    )


def intermediate_size(dim: int, ffn_exp: int, multiplier: float | None, multiple_of: int) -> int:
    """Meta's formula for the width of the SwiGLU."""
    width = int(2 * (ffn_exp * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * math.ceil(width / multiple_of)


def layer_types(num_layers: int, pattern: int, last_global: bool) -> tuple[str, ...]:
    """Meta's rule: layers 0, pattern, 2 pattern, ... and perhaps the last are global."""
    return tuple(
        FULL_ATTENTION
        if i % pattern == 0 or (last_global and i == num_layers - 1)
        else SLIDING_ATTENTION
        for i in range(num_layers)
    )


def _layers(model: dict[str, Any]) -> tuple[tuple[str, ...], int | None]:
    window = _fields(model["window_attn"], _WINDOW, "model.window_attn")
    pattern, last_global = window["window_pattern"], window["global_last_layer"]
    if type(pattern) is not int or pattern < 1 or type(last_global) is not bool:
        raise ValueError(
            f"model.window_attn has window_pattern {pattern!r} and global_last_layer "
            f"{last_global!r}; expected a number from 1 on and true or false"
        )
    limit = window["global_window"]
    if limit is not None and limit < model["max_seq_len"]:
        raise ValueError(
            f"model.window_attn.global_window is {limit}, less than max_seq_len "
            f"({model['max_seq_len']}); global layers have no window here: if shorter contexts "
            "will do, lower max_seq_len to it"
        )
    return layer_types(model["n_layers"], pattern, last_global), window["local_window"]


def _rope(model: dict[str, Any]) -> RopeParameters:
    theta = float(model["rope_theta"])
    if model["pos_embed_impl"] == "rope":
        return RopeParameters(rope_theta=theta)
    if model["pos_embed_impl"] != "scaled_rope":
        raise ValueError(
            f"model.pos_embed_impl is {model['pos_embed_impl']!r}; expected 'rope' or 'scaled_rope'"
        )
    scaled = _fields(model["scaled_rope"], _SCALED_ROPE, "model.scaled_rope")
    if scaled["use_attn_scale"]:
        raise ValueError("model.scaled_rope.use_attn_scale is true; this architecture has none")
    return RopeParameters(
        rope_theta=theta,
        rope_type="llama3",
        factor=float(scaled["scale_factor"]),
        low_freq_factor=float(scaled["low_freq_factor"]),
        high_freq_factor=float(scaled["high_freq_factor"]),
        original_max_position_embeddings=scaled["old_context_len"],
    )


def _fields(found: Any, known: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every known field, with the default where it is absent."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {found!r}; expected its keys and values")
    for name in found:
        if name not in known:
            raise ValueError(
                f"{where} has an unknown key {name!r}{nearest_hint(name, known)}; refused because "
                "it may change the computation"
            )
    missing = [
        name for name, default in known.items() if default is _REQUIRED and name not in found
    ]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return {name: found.get(name, default) for name, default in known.items()}


def _special_ids(vocab_size: int, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Without a tokenizer the released model's, where the vocabulary has them."""
    if tokenizer is not None:
        return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tuple(sorted(tokenizer.stop_ids))}
    if vocab_size >= RELEASED_VOCAB_SIZE:
        return {}
    return {"bos_token_id": None, "eos_token_id": None}


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


# ---------------------------------------------------------------- writing


def params_from_model(config: ModelConfig) -> dict[str, Any]:
    """The content of ``params.json``; ``model_from_params`` gives the architecture back.

    Raises:
        ConversionError: an architecture that Meta's code cannot express, and why.
    """
    if config.hidden_size % config.num_attention_heads:
        raise ConversionError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"({config.num_attention_heads}), which Meta's code asks for"
        )
    pattern, last_global = window_pattern(config.layer_types)
    ffn_exp, multiplier, multiple_of = _ffn(config.hidden_size, config.intermediate_size)
    model = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_seq_len": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": multiplier,
        "ffn_exp": ffn_exp,
        "multiple_of": multiple_of,
        "norm_eps": config.rms_norm_eps,
        **_rope_params(config.rope_parameters),
        "window_attn": {
            "window_pattern": pattern,
            "global_window": None,
            "local_window": config.sliding_window,
            "global_last_layer": last_global,
        },
        **_FIXED,
    }
    # A null path means tokenizer.model beside this file.
    return {"model": model, "tokenizer": {"name": "cwm_instruct", "path": None}}


def window_pattern(kinds: tuple[str, ...]) -> tuple[int, bool]:
    """(window_pattern, global_last_layer) that give these kinds of layers.

    Raises:
        ConversionError: no pattern does.
    """
    for pattern in range(1, len(kinds) + 1):
        for last_global in (False, True):
            if layer_types(len(kinds), pattern, last_global) == kinds:
                return pattern, last_global
    if kinds[0] != FULL_ATTENTION:
        why = "layer 0 is local, and Meta's window_attn makes it global"
    else:
        pattern = kinds.index(FULL_ATTENTION, 1) if FULL_ATTENTION in kinds[1:] else len(kinds)
        expected = layer_types(len(kinds), pattern, kinds[-1] == FULL_ATTENTION)
        odd = next(i for i, kind in enumerate(kinds) if kind != expected[i])
        why = f"layers 0 and {pattern} are global, so every {pattern}th would be, but {odd} differs"
    raise ConversionError(f"layer_types cannot be written as window_attn: {why}")


def _ffn(dim: int, width: int) -> tuple[int, float | None, int]:
    """(ffn_exp, ffn_dim_multiplier, multiple_of) whose formula gives the width, short numbers."""
    plain = intermediate_size(dim, 4, None, 1)
    multiple_of = min(width & -width, _MAX_MULTIPLE)  # the power of two in it
    rounded = [round(width / plain, digits) for digits in _MULTIPLIER_DIGITS]
    candidates = [(None, multiple_of), *((m, multiple_of) for m in rounded)]
    candidates.append(((width + 0.5) / plain, 1))
    for multiplier, multiple in candidates:
        if intermediate_size(dim, 4, multiplier, multiple) == width:
            return 4, multiplier, multiple
    raise ConversionError(f"no ffn_dim_multiplier gives intermediate_size {width} from dim {dim}")


def _rope_params(rope: RopeParameters) -> dict[str, Any]:
    if rope.rope_type == "default":
        return {"pos_embed_impl": "rope", "rope_theta": rope.rope_theta}
    scaled = {
        "scale_factor": rope.factor,
        "old_context_len": rope.original_max_position_embeddings,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
    }
    for name, value in scaled.items():
        if value != int(value) or (name == "scale_factor" and value == 1):
            raise ConversionError(
                f"rope_parameters: {name} would be {value}; Meta's code takes whole numbers, and "
                "no scale_factor of 1"
            )
        scaled[name] = int(value)
    return {
        "pos_embed_impl": "scaled_rope",
        "rope_theta": rope.rope_theta,
        "scaled_rope": scaled | {"use_attn_scale": False},
    }
