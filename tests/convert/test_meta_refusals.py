"""Bad folders in Meta's layout are refused by name before anything is written; none runs code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import meta_models
import pytest
import torch
from small_models import random_params, small_config

from convert import ConversionError, save_hf
from convert.__main__ import main
from convert.meta.dcp_files import read_tensors
from convert.meta.params import params_from_model
from convert.tokenizers import write_ranks
from cwm_jax.config import RopeParameters
from cwm_jax.tokenizer import train_tokenizer

WQ = "model.layers.0.attention.wq.weight"
NORM = "model.norm.weight"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """hf/, checkpoint/ and meta/ of one model of four layers."""
    folder = tmp_path_factory.mktemp("good")
    save_hf(folder / "hf", small_config(4), random_params(small_config(4)))
    assert main(["from-hf", str(folder / "hf"), str(folder / "checkpoint")]) == 0
    assert main(["to-meta", str(folder / "checkpoint"), str(folder / "meta")]) == 0
    return folder


@pytest.fixture
def meta(good, tmp_path) -> Path:
    """A copy whose files may be changed: without its checklist."""
    folder = shutil.copytree(good / "meta", tmp_path / "meta")
    (folder / "checklist.chk").unlink()
    return folder


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


# ---------------------------------------------------------------- params.json


def without(*names):
    def change(params):
        for name in names[:-1]:
            params = params[name]
        del params[names[-1]]

    return change


def setting(value, *names):
    def change(params):
        for name in names[:-1]:
            params = params[name]
        params[names[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("model"), ["no 'model'"]),
        (without("model", "window_attn"), ["window_attn", "never guessed", "window_pattern"]),
        (setting(None, "model", "window_attn"), ["window_attn", "never guessed"]),
        (without("model", "window_attn", "global_last_layer"), ["lacks global_last_layer"]),
        (setting(0, "model", "window_attn", "window_pattern"), ["window_pattern 0"]),
        (setting(None, "model", "window_attn", "local_window"), ["sliding_window"]),
        (setting(100, "model", "window_attn", "global_window"), ["global_window is 100"]),
        (setting(1, "model", "window_attn", "odd"), ["window_attn", "unknown key 'odd'"]),
        (setting(1, "model", "n_layer"), ["unknown key 'n_layer'", "n_layers"]),
        (without("model", "rope_theta"), ["lacks rope_theta"]),
        (without("model", "scaled_rope", "scale_factor"), ["lacks scale_factor"]),
        (setting(True, "model", "scaled_rope", "use_attn_scale"), ["use_attn_scale"]),
        (setting("alibi", "model", "pos_embed_impl"), ["pos_embed_impl is 'alibi'"]),
        (setting(True, "model", "qk_norm"), ["qk_norm is True"]),
        (setting(True, "model", "qkv_biases"), ["qkv_biases is True"]),
        (setting(True, "model", "weight_tying"), ["weight_tying is True"]),
        (setting(8, "model", "q_lora_rank"), ["q_lora_rank is 8"]),
        (setting(8, "model", "kv_lora_rank"), ["kv_lora_rank is 8"]),
        (setting("flash", "model", "attn_impl"), ["attn_impl is 'flash'"]),
        (setting("24", "model", "dim"), ["model.dim is '24'"]),
        (setting(0, "model", "n_heads"), ["model.n_heads is 0"]),
        (setting(512, "model", "multiple_of"), ["w1.weight has shape (40, 24)", "(512, 24)"]),
        (setting(5, "model", "n_layers"), ["missing tensor model.layers.4."]),
        (setting(3, "model", "n_layers"), ["unknown tensor model.layers.3."]),
    ],
)
def test_bad_params(meta, capsys, change, words):
    file = meta / "params.json"
    params = json.loads(file.read_text())
    change(params)
    file.write_text(json.dumps(params))
    refused(capsys, "from-meta", meta, *words)


def test_other_keys_beside_the_model_are_left_alone(meta, tmp_path):
    file = meta / "params.json"
    params = json.loads(file.read_text())
    extra = {"data": {"tokenizer": {"name": "tiktoken"}}, "optim": {"lr": 1e-4}}
    model = params["model"] | {"attn_bias_type": "causal", "qk_rope_head_dim": 32}
    file.write_text(json.dumps(extra | {"model": model}))
    assert main(["from-meta", str(meta), str(tmp_path / "out")]) == 0


def test_architectures_that_params_cannot_express():
    kinds = {"g": "full_attention", "l": "sliding_attention"}
    for text, why in (
        ("lglg", "layer 0 is local"),
        ("lggg", "layer 0 is local"),
        ("glglglgg", None),
        ("ggll", "every 1th would be, but 2 differs"),
        ("gllglgl", "every 3th would be, but 5 differs"),
    ):
        layers = tuple(kinds[letter] for letter in text)
        config = small_config(len(text), layer_types=layers)
        if why is None:
            params_from_model(config)
            continue
        with pytest.raises(ConversionError, match=why):
            params_from_model(config)
    with pytest.raises(ConversionError, match="not a multiple of num_attention_heads"):
        params_from_model(small_config(8, hidden_size=27))
    for rope, why in (
        (RopeParameters(rope_type="llama3", factor=1.0), "scale_factor would be 1"),
        (RopeParameters(rope_type="llama3", factor=2.5), "scale_factor would be 2.5"),
    ):
        with pytest.raises(ConversionError, match=why):
            params_from_model(small_config(8, rope_parameters=rope))


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("norm.weight"), [f"missing tensor {NORM}"]),
        (lambda s: s.update(odd=torch.ones(3)), ["unknown tensor model.odd"]),
        (lambda s: s.update({"norm.weight": torch.ones(23)}), [NORM, "(23,)", "(24,)"]),
        (lambda s: s.update({"norm.weight": torch.ones(24).int()}), [NORM, "int32"]),
        (lambda s: s.update(step=3), ["model.step is not a tensor"]),
        (
            lambda s: s.update({"layers.0.attention.wq.weight": torch.ones(24, 48).T}),
            [WQ, "contiguous"],
        ),
    ],
)
def test_wrong_tensors(meta, tmp_path, capsys, change, words):
    state = meta_models.load_state(meta)
    change(state)
    meta_models.save_state(tmp_path / "changed", state)
    shutil.copy(meta / "params.json", tmp_path / "changed")
    refused(capsys, "from-meta", tmp_path / "changed", *words)


def test_truncated_distcp(meta, capsys):
    file = meta / "__0_0.distcp"
    os.truncate(file, file.stat().st_size - 1)
    refused(capsys, "from-meta", meta, "__0_0.distcp", "model.output.weight", "truncated")
    os.truncate(file, 0)
    refused(capsys, "from-meta", meta, "__0_0.distcp", "truncated")
    file.unlink()
    refused(capsys, "from-meta", meta, "'__0_0.distcp'", "not in")
    (meta / ".metadata").unlink()
    refused(capsys, "from-meta", meta, "no .metadata")


def edit_metadata(folder: Path, change) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _gap(metadata):
    metadata.state_dict_metadata[WQ].chunks.pop()


def _overlap(metadata):
    chunks = metadata.state_dict_metadata[WQ].chunks
    chunks.append(chunks[0])


def _outside(metadata):
    metadata.state_dict_metadata[WQ].size = torch.Size((47, 24))


def _nowhere(metadata):
    metadata.storage_data = {k: v for k, v in metadata.storage_data.items() if k.fqn != WQ}


def _elsewhere(metadata):
    next(
        v for k, v in metadata.storage_data.items() if k.fqn == WQ
    ).relative_path = "../meta/__0_0.distcp"


def _compressed(metadata):
    entry = next(v for k, v in metadata.storage_data.items() if k.fqn == WQ)
    entry.transform_descriptors = ["zstd"]


def _another_place(metadata):
    places = metadata.storage_data
    a, b = (next(k for k in places if k.fqn == name) for name in (WQ, NORM))
    places[a], places[b] = places[b], places[a]


def _another_dtype(metadata):
    metadata.state_dict_metadata[WQ].properties.dtype = torch.bfloat16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_gap, [WQ, "do not make up its shape (48, 24)"]),
        (_overlap, [WQ, "do not make up"]),
        (_outside, [WQ, "do not make up"]),
        (_nowhere, [WQ, "stored nowhere"]),
        (_elsewhere, ["'../meta/__0_0.distcp'", "not in"]),
        (_compressed, ["transformed"]),
        (_another_place, ["expected (", "contiguous"]),
        (_another_dtype, [WQ, "bfloat16"]),
    ],
)
def test_metadata_that_does_not_fit_the_files(meta, capsys, change, words):
    edit_metadata(meta, change)
    refused(capsys, "from-meta", meta, *words)


def test_where_a_checkpoint_was_written_does_not_matter(meta, monkeypatch):
    """Its metadata may hold the path in a class of pathlib or of upath, as Meta's writer has it."""
    module = types.ModuleType("upath.core")
    module.UPath = type("UPath", (), {"__module__": "upath.core"})
    monkeypatch.setitem(sys.modules, "upath", types.ModuleType("upath"))
    monkeypatch.setitem(sys.modules, "upath.core", module)
    for path in (Path("/checkpoints/step"), module.UPath()):
        edit_metadata(meta, lambda m, path=path: setattr(m, "planner_data", path))
        assert len(read_tensors(meta)) == 39


