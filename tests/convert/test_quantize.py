"""Round trip: quantized folders hold what quantizing in memory gives; refusals; bounded blocks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from small_models import assert_equal_trees, random_params, small_config

from convert import ConversionError, load_hf, save_hf
from convert.__main__ import main
from convert.names import weights
from convert.quantize import quantize
from convert.quantized import pack_words, unpack_words
from convert.safetensors_files import read_header
from cwm_jax.config import ModelConfig
from cwm_jax.inference import quantization
from cwm_jax.model.transformer import abstract_params

CONFIG = small_config()  # two groups and a tail of two


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "hf"
    save_hf(folder, CONFIG, random_params(CONFIG, "bfloat16"))
    return folder


def in_memory(exported: Path, name: str, **options):
    config, params = load_hf(exported)
    return quantization.quantize(params, config, name, **options)


@pytest.mark.parametrize("name", quantization.FORMATS)
def test_folder_holds_what_quantizing_in_memory_gives(exported, tmp_path, name):
    line = quantize(exported, tmp_path / "q", dtype=name, max_shard_bytes=20_000)
    assert "without tokenizer" in line
    assert len(list((tmp_path / "q").glob("model-*-of-*.safetensors"))) > 2
    config, params = load_hf(tmp_path / "q")
    assert config == CONFIG
    assert_equal_trees(params, in_memory(exported, name))
    records = [read_header(f, packed=True) for f in (tmp_path / "q").glob("*.safetensors")]
    num_bytes = sum(r.stop - r.start for header in records for r in header.values())
    assert f" {num_bytes:,} bytes of " in line
    _, wide = load_hf(tmp_path / "q", "float32")
    assert wide["norm"]["scale"].dtype == jnp.float32
    assert wide["lm_head"]["kernel"].values.dtype == params["lm_head"]["kernel"].values.dtype


def test_group_size_is_kept(exported, tmp_path):
    quantize(exported, tmp_path / "q", dtype="int4", group_size=4)
    _, params = load_hf(tmp_path / "q")
    assert params["lm_head"]["kernel"].scales.shape == (CONFIG.hidden_size // 4, CONFIG.vocab_size)
    assert_equal_trees(params, in_memory(exported, "int4", group_size=4))


def test_groups_may_span_heads(tmp_path):
    """A head of 8 and groups of 16: o_proj's scales are one for every second head."""
    config = small_config(4, hidden_size=32, intermediate_size=48, num_attention_heads=4)
    save_hf(tmp_path / "hf", config, random_params(config))
    quantize(tmp_path / "hf", tmp_path / "q", dtype="int4", group_size=16)
    _, params = load_hf(tmp_path / "q")
    scales = params["layers"]["0"]["self_attn"]["o_proj"]["kernel"].scales
    assert scales.shape == (1, 2, 1, 32)
    assert_equal_trees(params, in_memory(tmp_path / "hf", "int4", group_size=16))


