"""Fault: damaged, half-written, foreign and unwritable checkpoints."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import VOCAB_SIZE, tiny_model, tiny_run, write_corpus

from cwm_jax.config import BatchConfig, MeshConfig
from cwm_jax.sharding import make_mesh
from cwm_jax.tokenizer import load_tokenizer, train_tokenizer
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training.checksums import damage, write_checksums
from cwm_jax.training.plan import make_plan
from cwm_jax.training.state import abstract_state, init_sharded_state, state_shardings


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 1 to 4 (the newest two kept, and step 2 for ever)."""
    folder = tmp_path_factory.mktemp("saved")
    write_corpus(folder)
    config = tiny_run(folder)
    config = dataclasses.replace(
        config, checkpoint=dataclasses.replace(config.checkpoint, keep_last=2, keep_period=2)
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = init_sharded_state(config, mesh)
    texts = [path.read_text() for path in (folder / "corpus").iterdir()]
    tokenizer = train_tokenizer(texts, config.model.vocab_size)
    saver = ckpt.Checkpointer(folder / "checkpoints", config.checkpoint, tokenizer)
    for step in (1, 2, 3, 4):
        state = dataclasses.replace(state, step=jnp.int32(step))
        saver.save(state, ckpt.RunRecord(step, config, ((0, 64),), {"cursor": step}))
    saver.close()
    return folder / "checkpoints", config, state


@pytest.fixture
def folder(saved, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(saved[0], copy)
    return copy


def test_rotation_keeps_the_newest_and_every_mth(saved):
    assert sorted(p.name for p in saved[0].iterdir()) == ["00000002", "00000003", "00000004"]


def test_restores_bit_for_bit_with_its_record(saved):
    folder, config, state = saved
    newest = ckpt.newest_checkpoint(folder, report=pytest.fail)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    restored = ckpt.restore(newest, abstract_state(config), state_shardings(config, mesh))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    record = ckpt.read_record(newest)
    assert (record.step, record.config, record.loader_state) == (4, config, {"cursor": 4})


def test_restores_onto_another_mesh(saved):
    folder, config, state = saved
    mesh = make_mesh(dataclasses.replace(config.mesh, fsdp=4, tensor=2))
    shardings = state_shardings(config, mesh)
    restored = ckpt.restore(folder / "00000004", abstract_state(config), shardings)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert restored.params["lm_head"]["kernel"].sharding == shardings.params["lm_head"]["kernel"]


def test_stacked_parameters_are_stored_layer_by_layer(tmp_path, saved):
    config = dataclasses.replace(
        saved[1], model=tiny_model(num_hidden_layers=8, hidden_size=512, intermediate_size=1024)
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = init_sharded_state(config, mesh)
    args = jax.tree_util.tree_map_with_path(ckpt._save_args, state.params)
    assert args["layers"]["0"]["mlp"]["up_proj"]["kernel"].chunk_byte_size == 512 * 1024 * 4
    assert args["norm"]["scale"].chunk_byte_size is None


def _all_files(folder: Path) -> list[Path]:
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


def _zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [_flip, _zero, _truncate, Path.unlink])
def test_any_damage_to_any_file_is_found(saved, folder, harm):
    newest = folder / "00000004"
    assert damage(newest) == []
    files = [p for p in _all_files(newest) if (newest / p).stat().st_size]
    manifest = Path("checksums.json")
    for name in files:
        if name != manifest:
            harm(newest / name)
    named = {sentence.split(" ")[0] for sentence in damage(newest)}
    assert named == {str(name) for name in files if name != manifest}
    shutil.copytree(saved[0] / "00000004", newest, dirs_exist_ok=True)
    assert damage(newest) == []
    harm(newest / manifest)
    assert damage(newest)


def test_a_damaged_newest_is_reported_kept_and_the_one_before_is_used(folder):
    _flip(next((folder / "00000004" / "state").glob("params.lm_head*/0.0")))
    (
        folder / "00000003" / "checksums.json"
    ).unlink()  # as a kill before the end of a save leaves it
    reports = []
    assert ckpt.newest_checkpoint(folder, reports.append) == folder / "00000002"
    assert len(reports) == 3 and reports[2].endswith("00000002")
    assert "params.lm_head.kernel/0.0 has other bytes" in reports[0]
    assert "the save did not finish" in reports[1]
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["00000002", "00000003.damaged-1", "00000004.damaged-1"]


def test_resolve_checkpoint(folder):
    assert ckpt.resolve_checkpoint(folder) == folder / "00000004"
    assert ckpt.resolve_checkpoint(folder.parent) == folder / "00000004"
    _flip(folder / "00000004" / "config.json")
    assert ckpt.resolve_checkpoint(folder) == folder / "00000003"
    with pytest.raises(ckpt.CheckpointError, match=r"config\.json has other bytes"):
        ckpt.resolve_checkpoint(folder / "00000004")
    with pytest.raises(ckpt.CheckpointError, match="holds no whole checkpoint"):
        ckpt.resolve_checkpoint(folder / "nowhere")


def test_another_run_is_refused_with_the_list_of_differences(saved):
    _, config, _ = saved
    other = dataclasses.replace(
        config,
        seed=3,
        steps=5,  # free to change
        optimizer=dataclasses.replace(config.optimizer, learning_rate=2e-3),
    )
    saved = ckpt.RunRecord(1, config, ckpt.batches(make_plan(config, num_devices=1)), {})
    with pytest.raises(ckpt.CheckpointError) as error:
        ckpt.check_same_run(Path("x"), saved, make_plan(other, num_devices=1))
    assert "seed: checkpoint 0, config 3" in str(error.value)
    assert "optimizer.learning_rate: checkpoint 0.01, config 0.002" in str(error.value)
    assert "steps" not in str(error.value).split("use the config")[0]
    shorter = dataclasses.replace(config, steps=5)
    ckpt.check_same_run(Path("x"), saved, make_plan(shorter, num_devices=1))


def test_other_devices_may_not_change_the_batch_unseen(saved):
    """Without global_batch_tokens the devices decide it, and with it steps and schedule."""
    _, config, _ = saved
    record = ckpt.RunRecord(1, config, ckpt.batches(make_plan(config, num_devices=1)), {})
    wider = dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=1, tensor=1))
    with pytest.raises(
        ckpt.CheckpointError, match=r"checkpoint \(\(0, 64\),\), .* \(\(0, 128\),\)"
    ):
        ckpt.check_same_run(Path("x"), record, make_plan(wider, num_devices=2))
    batch = BatchConfig(max_target_length=32, per_device_batch_size=1, global_batch_tokens=64)
    same = dataclasses.replace(wider, batch=batch)
    ckpt.check_same_run(Path("x"), record, make_plan(same, num_devices=2))


