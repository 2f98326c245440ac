"""The benchmarks run: both sides of a step are taken, and real programs are compiled."""

import argparse
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import sharp_params, tiny_model
from torch.nn.attention.flex_attention import create_mask

from benchmarks import (
    attention_cpu,
    attention_gpu,
    attention_gpu_torch,
    compile_time,
    inference,
    inference_32b,
    quantization,
    sandbox,
    serve_load,
    train_step_cpu,
)
from convert import save_hf
from cwm_jax.kernels.mask import causal_mask, dense_mask
from cwm_jax.kernels.reference import reference_attention

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda p: p.stem
)
def test_its_documented_command_starts_from_the_repository(file):
    command = f"-m benchmarks.{file.stem}"
    assert f"python {command}" in file.read_text()
    result = subprocess.run(
        [sys.executable, *command.split(), "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


def test_both_sides_of_the_step_benchmark_take_a_step():
    tokens = np.zeros((2, 17), np.int32)
    for step in (
        train_step_cpu.our_step(tokens, 2),
        train_step_cpu.torch_step(tokens, 2, "sdpa"),
    ):
        assert train_step_cpu.seconds(step, 1) > 0


def test_quantization_is_compared_over_what_is_counted():
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((2, 6, 11)).astype(np.float32)
    tokens = np.concatenate([np.zeros((2, 1), np.int32), exact.argmax(-1)], axis=1)
    frames = np.array([[0, 1, 1, 2, 0, 0], [0, 0, 1, 1, 2, 2]])
    texts = quantization.Texts(tokens, frames > 0, frames)
    same = quantization.compare(exact, exact, texts)
    assert (same.kl, same.tokens, same.frames) == (0, 1, 1)
    other = exact.copy()
    other[0, 1] *= -1  # a token of the first frame of four
    other[0, 5] *= -1  # padding
    ours = quantization.compare(exact, other, texts)
    assert ours.kl > 0
    assert (ours.tokens, ours.frames) == (6 / 7, 3 / 4)


def test_both_sides_of_the_inference_benchmark_make_the_same_tokens(tmp_path):
    config = tiny_model()
    params = sharp_params(config)
    save_hf(tmp_path, config, params)
    sides = [inference.ours(params, config, 2, 40), inference.theirs(str(tmp_path), "float32")]
    prompts = np.random.default_rng(0).integers(config.vocab_size, size=(2, 30))
    our, their = inference.measure(sides, prompts, 8, rounds=1)
    np.testing.assert_array_equal(our.tokens, their.tokens)
    assert our.tokens.shape == (2, 8) and min(our.first_s, their.first_s) > 0
    # two layers of five keep their window, in pages on our side: here all of one page
    assert [side.cache_bytes(2, 38) for side in sides] == [2 * 5 * 64 * 128, 2 * 125 * 128]


@pytest.mark.parametrize("weights", ["int4", "bf16"])
def test_decoding_is_timed_in_every_format(capsys, weights):
    arguments = argparse.Namespace(rows=[1, 2], kv_dtype=None, prompt_tokens=40, new_tokens=40)
    inference_32b.measure(tiny_model(), weights, arguments)
    out = capsys.readouterr().out
    assert f"{weights}: " in out and "| 1 | " in out and "| 2 | " in out


def test_compile_times_are_measured():
    stage, compile_ = compile_time.compile_seconds(2, scan=True)
    assert stage > 0 and compile_ > 0


KINDS_OF_MASK = [
    attention_gpu.Case(2, 96, window, mean_document, heads=(4, 2, 64))
    for window in (None, 20)
    for mean_document in (None, 12)
]


def test_the_smallest_gpu_case_is_gated_timed_and_saved(tmp_path, capsys, unchecked_types):
    file = tmp_path / "samples.json"
    command = ["--smallest", "--no-torch", "--reps", "2", "--rounds", "2", "--json", str(file)]
    attention_gpu.main([*command, "--implementations", "chunked", "triton", "cudnn", "nonesuch"])
    found = json.loads(file.read_text())
    assert [row["implementation"] for row in found["results"]] == ["chunked", "triton"]
    assert all(len(row["forward"]) == len(row["both"]) == 2 for row in found["results"])
    left_out = {row["implementation"]: row["reason"] for row in found["left_out"]}
    assert set(left_out) == {"cudnn", "nonesuch"}
    printed = capsys.readouterr().out
    for name, reason in left_out.items():
        assert f"left out: smallest, {name}: {reason}" in printed
    assert "| smallest | triton | " in printed


def test_what_pytorch_finds_in_its_own_process_is_merged(capsys):
    command = ["--cases", "smallest", "smallest full", "--reps", "1", "--rounds", "1"]
    attention_gpu.main([*command, "--implementations", "torch flash"])
    printed = capsys.readouterr().out
    assert "left out: smallest, torch flash: ValueError: SDPA has documents and windows" in printed
    assert "| smallest full | torch flash | " in printed


def test_a_wrong_implementation_is_left_out(monkeypatch, unchecked_types):
    def one_key_too_many(case):
        mask = causal_mask(case.rows, case.tokens, case.window + 1)
        attend = functools.partial(reference_attention, mask=mask, scale=case.scale)
        return lambda q, k, v, mask: attend(q, k, v)

    monkeypatch.setattr(attention_gpu, "tokamax", one_key_too_many)
    case = attention_gpu.CASES["131k local"].small()
    with pytest.raises(ValueError, match="wrong: relative errors against the float32 reference"):
        attention_gpu.gate("tokamax", case)
    attention_gpu.gate("reference", case)


def test_nothing_is_timed_once_the_limit_has_passed(capsys):
    command = ["--smallest", "--no-torch", "--budget-s", "0", "--implementations", "chunked"]
    attention_gpu.main(command)
    printed = capsys.readouterr().out
    assert "left out: smallest, chunked: TimeoutError: the time limit of 0 s" in printed


@pytest.mark.parametrize("case", KINDS_OF_MASK)
def test_flops_and_pytorchs_masks_are_those_of_our_mask(case):
    mask = attention_gpu.make_inputs(case).mask
    N, _, H = case.heads
    expected = np.asarray(dense_mask(mask))
    assert case.forward_flops() == 4 * N * H * expected.sum()
    np.testing.assert_array_equal(attention_gpu_torch.visible(case).expand(2, 96, 96), expected)
    seen = create_mask(attention_gpu_torch.mask_of(case), 2, 1, 96, 96, device="cpu")
    np.testing.assert_array_equal(seen[:, 0], expected)


@pytest.mark.parametrize("case", [c for c in KINDS_OF_MASK if c.mean_document])
def test_cudnn_is_given_the_documents(case, monkeypatch):
    """Its private function is replaced by one that reads the arguments as their text says."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    def attend(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type, **options):
        assert mask_type == cudnn.MaskType.PADDING_CAUSAL
        visible = np.zeros((q.shape[0], q.shape[1], k.shape[1]), bool)
        for row, of_row in enumerate(visible):
            for start, length in zip(q_offsets[row, :-1], q_seqlen[row], strict=True):
                if start >= 0:
                    document = slice(start, start + length)
                    of_row[document, document] = np.tri(length)
        window = options["sliding_window_length"]
        if window is not None:
            visible = np.triu(visible, 1 - window)
        np.testing.assert_array_equal(q_offsets, kv_offsets)
        np.testing.assert_array_equal(q_seqlen, kv_seqlen)
        return jnp.asarray(visible)

    monkeypatch.setattr(cudnn, "dot_product_attention", attend)
    q, k, v, _, mask = attention_gpu.make_inputs(case)
    got = attention_gpu.cudnn_packed(case)(q, k, v, mask)
    np.testing.assert_array_equal(got, dense_mask(mask))


def test_documents_fill_the_rows_and_are_as_long_as_stated():
    for case in attention_gpu.CASES.values():
        rows = case.document_lengths()
        assert [sum(row) for row in rows] == [case.tokens] * case.rows
        assert case.rows * case.tokens == 131_072
    lengths = np.concatenate(attention_gpu.CASES["8k packed"].document_lengths())
    assert 0.5 * 2048 < lengths.mean() < 1.5 * 2048


def test_attention_is_measured_on_the_cpu(capsys, monkeypatch):
    monkeypatch.setattr(attention_cpu, "MEASURED_S", 0)
    for name in attention_cpu.IMPLEMENTATIONS:
        seconds, _ = attention_cpu.measure(name, 16)
        assert seconds > 0
    _, growth = attention_cpu.measure("reference", 2048)  # holds at least the probabilities
    assert growth > 4 * attention_cpu.N * 2048**2
    monkeypatch.setattr(attention_cpu, "IMPLEMENTATIONS", ("chunked",))
    attention_cpu.main(["--tokens", "16", "--rounds", "1"])
    assert "| 16 | chunked | " in capsys.readouterr().out


def test_each_part_of_the_sandbox_is_measured(capsys):
    sandbox.main(["--seconds", "0", "--rounds", "1", "--workers", "1", "2"])
    printed = capsys.readouterr().out
    names = ("subprocess.run", "run, python -c pass: cold", "Worker.call: warm")
    names += ("Pool.call, workers and threads: 1", "Pool.call, workers and threads: 2")
    for name in (*names, "start and end of a Shell", "Shell.run, true"):
        assert f"| {name}" in printed


def test_a_short_load_leaves_nothing_behind(capsys, monkeypatch):
    monkeypatch.setattr(serve_load, "MAX_GROWTH", 0.5)  # three seconds are all start
    command = ["--seconds", "3", "--streams", "16", "--max-rows", "2", "--max-length", "256"]
    status = serve_load.main(command)
    printed = capsys.readouterr().out
    assert status == 0 and "everything holds" in printed, printed
    for kind in ("stream: answered", "cancel: left", "too large: 413", "malformed: 400"):
        assert f"| {kind} | " in printed