def test_stored_tensors_are_compressed_tensors(exported, tmp_path):
    """What transformers and vLLM read: names, dtypes, shapes and packing, by hand."""
    quantize(exported, tmp_path / "q", dtype="int4", group_size=8)
    records = read_header(tmp_path / "q" / "model.safetensors", packed=True)
    name = "model.layers.9.mlp.down_proj.weight"
    F, D = CONFIG.intermediate_size, CONFIG.hidden_size
    assert (records[f"{name}_packed"].dtype, records[f"{name}_packed"].shape) == (
        "int32",
        (D, F // 8),
    )
    assert (records[f"{name}_scale"].dtype, records[f"{name}_scale"].shape) == (
        "bfloat16",
        (D, F // 8),
    )
    assert records[f"{name}_shape"].dtype == "int64"
    assert records["model.norm.weight"].dtype == "bfloat16"

    def read(suffix, dtype):
        record = records[name + suffix]
        data = record.file.read_bytes()[record.start : record.stop]
        return np.frombuffer(data, dtype).reshape(record.shape)

    words = read("_packed", "<u4")
    values = np.stack([words >> (4 * i) & 15 for i in range(8)], -1).astype(int) - 8
    scales = read("_scale", ml_dtypes.bfloat16).astype(np.float32)
    restored = (values * scales[..., None]).reshape(D, F)
    kernel = load_hf(exported)[1]["tail"]["1"]["mlp"]["down_proj"]["kernel"]
    error = np.abs(restored - np.asarray(kernel, np.float32).T)
    assert np.all(error.reshape(D, -1, 8) <= scales[..., None] / 2 * (1 + 1e-4))
    found = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert (found["quant_method"], found["format"]) == ("compressed-tensors", "pack-quantized")
    scheme = found["config_groups"]["group_0"]["weights"]
    assert (scheme["num_bits"], scheme["strategy"], scheme["group_size"]) == (4, "group", 8)


@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_unpacked_as_they_were_packed(bits):
    values = np.arange(-(1 << (bits - 1)), 1 << (bits - 1)).astype(np.int8).reshape(2, -1)
    np.testing.assert_array_equal(unpack_words(pack_words(values, bits), bits), values)


def test_checkpoints_are_sources_too(exported, tmp_path, capsys):
    assert main(["from-hf", str(exported), str(tmp_path / "checkpoint")]) == 0
    arguments = [str(tmp_path / "checkpoint"), str(tmp_path / "q"), "--dtype", "int8"]
    assert main(["quantize", *arguments]) == 0
    assert "int8, " in capsys.readouterr().out
    assert_equal_trees(load_hf(tmp_path / "q")[1], in_memory(exported, "int8"))


def test_blocks_of_rows_give_the_same_bits(exported, tmp_path, monkeypatch):
    """A weight of many blocks; the memory of a conversion is that of a few of them."""
    quantize(exported, tmp_path / "whole", dtype="int4")
    monkeypatch.setattr("convert.sources.BLOCK_BYTES", 1024)
    quantize(exported, tmp_path / "blocks", dtype="int4", workers=3)
    name = "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "blocks" / name).read_bytes()
    assert_equal_trees(load_hf(tmp_path / "blocks")[1], in_memory(exported, "int4"))


def test_what_is_quantized_is_no_source(exported, tmp_path, capsys):
    quantize(exported, tmp_path / "q", dtype="int8")
    for command in ("quantize", "from-hf"):
        arguments = [command, str(tmp_path / "q"), str(tmp_path / "again"), "--dtype"]
        assert main([*arguments, "int4" if command == "quantize" else "float32"]) == 2
        error = capsys.readouterr().err
        assert "holds weights quantized already (quant_method 'compressed-tensors')" in error
        assert not (tmp_path / "again").exists()
    config, params = load_hf(tmp_path / "q")
    with pytest.raises(ConversionError, match=r"is quantized; expected arrays: give .*dequantize"):
        save_hf(tmp_path / "again", config, params)
    save_hf(tmp_path / "again", config, quantization.dequantize_params(params))
    restored = load_hf(tmp_path / "again")[1]["lm_head"]["kernel"]
    exact = load_hf(exported)[1]["lm_head"]["kernel"]
    np.testing.assert_allclose(np.float32(restored), np.float32(exact), atol=0.01)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dtype": "int5"}, "format is 'int5'; expected one of int8, int4, fp8"),
        ({"dtype": "int4", "group_size": 7}, "group_size is 7; expected an even divisor"),
        ({"dtype": "fp8", "group_size": 8}, "group_size is 8 and the format fp8"),
        ({"dtype": "int8", "workers": 0}, "workers is 0"),
        ({"dtype": "int8", "max_shard_bytes": 0}, "max_shard_bytes is 0"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(exported, tmp_path, options, text):
    with pytest.raises(ConversionError, match=text):
        quantize(exported, tmp_path / "q", **options)
    assert not list(tmp_path.iterdir())


def test_a_destination_that_holds_something_is_refused(exported, tmp_path):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ConversionError, match="exists and is not an empty folder"):
        quantize(exported, tmp_path, dtype="int8")
    assert (tmp_path / "mine").read_text() == "kept"


def test_inputs_that_fill_no_words_are_refused(tmp_path):
    config = small_config(4, hidden_size=20, intermediate_size=36, num_attention_heads=2)
    save_hf(tmp_path / "hf", config, random_params(config))
    with pytest.raises(ConversionError, match="has 20 inputs; int4 is stored for multiples of 8"):
        quantize(tmp_path / "hf", tmp_path / "q", dtype="int4")


def change(folder: Path, **values) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] = {**config["quantization_config"], **values}
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"quant_method": "gptq"}, "expected weights alone in int8 or fp8 by channel"),
        ({"format": "marlin-24"}, "expected weights alone"),
        ({"config_groups": {}}, "expected weights alone"),
        ({"ignore": ["model.layers.0.mlp.up_proj"]}, "unknown tensor model.layers.0.mlp.up_proj"),
    ],
)
def test_folders_of_other_schemes_are_refused(exported, tmp_path, values, text):
    quantize(exported, tmp_path / "q", dtype="int8")
    change(tmp_path / "q", **values)
    with pytest.raises(ConversionError, match=text):
        load_hf(tmp_path / "q")


