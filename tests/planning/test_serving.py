"""Law: what serving takes, by hand."""

import json

import pytest
from tiny import tiny_model

from configs import cwm_32b, cwm_32b_last_global
from cwm_jax.__main__ import main
from cwm_jax.planning.serving import serving_plan
from cwm_jax.training.hardware import GIB, accelerator

H100 = accelerator("h100")
MAPS = 64 * (6144 * (48 + 2 * 8) * 128 + 48 * 128 * 6144 + 3 * 6144 * 21_504) + 6144 * 128_256
OUTPUTS = 64 * ((48 + 2 * 8) * 128 + 6144 + 2 * 21_504 + 6144) + 128_256
REST = 128_256 * 6144 + (2 * 64 + 1) * 6144  # embedding and norms


def plan(**options):
    return serving_plan(cwm_32b.MODEL, accelerator=H100, **options)


@pytest.mark.parametrize(
    ("weights", "num_bytes"),
    [
        ("bfloat16", 2 * (MAPS + REST)),
        ("int8", MAPS + 4 * OUTPUTS + 2 * REST),
        ("fp8", MAPS + 4 * OUTPUTS + 2 * REST),
        ("int4", MAPS // 2 + 2 * MAPS // 128 + 2 * REST),
    ],
)
def test_weights_of_the_32b(weights, num_bytes):
    assert plan(weights=weights).weights_bytes == num_bytes


def test_a_row_costs_a_third_of_full_caches():
    """16 global layers keep 131,072 tokens, 48 local ones 8192 + 8 in whole pages and one more."""
    token = 2 * 8 * 128 * 2  # keys and values in bfloat16
    ring = (129 + 1) * 64
    assert plan().row_bytes == (16 * 131_072 + 48 * ring) * token
    assert plan().full_row_bytes == 64 * 131_072 * token == 32 * GIB
    assert plan(kv="int8").row_bytes == (16 * 131_072 + 48 * ring) * 2 * 8 * (128 + 4)
    last_global = serving_plan(cwm_32b_last_global.MODEL, accelerator=H100)
    assert last_global.row_bytes == (17 * 131_072 + 47 * ring) * token < 10 * GIB


def test_the_quantized_32b_fits_80_gb_with_its_whole_context():
    assert not plan().fits
    assert plan(weights="int8").most_rows >= 3
    assert plan(weights="int4", kv="int8").most_rows >= 10
    most = plan(weights="int4", kv="int8").most_rows
    assert plan(weights="int4", kv="int8", max_rows=most).fits
    assert not plan(weights="int4", kv="int8", max_rows=most + 1).fits


def test_arrays_are_as_large_as_planned():
    import jax

    from cwm_jax.inference.cache import init_cache
    from cwm_jax.inference.quantization import num_bytes, quantize
    from cwm_jax.model.transformer import init

    config = tiny_model()
    params = quantize(init(config, jax.random.key(0), dtype="bfloat16"), config, "int4")
    planned = serving_plan(config, accelerator=H100, weights="int4", kv="int8")
    assert planned.weights_bytes == num_bytes(params)
    cache = init_cache(config, 1, config.max_position_embeddings, dtype="int8").caches
    assert 0 <= planned.row_bytes - num_bytes(cache) <= planned.row_bytes // 4  # spare pages


def test_command(tmp_path, capsys):
    config = tiny_model().to_hf() | {"quantization_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", "--model", str(tmp_path), "--weights", "int4", "--kv", "int8"]) == 0
    said = capsys.readouterr().out
    assert "int8, 1 x 256 tokens" in said
    assert "fits; " in said
    assert main(["plan", "--model", "configs/cwm_32b.py"]) == 1
    assert "32.00 GiB if local layers kept all tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--weights", "int5"], "weights is 'int5'; expected one of bfloat16, float32, int8"),
        (["--kv", "int4"], "kv is 'int4'; expected one of"),
        (["--device", "h300"], "unknown accelerator 'h300'"),
        (["--rows", "0"], "max_rows is 0"),
        (["--max-length", "200000"], "max_length is 200000; expected 2 to 131072"),
        (["--model", "nowhere"], "expected a model's folder"),
    ],
)
def test_bad_arguments_are_refused(arguments, text, capsys):
    assert main(["plan", "--model", "configs/cwm_32b.py", *arguments]) == 2
    assert text in capsys.readouterr().err
