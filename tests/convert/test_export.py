"""transformers opens our exports and we open its folders, with the same logits on both sides."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_models import assert_equal_trees, random_params, small_config
from tolerances import LOGITS_ATOL
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CwmForCausalLM,
    GenerationConfig,
)

from convert import load_hf, save_hf
from convert.__main__ import main
from cwm_jax.config import RopeParameters
from cwm_jax.model.transformer import forward, separate_layers
from cwm_jax.tokenizer import train_tokenizer

PLAIN = RopeParameters(rope_theta=1000.0)


def largest_difference(model, config, params) -> float:
    """Of logits on a prompt of five windows."""
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(2, 5 * 8 + 3))
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    ours = jax.jit(forward, static_argnums=1)(params, config, jnp.asarray(tokens))
    assert theirs.std() > 0.5
    return float(np.abs(theirs - ours).max())


@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000], ids=["single", "sharded"])
@pytest.mark.parametrize("rope", [PLAIN, small_config().rope_parameters], ids=["plain", "llama3"])
def test_auto_model_opens_an_export(tmp_path, max_shard_bytes, rope):
    config = small_config(10, rope_parameters=rope)
    params = random_params(config)
    save_hf(tmp_path / "export", config, params, max_shard_bytes=max_shard_bytes)
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", output_loading_info=True, attn_implementation="eager"
    )
    assert isinstance(model, CwmForCausalLM)
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    assert model.config.layer_types == list(config.layer_types)
    assert model.config.sliding_window == config.sliding_window
    assert model.config.rope_parameters["rope_type"] == rope.rope_type
    assert largest_difference(model, config, params) <= LOGITS_ATOL


@pytest.mark.parametrize("max_shard_size", ["5GB", "30KB"], ids=["single", "sharded"])
def test_a_folder_by_save_pretrained_is_opened(tmp_path, max_shard_size):
    config = small_config(10)
    params = random_params(config)
    save_hf(tmp_path / "ours", config, params)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    model.save_pretrained(tmp_path / "theirs", max_shard_size=max_shard_size)
    assert "transformers_version" in json.loads((tmp_path / "theirs" / "config.json").read_text())
    loaded_config, loaded = load_hf(tmp_path / "theirs")
    assert loaded_config == config
    assert_equal_trees(loaded, params)
    assert largest_difference(model, loaded_config, loaded) <= LOGITS_ATOL


def test_bfloat16_export_is_opened_as_bfloat16(tmp_path):
    config = small_config(8)
    save_hf(tmp_path / "hf", config, random_params(config))
    for name, arguments in (("from-hf", ["hf", "c"]), ("to-hf", ["c", "export"])):
        paths = [str(tmp_path / path) for path in arguments]
        assert main([name, *paths, "--dtype", "bfloat16"]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype="auto")
    assert model.dtype == torch.bfloat16
    _, params = load_hf(tmp_path / "export", "float32")
    assert largest_difference(model.float(), config, params) <= LOGITS_ATOL


def test_config_json_has_both_spellings_of_rope(tmp_path):
    config = small_config(10)
    save_hf(tmp_path / "export", config, random_params(config))
    written = json.loads((tmp_path / "export" / "config.json").read_text())
    rope = dict(written["rope_parameters"])
    assert written["rope_theta"] == rope.pop("rope_theta") == 1000.0
    assert written["rope_scaling"] == rope
    assert rope["rope_type"] == "llama3"
    assert written["dtype"] == written["torch_dtype"] == "float32"
    assert written["layer_types"] == list(config.layer_types)


def test_generation_defaults_are_the_reports(tmp_path):
    config = small_config(8, pad_token_id=3)
    save_hf(tmp_path / "export", config, random_params(config))
    loaded = GenerationConfig.from_pretrained(tmp_path / "export")
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, [1, 2], 3)
    assert (loaded.do_sample, loaded.temperature, loaded.top_p) == (True, 1.0, 0.95)


def test_auto_tokenizer_opens_an_export(tmp_path):
    tokenizer = train_tokenizer(["def add(a, b):\n    return a + b\n"] * 4, 520)
    config = small_config(8, vocab_size=600)
    save_hf(tmp_path / "export", config, random_params(config), tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "export")
    text = "def add(x, y):\n    return x + y"
    assert loaded.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert loaded.model_max_length == config.max_position_embeddings


def test_an_export_of_layers_apart_is_the_same(tmp_path):
    config = small_config()
    params = random_params(config)
    save_hf(tmp_path / "stacked", config, params)
    save_hf(tmp_path / "apart", config, separate_layers(params, config))
    for path in (tmp_path / "stacked").iterdir():
        assert path.read_bytes() == (tmp_path / "apart" / path.name).read_bytes()
