"""Runs that generate traces, train on them and end with what they predict, from end to end."""

import json
from pathlib import Path

import pytest

import train
from configs import quickstart

CODE = Path(train.__file__).parent / "cwm_jax"  # in place of the standard library: it is smaller
SMALL = """
import dataclasses
from configs import {base} as base

def small(source):
    return dataclasses.replace(source, kind="folder", path={code!r}, glob="**/*.py")

def get_config():
    config = base.get_config()
    source = dataclasses.replace(
        config.data.sources[0], path={folder!r} + "/traces",
        generate=dataclasses.replace(config.data.sources[0].generate, programs={programs}),
    )
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            sources=(source, *(small(other) for other in config.data.sources[1:])),
            cache_directory={folder!r} + "/data",
            heldout_fraction=0.1,
        ),
        mesh=dataclasses.replace(config.mesh, data=8, fsdp=1),
        trace_evaluation=dataclasses.replace(
            config.trace_evaluation, corpus={folder!r} + "/{corpus}", episodes=2, batch_size=2
        ),
        base_output_directory={folder!r} + "/runs",
    )
"""


@pytest.fixture
def run(tmp_path, capsys):
    """``run("quickstart", "steps=2", ...)`` -> exit code, what was printed, errors."""

    def run(
        base: str, *values: str, programs: int = 60, corpus: str = "traces"
    ) -> tuple[int, str, str]:
        file = tmp_path / "small.py"
        names = {"base": base, "folder": str(tmp_path), "code": str(CODE)}
        file.write_text(SMALL.format(**names, programs=programs, corpus=corpus))
        code = train.main(["--config", str(file), "--set", *values])
        return code, *capsys.readouterr()

    return run


QUICK = (
    "steps=2",
    "batch.per_device_batch_size=1",
    f"batch.global_batch_tokens={8 * quickstart.T}",
    "logging.export=none",
)


def test_quickstart_generates_traces_trains_and_predicts(run, tmp_path):
    code, out, err = run("quickstart", *QUICK)
    assert (code, err) == (0, ""), err
    assert "source traces: tracing 60 generated programs" in out
    assert "teacher-forced frames" in out
    assert "true trace" in out
    assert "predicted trace" in out
    result = json.loads((tmp_path / "runs" / "quickstart" / "traces.json").read_text())
    assert result["step"] == 2
    assert result["programs"]["overall"]["programs"] == 2
    assert (tmp_path / "runs" / "quickstart" / "traces.png").stat().st_size
    # again: the same corpus and the finished run; other programs are predicted
    rows = tmp_path / "rows.jsonl"
    codes = ["def f(x):\n    return x + 1", "def f(x):\n    while True: pass\n", "def f(x:"]
    codes += codes[:1] * 2  # two programs are predicted
    rows.write_text("".join(json.dumps({"code": c, "input": "1"}) + "\n" for c in codes))
    code, out, err = run("quickstart", *QUICK, f"trace_evaluation.jsonl={rows}")
    assert (code, err) == (0, ""), err
    assert "tracing 60" not in out
    folder = tmp_path / "runs" / "quickstart"
    result = json.loads((folder / "traces-rows.json").read_text())
    assert result["predicted"] == str(rows)
    assert result["passed_over"] == {"cut": 0, "too_long": 0, "without_trace": 2, "not_reached": 1}
    assert json.loads((folder / "traces.json").read_text())["predicted"] != str(rows)
    # another corpus than the config asks for is not trained on
    code, out, err = run("quickstart", *QUICK, programs=61)
    assert code == 2
    assert "remove the folder, or set another path" in err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("trace_evaluation.jsonl=/no/such/file", "no such file"),
        ("trace_evaluation.max_length=100000", "exceeds model.max_position_embeddings"),
        ("trace_evaluation.modes=free", "modes"),
        ("data.sources.0.generate.kinds=nope", "nope"),
        ("data.sources.0.generate.difficulties=6", "expected some of 1 to 5"),
    ],
)
def test_what_cannot_be_predicted_or_generated_is_refused_before_training(run, value, message):
    code, out, err = run("quickstart", *QUICK, value, programs=3)
    assert code == 2
    assert message in err
    assert "step" not in out


def test_a_corpus_to_predict_that_is_not_there_is_refused_before_training(run):
    code, out, err = run("quickstart", *QUICK, programs=3, corpus="others")
    assert code == 2
    assert "others/manifest.json: no readable manifest" in err
    assert "step" not in out


@pytest.mark.slow
def test_worldmodel_gpu_takes_two_steps_on_a_cpu(run, tmp_path):
    code, out, err = run(
        "worldmodel_gpu",
        "steps=2",
        "mesh.data=1",
        "mesh.fsdp=8",
        "model.num_hidden_layers=2",
        "model.layer_types=full_attention,sliding_attention",
        "batch.max_target_length=128",
        "batch.per_device_batch_size=1",
        "batch.global_batch_tokens=1024",
        "execution.loss_chunk_tokens=128",
        "tokenizer.training_bytes=2000000",
        "logging.eval_rows=8",
        "logging.export=none",
        "trace_evaluation.episodes=1",
        "trace_evaluation.max_length=512",
        "trace_evaluation.modes=single_step",
    )
    assert (code, err) == (0, ""), err
    assert "step 2/2" in " ".join(out.split())
    assert (tmp_path / "runs" / "worldmodel_gpu" / "traces.json").is_file()