def test_a_run_with_no_whole_checkpoint_is_not_started_over(folder):
    for step in ("00000002", "00000003", "00000004"):
        _flip(folder / step / "run.json")
    with pytest.raises(ckpt.CheckpointError, match=r"no checkpoint in .* is whole") as error:
        ckpt.newest_checkpoint(folder, pytest.fail)
    assert "00000002: run.json has other bytes" in str(error.value)
    assert len(list(folder.iterdir())) == 3, "nothing is moved"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(layer_types=("sliding_attention", "full_attention") * 2 + ("full_attention",)),
            r"model\.layer_types",
        ),
        (dict(sliding_window=16), r"model\.sliding_window: weights 8, config 16"),
        (dict(rms_norm_eps=1e-6), r"model\.rms_norm_eps: weights 1e-05, config 1e-06"),
    ],
)
def test_weights_of_another_model_with_the_same_shapes_are_refused(saved, change, message):
    folder, config, _ = saved
    tokenizer = load_tokenizer(folder / "00000004" / "tokenizer")
    with pytest.raises(ckpt.CheckpointError, match=message):
        ckpt.check_same_model(
            folder / "00000004", dataclasses.replace(config.model, **change), tokenizer
        )


def test_weights_may_get_a_longer_context_but_no_other_tokenizer(saved):
    folder, config, _ = saved
    tokenizer = load_tokenizer(folder / "00000004" / "tokenizer")
    longer = dataclasses.replace(config.model, max_position_embeddings=512)
    (note,) = ckpt.check_same_model(folder / "00000004", longer, tokenizer)
    assert note.endswith("max_position_embeddings: weights 256, config 512")
    other = train_tokenizer([f"for word_{i} in other_{i} " * 2 for i in range(99)], VOCAB_SIZE)
    with pytest.raises(ckpt.CheckpointError, match=r"another tokenizer .* tokenizer\.path="):
        ckpt.check_same_model(folder / "00000004", config.model, other)


