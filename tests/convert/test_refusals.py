"""Bad input is refused by name, before anything is written, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from small_models import random_params, small_config

from convert import ConversionError, load_hf, save_hf
from convert.__main__ import main
from convert.safetensors_files import INDEX_FILE
from cwm_jax.tokenizer import train_tokenizer

NORM, HEAD, UP = "model.norm.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """single/ (one file), sharded/ (several) and checkpoint/ of one model."""
    folder = tmp_path_factory.mktemp("good")
    config = small_config(8)
    params = random_params(config)
    save_hf(folder / "single", config, params)
    save_hf(folder / "sharded", config, params, max_shard_bytes=30_000)
    assert main(["from-hf", str(folder / "single"), str(folder / "checkpoint")]) == 0
    return folder


@pytest.fixture
def single(good, tmp_path) -> Path:
    return shutil.copytree(good / "single", tmp_path / "source")


@pytest.fixture
def sharded(good, tmp_path) -> Path:
    return shutil.copytree(good / "sharded", tmp_path / "source")


@pytest.fixture
def checkpoint(good, tmp_path) -> Path:
    return shutil.copytree(good / "checkpoint", tmp_path / "source")


def read(file: Path) -> tuple[dict, bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(file: Path, header: dict | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def refused(capsys, command: str, source: Path, *words: str) -> None:
    """One line on stderr with all the words, status 2, and no new file beside the source."""
    before = sorted(source.parent.rglob("*"))
    assert main([command, str(source), str(source.parent / "new" / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    for word in words:
        assert word in line, line
    assert sorted(source.parent.rglob("*")) == before


def rename(header, data):
    return {("model.odd.weight" if k == NORM else k): v for k, v in header.items()}, data


def remove(header, data):
    """Takes out the last tensor with its bytes: the file is well-formed, the model incomplete."""
    last = max(
        (k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"][1]
    )
    start, _ = header.pop(last)["data_offsets"]
    return header, data[:start]


def reshape(header, data):
    header[UP]["shape"] = [20, 48]
    return header, data


def int_dtype(header, data):
    header[NORM]["dtype"] = "I32"
    return header, data


def wrong_size(header, data):
    header[NORM]["shape"] = [23]
    return header, data


def negative(header, data):
    header[NORM]["data_offsets"][0] = -4
    return header, data


def no_offsets(header, data):
    del header[NORM]["data_offsets"]
    return header, data


def overlap(header, data):
    a, b = header[NORM]["data_offsets"]
    header[NORM]["data_offsets"] = [a - 96, b - 96]
    return header, data


def gap(header, data):
    start = header[NORM]["data_offsets"][0]
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= start:
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]
    return header, data + b"1234"


def truncated(header, data):
    return header, data[:-1]


def trailing(header, data):
    return header, data + b"x"


def not_json(header, data):
    return json.dumps(header).encode()[:-5], data


def not_object(header, data):
    return b"[1, 2]", data


def not_utf8(header, data):
    return b"\xff\xfe" + json.dumps(header).encode(), data


def name_twice(header, data):
    text = json.dumps(header).encode()
    entry = json.dumps({NORM: header[NORM]}).encode()
    return text[:-1] + b"," + entry[1:], data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, ["unknown tensor model.odd.weight"]),
        (remove, ["missing tensor lm_head.weight"]),
        (reshape, [UP, "(20, 48)", "(40, 24)"]),
        (int_dtype, [NORM, "unsupported dtype 'I32'"]),
        (wrong_size, [NORM, "takes 92 bytes"]),
        (negative, [NORM, "data_offsets"]),
        (no_offsets, [NORM, "expected dtype, shape, offsets"]),
        (overlap, ["overlaps"]),
        (gap, [NORM, "gap"]),
        (truncated, ["truncated", HEAD]),
        (trailing, ["1 bytes after the last tensor"]),
        (not_json, ["header", "not JSON"]),
        (not_object, ["header", "expected an object"]),
        (not_utf8, ["header", "not JSON"]),
        (name_twice, ["duplicate name", NORM]),
    ],
)
def test_bad_file(single, capsys, change, words):
    file = single / "model.safetensors"
    write(file, *change(*read(file)))
    refused(
        capsys, "from-hf", single, "model.safetensors" if "tensor" not in words[0] else "", *words
    )
    with pytest.raises(ConversionError):
        load_hf(single)


@pytest.mark.parametrize("data", [b"", b"1234", (10**6).to_bytes(8, "little") + b"{}"])
def test_header_length_beyond_the_file(single, capsys, data):
    (single / "model.safetensors").write_bytes(data)
    refused(capsys, "from-hf", single, "model.safetensors", "header of", "truncated")


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / INDEX_FILE).read_text())["weight_map"][name]


def edit_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    change(index["weight_map"])
    (folder / INDEX_FILE).write_text(json.dumps(index))


def test_two_shards_hold_one_name(sharded, capsys):
    first, last = shard_of(sharded, UP), shard_of(sharded, NORM)
    header, data = read(last)
    header[UP] = {"dtype": "F32", "shape": [40, 24], "data_offsets": [len(data), len(data) + 3840]}
    write(last, header, data + bytes(3840))
    refused(capsys, "from-hf", sharded, f"duplicate tensor {UP}", first.name, last.name)


def test_index_names_a_shard_that_lacks_the_tensor(sharded, capsys):
    other = shard_of(sharded, UP).name
    edit_index(sharded, lambda weight_map: weight_map.update({NORM: other}))
    refused(capsys, "from-hf", sharded, other, f"lacks {NORM}")


def test_tensor_of_a_shard_is_not_in_the_index(sharded, capsys):
    edit_index(sharded, lambda weight_map: weight_map.pop(NORM))
    refused(capsys, "from-hf", sharded, f"holds {NORM}", "not in the index")


def test_index_names_a_file_that_is_not_there(sharded, capsys):
    gone = shard_of(sharded, NORM)
    gone.unlink()
    refused(capsys, "from-hf", sharded, gone.name, "not in")


def test_index_names_a_file_elsewhere(sharded, capsys):
    target = shard_of(sharded, NORM)
    outside = sharded.parent / "outside.safetensors"
    target.rename(outside)
    edit_index(
        sharded,
        lambda m: m.update({k: "../outside.safetensors" for k, v in m.items() if v == target.name}),
    )
    refused(capsys, "from-hf", sharded, "../outside.safetensors")


def test_shard_that_no_index_names(sharded, capsys):
    stray = sharded / "model-00009-of-00009.safetensors"
    shutil.copy(shard_of(sharded, NORM), stray)
    refused(capsys, "from-hf", sharded, stray.name, "does not name")


@pytest.mark.parametrize("text", ["{", '{"metadata": {}}', '{"weight_map": {"a": 1}}'])
def test_bad_index(sharded, capsys, text):
    (sharded / INDEX_FILE).write_text(text)
    refused(capsys, "from-hf", sharded, INDEX_FILE)


def test_index_with_a_repeated_name(sharded, capsys):
    text = (sharded / INDEX_FILE).read_text().rstrip()
    assert text.endswith("}\n}")
    text = text[: -len("}\n}")].rstrip() + f', "{NORM}": "x"}}}}'
    (sharded / INDEX_FILE).write_text(text)
    refused(capsys, "from-hf", sharded, INDEX_FILE, "duplicate", NORM)


def test_single_file_beside_an_index(sharded, capsys, good):
    shutil.copy(good / "single" / "model.safetensors", sharded)
    refused(capsys, "from-hf", sharded, "both")


@pytest.fixture
def bad_config(single, capsys):
    def check(change, *words):
        config = json.loads((single / "config.json").read_text())
        change(config)
        (single / "config.json").write_text(json.dumps(config))
        refused(capsys, "from-hf", single, "config.json", *words)

    return check


def test_config_without_layer_types(bad_config):
    bad_config(lambda c: c.pop("layer_types"), "layer_types")


def test_config_with_an_unknown_key(bad_config):
    bad_config(lambda c: c.update(qk_norm=True), "qk_norm")


def test_config_with_a_wrong_type(bad_config):
    bad_config(lambda c: c.update(hidden_size="24"), "hidden_size")


def test_config_with_a_strange_rope(bad_config):
    bad_config(lambda c: c.update(rope_parameters=[1]))


def test_config_is_not_json(single, capsys):
    (single / "config.json").write_text("{")
    refused(capsys, "from-hf", single, "config.json", "not JSON")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_folder_lacks_a_file(single, capsys, name):
    (single / name).unlink()
    refused(capsys, "from-hf", single, name)


def test_source_is_not_a_folder(tmp_path, capsys):
    for command in ("from-hf", "to-hf"):
        refused(capsys, command, tmp_path / "absent", "absent", "not a folder")


def test_each_direction_names_the_other(single, capsys, tmp_path, good):
    refused(capsys, "to-hf", single, "from-hf")
    refused(capsys, "from-hf", shutil.copytree(good / "checkpoint", tmp_path / "c"), "to-hf")


@pytest.mark.parametrize("command", ["from-hf", "to-hf"])
def test_destination_is_occupied(good, tmp_path, capsys, command):
    source = good / ("single" if command == "from-hf" else "checkpoint")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept")
    assert main([command, str(source), str(tmp_path / "out")]) == 2
    assert "choose another destination or remove it" in capsys.readouterr().err
    (tmp_path / "file").write_text("kept")
    assert main([command, str(source), str(tmp_path / "file")]) == 2
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "out", "precious"]
    (tmp_path / "empty").mkdir()
    assert main([command, str(source), str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "config.json").exists()


def test_damaged_checkpoint(checkpoint, capsys):
    (chunk,) = (checkpoint / "state" / "params.norm.scale").glob("0")
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    refused(capsys, "to-hf", checkpoint, "damaged", "params.norm.scale/0", "other bytes")
    chunk.unlink()
    refused(capsys, "to-hf", checkpoint, "params.norm.scale/0 is missing")
    (checkpoint / "checksums.json").unlink()
    refused(capsys, "to-hf", checkpoint, "checksums.json is missing")


def test_checkpoint_of_another_tree(checkpoint, capsys):
    from cwm_jax.training.checksums import write_checksums

    shutil.rmtree(checkpoint / "state" / "params.norm.scale")
    write_checksums(checkpoint)
    refused(capsys, "to-hf", checkpoint, "missing tensor norm.scale")
    shutil.copytree(
        checkpoint / "state" / "params.layers.0.input_layernorm.scale",
        checkpoint / "state" / "params.norm.scale",
    )
    write_checksums(checkpoint)
    refused(capsys, "to-hf", checkpoint, "norm.scale has shape (2, 24)", "(24,)")


def test_run_without_a_checkpoint(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    refused(capsys, "to-hf", tmp_path / "run", "run")


def test_stacked_layers_of_two_dtypes(single, capsys, tmp_path):
    file = single / "model.safetensors"
    header, data = read(file)
    name = "model.layers.3.self_attn.k_proj.weight"
    start, stop = header[name]["data_offsets"]
    half = (stop - start) // 2
    header[name]["dtype"] = "BF16"
    for entry in (v for k, v in header.items() if k != "__metadata__"):
        entry["data_offsets"] = [o - half if o > start else o for o in entry["data_offsets"]]
    write(file, header, data[: start + half] + data[stop:])
    refused(capsys, "from-hf", single, "k_proj", "bfloat16", "float32", "choose a dtype")
    assert main(["from-hf", str(single), str(tmp_path / "ok"), "--dtype", "float32"]) == 0


def test_tokenizer_larger_than_the_vocabulary(single, capsys):
    tokenizer = train_tokenizer(["abc"], 512)
    tokenizer.save(single)
    refused(capsys, "from-hf", single, "512 ids", "96")
    (single / "tokenizer.json").write_text("{")
    refused(capsys, "from-hf", single, "tokenizer.json")


def no_space(*arguments, **options):
    raise OSError(28, "No space left on device")


def test_an_error_in_memory_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("convert.to_hf._generation_config", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_hf(tmp_path / "out", small_config(8), random_params(small_config(8)))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_converted_leaves_nothing(good, tmp_path, capsys, monkeypatch):
    """A source that is cut while it is read: there is nothing to go on with."""

    def cut(*arguments, **options):
        raise ConversionError("truncated while it was read")

    monkeypatch.setattr("convert.safetensors_files.read_into", cut)
    assert main(["from-hf", str(good / "single"), str(tmp_path / "out")]) == 2
    assert "truncated" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_params_of_another_architecture(tmp_path):
    config, params = small_config(8), random_params(small_config(8))
    with pytest.raises(ConversionError, match=r"missing tensor tail\.0"):
        save_hf(tmp_path / "out", small_config(10), params)
    with pytest.raises(ConversionError, match="has shape"):
        save_hf(tmp_path / "out", small_config(8, intermediate_size=41), params)
    with pytest.raises(ConversionError, match="int32"):
        save_hf(tmp_path / "out", config, jax.tree.map(lambda x: x.astype(jnp.int32), params))
    with pytest.raises(ConversionError, match="float8"):
        save_hf(tmp_path / "out", config, params, dtype="float8")
    with pytest.raises(ConversionError, match="max_shard_bytes"):
        save_hf(tmp_path / "out", config, params, max_shard_bytes=0)
    with pytest.raises(ConversionError, match="512 ids"):
        save_hf(tmp_path / "out", config, params, train_tokenizer(["abc"], 512))
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_shows_no_traceback(tmp_path):
    import subprocess
    import sys

    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "convert",
            "from-hf",
            str(tmp_path / "absent"),
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
