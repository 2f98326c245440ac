"""Meta's native layout: bit-equal round trips, PyTorch's own reader and writer, equal logits."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import meta_models
import numpy as np
import pytest
import torch
from small_models import assert_equal_trees, random_params, small_config
from tiny import tiny_model, tiny_run
from tolerances import LOGITS_ATOL

import convert.sources
from configs import cwm_32b, cwm_32b_last_global
from convert import load_hf, save_hf
from convert.__main__ import main
from convert.meta.params import intermediate_size, model_from_params, params_from_model
from convert.names import weights
from cwm_jax.config import MeshConfig, RopeParameters, layer_types_3_to_1
from cwm_jax.model.transformer import forward, logical_axes
from cwm_jax.sharding import make_mesh, tree_shardings
from cwm_jax.tokenizer import load_tokenizer, train_tokenizer
from cwm_jax.training import checkpoint

PLAIN = RopeParameters(rope_theta=1000.0)


def meta_config(num_layers: int = 10, **changes):
    """Without ids of special tokens, for which params.json has no place."""
    return small_config(num_layers, **({"bos_token_id": None, "eos_token_id": None} | changes))


def run(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def make_meta(folder, config, dtype="float32", *options):
    """hf/, checkpoint/ and meta/ of random weights; returns the parameters."""
    params = random_params(config, dtype)
    save_hf(folder / "hf", config, params)
    run("from-hf", folder / "hf", folder / "checkpoint")
    run("to-meta", folder / "checkpoint", folder / "meta", *options)
    return params


@pytest.mark.parametrize(
    ("num_layers", "dtype"),
    [(8, "float32"), (10, "bfloat16")],
    ids=["last-local", "last-global"],
)
def test_from_hf_and_back_by_way_of_meta(tmp_path, monkeypatch, num_layers, dtype):
    monkeypatch.setattr(convert.sources, "BLOCK_BYTES", 1000)  # several chunks in a tensor
    config = meta_config(num_layers)
    options = ("--max-shard-bytes", 30_000, "--workers", 3)
    params = make_meta(tmp_path, config, dtype, *options)
    names = sorted(path.name for path in (tmp_path / "meta").iterdir())
    assert len([name for name in names if name.endswith(".distcp")]) > 1
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "params.json", "checklist.chk"} < {*names}
    run("from-meta", tmp_path / "meta", tmp_path / "again", "--workers", 2)
    run("to-hf", tmp_path / "again", tmp_path / "hf2")
    for path in (tmp_path / "hf").iterdir():
        assert (tmp_path / "hf2" / path.name).read_bytes() == path.read_bytes(), path.name
    assert_equal_trees(load_hf(tmp_path / "hf2")[1], params)
    for folder in ("hf", "checkpoint", "again"):
        run("check", tmp_path / "meta", tmp_path / folder)


def test_pytorch_loads_an_export(tmp_path, monkeypatch):
    monkeypatch.setattr(convert.sources, "BLOCK_BYTES", 1000)
    config = meta_config()
    make_meta(tmp_path, config, "bfloat16", "--max-shard-bytes", 30_000)
    state = meta_models.load_state(tmp_path / "meta")
    source = {w.hf_name: w for w in weights(config)}
    assert state.keys() == {w.meta_name.removeprefix("model.") for w in source.values()}
    from safetensors.torch import load_file

    for name, tensor in load_file(tmp_path / "hf" / "model.safetensors").items():
        found = state[source[name].meta_name.removeprefix("model.")]
        assert found.dtype == torch.bfloat16
        if not source[name].rotated:
            assert torch.equal(found, tensor), name
            continue
        for meta_row in range(len(tensor)):  # row 2i + c of a head is row c * H/2 + i
            head, (i, c) = meta_row // 8, divmod(meta_row % 8, 2)
            assert torch.equal(found[meta_row], tensor[head * 8 + c * 4 + i]), name


@pytest.mark.parametrize("how", ["one process", "two processes"])
def test_a_checkpoint_written_by_pytorch_is_read(tmp_path, how):
    config = meta_config(8, vocab_size=97)  # two processes divide its rows unevenly
    params = make_meta(tmp_path, config)
    state = meta_models.load_state(tmp_path / "meta")
    theirs = tmp_path / "theirs"
    if how == "one process":
        meta_models.save_state(theirs, state)
    else:
        meta_models.save_state_sharded(theirs, state, tmp_path)
        assert len(list(theirs.glob("*.distcp"))) == 2
    (theirs / "params.json").write_bytes((tmp_path / "meta" / "params.json").read_bytes())
    run("from-meta", theirs, tmp_path / "ours")
    run("to-hf", tmp_path / "ours", tmp_path / "hf2")
    assert_equal_trees(load_hf(tmp_path / "hf2")[1], params)


@pytest.mark.parametrize("last_global", [False, True])
@pytest.mark.parametrize("rope", [PLAIN, small_config().rope_parameters], ids=["plain", "scaled"])
def test_logits_equal_those_of_metas_convention(tmp_path, rope, last_global):
    """Of five windows: they prove the order of q's and k's rows, the layer kinds and RoPE."""
    kinds = layer_types_3_to_1(2, last_global=last_global)
    config = meta_config(2, layer_types=kinds, rope_parameters=rope)
    make_meta(tmp_path, config)
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(2, 5 * 8 + 3))
    theirs = meta_models.logits(tmp_path / "meta", torch.from_numpy(tokens)).numpy()
    assert theirs.std() > 0.5
    run("from-meta", tmp_path / "meta", tmp_path / "ours")
    run("to-hf", tmp_path / "ours", tmp_path / "hf2")
    loaded_config, params = load_hf(tmp_path / "hf2")
    ours = jax.jit(forward, static_argnums=1)(params, loaded_config, jnp.asarray(tokens))
    assert np.abs(theirs - ours).max() <= LOGITS_ATOL


def test_the_tokenizer_travels_as_ranks(tmp_path):
    tokenizer = train_tokenizer(["def add(a, b):\n    return a + b\n"] * 4, 520)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tuple(sorted(tokenizer.stop_ids))}
    config = small_config(8, vocab_size=tokenizer.vocab_size, **ids)
    save_hf(tmp_path / "hf", config, random_params(config), tokenizer)
    run("from-hf", tmp_path / "hf", tmp_path / "checkpoint")
    run("to-meta", tmp_path / "checkpoint", tmp_path / "meta")
    written = load_tokenizer(tmp_path / "meta" / "tokenizer.model")
    assert written.fingerprint == tokenizer.fingerprint
    run("from-meta", tmp_path / "meta", tmp_path / "again")
    assert load_tokenizer(tmp_path / "again" / "tokenizer").fingerprint == tokenizer.fingerprint
    run("check", tmp_path / "again", tmp_path / "hf")  # ids of special tokens too


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 1000], ids=["whole-shards", "chunks"])
def test_a_sharded_training_checkpoint_is_exported(tmp_path, monkeypatch, chunk_bytes):
    """Eight devices over fsdp, context and tensor; blocks smaller than a chunk's rows too."""
    monkeypatch.setattr(checkpoint, "_MIN_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(checkpoint, "_MAX_CHUNK_BYTES", 4 * chunk_bytes)
    monkeypatch.setattr(convert.sources, "BLOCK_BYTES", 300)
    mesh_config = MeshConfig(data=1, fsdp=2, context=2, tensor=2)
    tokenizer = train_tokenizer(["def add(a, b):\n    return a + b\n"] * 4, 520)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tuple(sorted(tokenizer.stop_ids))}
    model = tiny_model(num_hidden_layers=9, **ids)
    run_config = tiny_run(tmp_path, mesh=mesh_config, model=model)
    params = random_params(run_config.model)
    shardings = tree_shardings(make_mesh(mesh_config), logical_axes(run_config.model), params)
    sharded = jax.device_put(params, shardings)
    saver = checkpoint.Checkpointer(
        tmp_path / "run" / "checkpoints", run_config.checkpoint, tokenizer
    )
    state = {"params": sharded, "opt_state": {"mu": sharded}}
    saver.save(state, checkpoint.RunRecord(3, run_config, ((0, 64),), {}))
    saver.close()
    run("to-hf", tmp_path / "run", tmp_path / "hf")
    assert_equal_trees(load_hf(tmp_path / "hf")[1], params)
    run("to-meta", tmp_path / "run", tmp_path / "meta")
    run("check", tmp_path / "meta", tmp_path / "run")
    embedding = tmp_path / "run/checkpoints/00000003/state/params.embed_tokens.embedding"
    num_chunks = len(list(embedding.glob("[0-9]*")))  # not one for each token of the vocabulary
    assert num_chunks == 8 if chunk_bytes == 1 << 20 else 8 < num_chunks < 100