# ---------------------------------------------------------------- hostile pickles


class _Attack:
    def __init__(self, call, *arguments) -> None:
        self._reduced = call, arguments

    def __reduce__(self):
        return self._reduced


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch {}"),
        (eval, "open('{}', 'w')"),
        (torch.load, "{}"),
        (getattr, "{}", "upper"),
        (torch.serialization.load, "{}"),
    ],
    ids=lambda call: f"{call[0].__module__}.{call[0].__name__}",
)
def test_a_pickle_that_would_run_code_is_refused(meta, tmp_path, capsys, call):
    ran = tmp_path / "ran"
    function, *arguments = call
    attack = _Attack(function, *(argument.format(ran) for argument in arguments))
    edit_metadata(meta, lambda m: setattr(m, "planner_data", attack))
    refused(capsys, "from-meta", meta, ".metadata", "refused", function.__name__)
    assert not ran.exists()


def test_a_tensor_that_would_run_code_is_refused(meta, tmp_path, capsys):
    ran = tmp_path / "ran"
    file = meta / "attack.distcp"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Attack(os.system, f"touch {ran}")))
        archive.writestr("archive/data/0", bytes(96))

    def change(metadata):
        place = next(v for k, v in metadata.storage_data.items() if k.fqn == NORM)
        place.relative_path, place.offset, place.length = file.name, 0, file.stat().st_size

    edit_metadata(meta, change)
    refused(capsys, "from-meta", meta, NORM, "refused", "system")
    assert not ran.exists()


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps([1, 2]), pickle.dumps({})[:-1]])
def test_metadata_that_is_none(meta, capsys, data):
    (meta / ".metadata").write_bytes(data)
    refused(capsys, "from-meta", meta, ".metadata")


