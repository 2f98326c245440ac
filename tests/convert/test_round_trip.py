"""Hugging Face -> ours -> Hugging Face is the identity on bits, in memory and by folder."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_models import assert_equal_trees, random_params, small_config

import convert.sources
from convert import load_hf, save_hf
from convert.__main__ import main
from convert.names import array_shapes, weights
from convert.sources import row_blocks
from cwm_jax.model.transformer import abstract_params
from cwm_jax.tokenizer import load_tokenizer, train_tokenizer
from cwm_jax.training.checksums import damage

LAYERS = pytest.mark.parametrize("num_layers", [8, 10], ids=["without-tail", "with-tail"])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@LAYERS
def test_names_table_covers_the_parameter_tree(num_layers):
    config = small_config(num_layers)
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config))
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves
    }
    assert array_shapes(config) == shapes
    names = [weight.hf_name for weight in weights(config)]
    assert len(names) == len(set(names)) == 9 * num_layers + 3


def test_directions_of_every_row_are_inverse():
    config = small_config()
    for weight in weights(config):
        rows = np.arange(np.prod(weight.hf_shape)).reshape(weight.hf_shape)
        ours = weight.ours_from_hf(rows)
        assert ours.shape == weight.shape
        np.testing.assert_array_equal(weight.hf_from_ours(ours), rows)


def test_kernels_are_input_first():
    config = small_config()
    (q,) = (w for w in weights(config) if w.hf_name == "model.layers.5.self_attn.q_proj.weight")
    assert (q.path, q.repeat) == ("layers.1.self_attn.q_proj.kernel", 1)
    rows = np.random.default_rng(0).normal(size=q.hf_shape)
    x = np.random.default_rng(1).normal(size=config.hidden_size)
    ours = np.einsum("d,dnh->nh", x, q.ours_from_hf(rows))
    np.testing.assert_allclose(ours.reshape(-1), rows @ x)


def test_blocks_are_bounded_whatever_the_chunks(monkeypatch):
    """A training checkpoint may cut a vocabulary along D alone: a chunk then has all rows."""
    (weight,) = (w for w in weights(small_config()) if w.hf_name == "lm_head.weight")
    row_bytes = 24 * 4
    monkeypatch.setattr(convert.sources, "BLOCK_BYTES", row_bytes)
    for unit_rows, expected in ((1, 1), (3, 3), (8, 8), (96, 8)):
        blocks = list(row_blocks(weight, 4, unit_rows))
        assert max(stop - start for start, stop in blocks) == expected
        assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
        assert blocks[-1][1] == 96


@LAYERS
@DTYPES
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000], ids=["single", "sharded"])
def test_in_memory(tmp_path, num_layers, dtype, max_shard_bytes):
    config = small_config(num_layers)
    params = random_params(config, dtype)
    save_hf(tmp_path / "hf", config, params, max_shard_bytes=max_shard_bytes)
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (max_shard_bytes == 10**9)
    loaded_config, loaded = load_hf(tmp_path / "hf")
    assert loaded_config == config
    assert_equal_trees(loaded, params)


@LAYERS
@DTYPES
@pytest.mark.parametrize("block_bytes", [1 << 25, 1000], ids=["whole", "in-blocks"])
def test_folder_to_folder(tmp_path, monkeypatch, num_layers, dtype, block_bytes):
    monkeypatch.setattr(convert.sources, "BLOCK_BYTES", block_bytes)
    config = small_config(num_layers)
    hf, checkpoint, again = (tmp_path / name for name in ("hf", "checkpoint", "again"))
    save_hf(hf, config, random_params(config, dtype), max_shard_bytes=30_000)
    assert main(["from-hf", str(hf), str(checkpoint)]) == 0
    assert damage(checkpoint) == []
    assert main(["to-hf", str(checkpoint), str(again), "--max-shard-bytes", "30000"]) == 0
    for path in hf.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    assert main(["check", str(hf), str(again)]) == 0
    assert main(["check", str(checkpoint), str(again)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "checkpoint", "hf"]


def test_in_memory_and_folder_to_folder_write_the_same_file(tmp_path):
    config = small_config()
    save_hf(tmp_path / "a", config, random_params(config))
    main(["from-hf", str(tmp_path / "a"), str(tmp_path / "c"), "--dtype", "bfloat16"])
    main(["to-hf", str(tmp_path / "c"), str(tmp_path / "b")])
    _, params = load_hf(tmp_path / "a", "bfloat16")
    save_hf(tmp_path / "d", config, params)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"


def test_dtype_rounds_like_jax(tmp_path):
    config = small_config(8)
    params = random_params(config)
    save_hf(tmp_path / "hf", config, params, dtype="bfloat16")
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert_equal_trees(load_hf(tmp_path / "hf")[1], expected)
    widened = jax.tree.map(lambda x: x.astype(jnp.float32), expected)
    assert_equal_trees(load_hf(tmp_path / "hf", "float32")[1], widened)


@LAYERS
def test_norms_may_have_another_dtype(tmp_path, num_layers):
    config = small_config(num_layers, hidden_size=27)  # odd, so that alignment could go wrong
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x if "scale" in str(path) else x.astype(jnp.bfloat16), random_params(config)
    )
    save_hf(tmp_path / "hf", config, params)
    assert_equal_trees(load_hf(tmp_path / "hf")[1], params)
    assert main(["from-hf", str(tmp_path / "hf"), str(tmp_path / "checkpoint")]) == 0
    assert main(["check", str(tmp_path / "checkpoint"), str(tmp_path / "hf")]) == 0


@LAYERS
@DTYPES
def test_orbax_restores_a_converted_checkpoint(tmp_path, monkeypatch, num_layers, dtype):
    monkeypatch.setattr(convert.sources, "BLOCK_BYTES", 1000)  # several chunks in a layer
    config = small_config(num_layers)
    params = random_params(config, dtype)
    save_hf(tmp_path / "hf", config, params)
    assert main(["from-hf", str(tmp_path / "hf"), str(tmp_path / "checkpoint")]) == 0
    state = tmp_path / "checkpoint" / "state"
    chunks = json.loads((state / "params.layers.0.mlp.up_proj.kernel" / ".zarray").read_text())
    assert chunks["chunks"][0] == 1
    assert chunks["chunks"][2] < chunks["shape"][2]
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        assert_equal_trees(checkpointer.restore(state), {"params": params})
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), {"params": params}
    )
    with ocp.StandardCheckpointer() as checkpointer:
        assert_equal_trees(checkpointer.restore(state, target), {"params": params})


@LAYERS
def test_a_checkpoint_written_by_orbax_is_exported(tmp_path, num_layers):
    from cwm_jax.training.checksums import write_checksums

    config = small_config(num_layers)
    params = random_params(config)
    folder = tmp_path / "run" / "checkpoints" / "00000007"
    folder.mkdir(parents=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        state = {"params": params, "opt_state": {"mu": params}, "step": jnp.int32(7)}
        checkpointer.save(folder / "state", args=ocp.args.PyTreeSave(state))
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    write_checksums(folder)
    for source, name in ((folder, "a"), (tmp_path / "run", "b")):
        assert main(["to-hf", str(source), str(tmp_path / name)]) == 0
        assert_equal_trees(load_hf(tmp_path / name)[1], params)


def test_the_tokenizer_travels(tmp_path):
    tokenizer = train_tokenizer(["def add(a, b):\n    return a + b\n"] * 4, 520)
    config = small_config(8, vocab_size=tokenizer.vocab_size)
    save_hf(tmp_path / "hf", config, random_params(config), tokenizer)
    main(["from-hf", str(tmp_path / "hf"), str(tmp_path / "checkpoint")])
    main(["to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "again")])
    for folder in ("hf", "checkpoint/tokenizer", "again"):
        found = load_tokenizer(tmp_path / folder)
        assert found.fingerprint == tokenizer.fingerprint
    for path in (tmp_path / "hf").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_check_reports_what_differs(tmp_path, capsys):
    config = small_config(8)
    params = random_params(config)
    save_hf(tmp_path / "a", config, params)
    params["layers"]["2"]["mlp"]["up_proj"]["kernel"] += jnp.zeros((2, 24, 40)).at[1, 3, 5].set(0.5)
    save_hf(tmp_path / "b", config, params)
    save_hf(tmp_path / "c", small_config(8, sliding_window=9), params, dtype="bfloat16")
    arguments = ["check", str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert "model.layers.6.mlp.up_proj.weight" in shown
    assert "largest difference 0.5" in shown
    assert "1 difference" in shown
    assert main([*arguments, "--logits"]) == 1
    assert float(capsys.readouterr().out.split()[-1]) > 1e-3
    assert main(["check", str(tmp_path / "b"), str(tmp_path / "c")]) == 1
    shown = capsys.readouterr().out
    assert "config: sliding_window" in shown
    assert "float32 | bfloat16" in shown


def test_check_compares_models_of_different_shape(tmp_path, capsys):
    for name, config in (("a", small_config(8)), ("b", small_config(10, hidden_size=18))):
        save_hf(tmp_path / name, config, random_params(config))
    assert main(["check", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    shown = capsys.readouterr().out
    assert "shape (96, 24) | (96, 18)" in shown