@pytest.mark.parametrize("model", [cwm_32b.MODEL, cwm_32b_last_global.MODEL])
def test_params_of_the_32b_model(model):
    params = json.loads(json.dumps(params_from_model(model)))
    found = model_from_params(params, None)
    assert found == dataclasses.replace(model, pad_token_id=None)
    fields = params["model"]
    assert (fields["ffn_exp"], fields["ffn_dim_multiplier"], fields["multiple_of"]) == (
        4,
        1.3,
        1024,
    )
    assert fields["window_attn"]["window_pattern"] == 4
    assert fields["window_attn"]["global_last_layer"] == (model is cwm_32b_last_global.MODEL)
    assert fields["scaled_rope"]["scale_factor"] == 16


def test_every_width_of_the_mlp_has_a_formula():
    for dim in (24, 6144):
        for width in (1, 2, 39, 40, 255, 256, 12_345, 21_504, 99_991):
            config = meta_config(8, hidden_size=dim, intermediate_size=width)
            model = params_from_model(config)["model"]
            names = ("dim", "ffn_exp", "ffn_dim_multiplier", "multiple_of")
            assert intermediate_size(*(model[name] for name in names)) == width


def test_every_window_pattern_returns():
    kinds = {"g": "full_attention", "l": "sliding_attention"}
    for text in ("g", "gg", "gl", "gggg", "glll", "gllg", "glgl", "gllgl", "gllgll", "glllglllg"):
        layers = tuple(kinds[letter] for letter in text)
        config = meta_config(len(text), layer_types=layers)
        assert model_from_params(params_from_model(config), None) == config