# ---------------------------------------------------------------- checklist, and the rest


def test_damaged_files_do_not_pass_the_checklist(good, tmp_path, capsys):
    folder = shutil.copytree(good / "meta", tmp_path / "renamed")
    assert main(["from-meta", str(folder), str(tmp_path / "out")]) == 0
    capsys.readouterr()
    file = folder / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused(capsys, "from-meta", folder, "damaged", "__0_0.distcp", "checklist.chk")
    checklist = (folder / "checklist.chk").read_text()
    assert "  meta/__0_0.distcp\n" in checklist  # below the name it was made with
    for text in (checklist.replace("  meta/", " "), "nonsense\n", "0" * 32 + "  meta/..\n"):
        (folder / "checklist.chk").write_text(text)
        refused(capsys, "from-meta", folder, "checklist.chk", "odd line")
    (folder / "checklist.chk").write_text(checklist)
    (folder / "params.json").write_text(json.dumps(params_from_model(small_config(4))))
    file.unlink()
    refused(capsys, "from-meta", folder, "damaged", "__0_0.distcp", "missing")


def test_each_direction_names_the_other(good, tmp_path, capsys):
    for name in ("hf", "checkpoint", "meta"):
        shutil.copytree(good / name, tmp_path / name)
    refused(capsys, "from-meta", tmp_path / "hf", "from-hf")
    refused(capsys, "from-meta", tmp_path / "checkpoint", "to-meta")
    refused(capsys, "from-hf", tmp_path / "meta", "from-meta")
    refused(capsys, "to-hf", tmp_path / "meta", "from-meta")
    refused(capsys, "to-meta", tmp_path / "meta", "from-meta")
    refused(capsys, "to-meta", tmp_path / "hf", "from-hf")
    refused(capsys, "from-meta", tmp_path / "absent", "not a folder")


def test_tokenizer_larger_than_the_vocabulary(meta, capsys):
    write_ranks(train_tokenizer(["abc"], 512), meta / "tokenizer.model")
    refused(capsys, "from-meta", meta, "512 ids", "96")


def test_without_pytorch(good, tmp_path):
    """from-meta does not import it; to-meta says what to do."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from convert.__main__ import main\n"
        "sys.exit(main(sys.argv[1:4]) * 10 + main(sys.argv[4:]))"
    )
    arguments = ["from-meta", str(good / "meta"), str(tmp_path / "a")]
    arguments += ["to-meta", str(good / "checkpoint"), str(tmp_path / "b")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 2, done.stderr
    assert "pip install torch" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