def test_damaged_folders_are_refused(exported, tmp_path):
    quantize(exported, tmp_path / "q", dtype="int4", group_size=8)
    change(tmp_path / "q", config_groups={"group_0": group_of(tmp_path / "q", group_size=4)})
    with pytest.raises(ConversionError, match=r"weight_scale is bfloat16\[.*config.json makes it"):
        load_hf(tmp_path / "q")
    file = tmp_path / "q" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConversionError, match="truncated"):
        load_hf(tmp_path / "q")


def group_of(folder: Path, **changes):
    found = json.loads((folder / "config.json").read_text())["quantization_config"]
    group = found["config_groups"]["group_0"]
    return {**group, "weights": {**group["weights"], **changes}}


def test_a_plain_head_beside_quantized_layers_is_read(exported, tmp_path):
    """As published models have it: ``ignore`` names the head."""
    files = pytest.importorskip("safetensors.numpy")
    quantize(exported, tmp_path / "q", dtype="int8")
    file = tmp_path / "q" / "model.safetensors"
    tensors = {k: v for k, v in files.load_file(file).items() if not k.startswith("lm_head.")}
    head = files.load_file(exported / "model.safetensors")["lm_head.weight"]
    files.save_file(tensors | {"lm_head.weight": head}, file)
    change(tmp_path / "q", ignore=["lm_head"])
    _, params = load_hf(tmp_path / "q")
    assert_equal_trees(params["lm_head"], load_hf(exported)[1]["lm_head"])
    assert quantization.describe(params) == "int8"


def test_peak_does_not_grow_with_the_model(tmp_path):
    """Blocks of 1 MiB of weights of 48 MB each."""
    config = ModelConfig(
        vocab_size=64,
        hidden_size=1024,
        intermediate_size=12_288,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        layer_types=("full_attention",),
        sliding_window=16,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)),
        abstract_params(config),
    )
    save_hf(tmp_path / "hf", config, params)
    assert max(np.prod(w.hf_shape) for w in weights(config)) * 4 > 48_000_000
    code = (
        "import sys, convert.sources, convert.quantize, convert.quantized\n"
        "convert.sources.BLOCK_BYTES = 1 << 20\n"
        "def peak():\n"
        "    line = next(x for x in open('/proc/self/status') if x.startswith('VmHWM'))\n"
        "    return int(line.split()[1]) * 1024\n"
        "before = peak()\n"
        "convert.quantize.quantize(sys.argv[1], sys.argv[2], dtype='int4', workers=1)\n"
        "print(peak() - before)\n"
    )
    arguments = [str(tmp_path / "hf"), str(tmp_path / "q")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 24_000_000  # half of a weight