def test_weights_of_another_dtype_are_refused_or_cast(saved):
    folder, config, state = saved
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    half = dataclasses.replace(config.execution, weight_dtype="bfloat16")
    half = dataclasses.replace(config, execution=half)
    wanted = {"params": abstract_state(half).params}
    shardings = {"params": state_shardings(half, mesh).params}
    with pytest.raises(ckpt.CheckpointError, match=r"checkpoint float32.*config bfloat16"):
        ckpt.restore(folder / "00000004", wanted, shardings)
    cast = ckpt.restore(folder / "00000004", wanted, shardings, cast=True)["params"]
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
    jax.tree.map(np.testing.assert_array_equal, cast, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(intermediate_size=64),
            r"gate_proj.kernel: checkpoint float32\[2, 32, 48\], config float32\[2, 32, 64\]",
        ),
        (
            dict(num_hidden_layers=7),
            r"norm.scale: checkpoint float32\[2, 32\], config float32\[3, 32\]",
        ),
        (dict(num_hidden_layers=4), r"params.tail.0.mlp.down_proj.kernel: .*config has none"),
    ],
)
def test_shapes_that_do_not_fit_are_listed(saved, change, message):
    folder, config, _ = saved
    config = dataclasses.replace(config, model=tiny_model(**change))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with pytest.raises(ckpt.CheckpointError, match=message):
        ckpt.restore(folder / "00000004", abstract_state(config), state_shardings(config, mesh))


def test_another_dtype_is_refused_not_cast(saved):
    folder, config, _ = saved
    config = dataclasses.replace(
        config, execution=dataclasses.replace(config.execution, weight_dtype="bfloat16")
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with pytest.raises(ckpt.CheckpointError, match=r"checkpoint float32.*config bfloat16"):
        ckpt.restore(folder / "00000004", abstract_state(config), state_shardings(config, mesh))


def test_a_failed_save_loses_nothing(saved, folder, monkeypatch):
    _, config, state = saved
    saver = ckpt.Checkpointer(folder, config.checkpoint, None)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ckpt, "write_checksums", full)
    monkeypatch.setattr("cwm_jax.tokenizer.Tokenizer.save", lambda *_: None)
    saver._tokenizer = type("T", (), {"save": lambda *_: None})()
    saver.save(state, ckpt.RunRecord(9, config, (), {}))
    with pytest.raises(
        ckpt.CheckpointError, match=r"No space left.*newest complete checkpoint is 00000004"
    ):
        saver.wait()
    assert sorted(p.name for p in folder.iterdir()) == ["00000002", "00000003", "00000004"]
    monkeypatch.setattr(ckpt, "write_checksums", write_checksums)
    saver.save(state, ckpt.RunRecord(9, config, (), {}))  # it can go on
    saver.close()
    assert damage(folder / "00000009") == []


def test_leftovers_of_a_killed_save_are_removed(folder, saved):
    (folder / ".tmp-00000005" / "state").mkdir(parents=True)
    ckpt.Checkpointer(folder, saved[1].checkpoint, None).close()
    assert not list(folder.glob(".tmp-*"))


def test_record_of_another_version_is_refused(folder):
    path = folder / "00000004" / "run.json"
    run = json.loads(path.read_text())
    run["config"]["optimiser"] = {}
    path.write_text(json.dumps(run))
    with pytest.raises(
        ckpt.CheckpointError, match="unknown key 'optimiser'; did you mean 'optimizer'"
    ):
        ckpt.read_record(folder / "00000004")
