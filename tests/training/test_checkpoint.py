"""Fault: damaged, half-written, foreign and unwritable checkpoints."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model, tiny_run, write_corpus

from cwm_jax.sharding import make_mesh
from cwm_jax.tokenizer import train_tokenizer
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training.checksums import damage, write_checksums
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
        saver.save(state, ckpt.RunRecord(step, config, {"cursor": step}))
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
    assert len(reports) == 2
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
    with pytest.raises(ckpt.CheckpointError) as error:
        ckpt.check_same_run(Path("x"), config, other)
    assert "seed: checkpoint 0, config 3" in str(error.value)
    assert "optimizer.learning_rate: checkpoint 0.01, config 0.002" in str(error.value)
    assert "steps" not in str(error.value).split("use the config")[0]
    ckpt.check_same_run(Path("x"), config, dataclasses.replace(config, steps=5))


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
    saver.save(state, ckpt.RunRecord(9, config, {}))
    with pytest.raises(
        ckpt.CheckpointError, match=r"No space left.*newest complete checkpoint is 00000004"
    ):
        saver.wait()
    assert sorted(p.name for p in folder.iterdir()) == ["00000002", "00000003", "00000004"]
    monkeypatch.setattr(ckpt, "write_checksums", write_checksums)
    saver.save(state, ckpt.RunRecord(9, config, {}))  # it can go on
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
