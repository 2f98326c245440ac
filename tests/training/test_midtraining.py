"""Mid-training from end to end: one schedule, scaled RoPE, three sources, buckets, a kill."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import tiny_model, tiny_run, write_corpus
from trace_corpora import episode, write_trace_corpus

from cwm_jax.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    LengthBucket,
    LoggingConfig,
    MeshConfig,
    OptimizerConfig,
    RopeParameters,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
)
from cwm_jax.config.schema import to_json
from cwm_jax.data.loader import heldout_rows
from cwm_jax.data.mixture import source_shares
from cwm_jax.data.prepare import prepare
from cwm_jax.data.split import is_heldout
from cwm_jax.training import loop
from cwm_jax.training.checkpoint import read_record, resolve_checkpoint
from cwm_jax.training.metrics import TIMING_FIELDS, read_metrics
from cwm_jax.training.plan import make_plan
from cwm_jax.training.scaling.flops import flops_per_token

ROOT = Path(__file__).parents[2]
T, STEP_TOKENS = 64, 8 * 64  # one row for each of this process's devices
PRETRAIN_STEPS, MIDTRAIN_STEPS = 6, 16
LONG = 120
EPISODES = [
    episode(f"p{p}", n, num_frames=(7 * p + n) % 9, finished=(p + n) % 5 > 0)
    for p in range(20)
    for n in range(3)
]


def run_config(folder: Path, name: str, **changes) -> RunConfig:
    values = dict(
        run_name=name,
        batch=BatchConfig(max_target_length=T, per_device_batch_size=1),
        mesh=MeshConfig(data=8, fsdp=1, tensor=1),
        checkpoint=CheckpointConfig(checkpoint_period=3, keep_last=100),
        logging=LoggingConfig(log_period=1, eval_period=5, eval_rows=8),
    )
    return tiny_run(folder, **values | changes)


def optimizer(**changes) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=1e-2,
        warmup_tokens=2 * STEP_TOKENS,
        horizon_tokens=(PRETRAIN_STEPS + MIDTRAIN_STEPS) * STEP_TOKENS,
        **changes,
    )


def pretraining(folder: Path) -> RunConfig:
    tokens = PRETRAIN_STEPS * STEP_TOKENS
    return run_config(
        folder,
        "pretrain",
        model=tiny_model(max_position_embeddings=T),
        optimizer=optimizer(train_tokens=tokens),
    )


def midtraining(folder: Path, name: str = "midtrain", **changes) -> RunConfig:
    sources = (
        SourceConfig(name="traces", kind="traces", path=str(folder / "traces"), weight=0.3),
        SourceConfig(name="code", kind="folder", path=str(folder / "corpus"), weight=0.4),
        SourceConfig(name="rehearsal", kind="folder", path=str(folder / "short"), weight=0.3),
    )
    scaled = RopeParameters(rope_type="llama3", factor=4.0, original_max_position_embeddings=T)
    checkpoint = CheckpointConfig(
        checkpoint_period=3,
        keep_last=100,
        load_full_state_path=str(folder / "runs" / "pretrain"),
    )
    config = run_config(
        folder,
        name,
        model=tiny_model(rope_parameters=scaled),
        tokenizer=TokenizerConfig(
            path=str(resolve_checkpoint(folder / "runs" / "pretrain")) + "/tokenizer"
        ),
        data=DataConfig(
            sources=sources,
            cache_directory=str(folder / "data"),
            heldout_fraction=0.2,
            length_buckets=(
                LengthBucket(max_document_tokens=LONG),
                LengthBucket(attention_cap=16),
            ),
        ),
        optimizer=optimizer(
            start_tokens=PRETRAIN_STEPS * STEP_TOKENS, train_tokens=MIDTRAIN_STEPS * STEP_TOKENS
        ),
        checkpoint=checkpoint,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Three corpora and a pre-trained model."""
    folder = tmp_path_factory.mktemp("midtrain")
    write_corpus(folder)
    write_trace_corpus(folder / "traces", EPISODES[:31], EPISODES[31:])
    (folder / "short").mkdir()
    for number in range(80):
        text = f"def read_row_{number}(x):\n    return make_tree(x) + {number}\n"
        (folder / "short" / f"{number:03d}.py").write_text(text * (1 + number % 7))
    assert loop.run(pretraining(folder)).finished
    return folder


@pytest.fixture(scope="module")
def midtrained(home):
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
        result = loop.run(midtraining(home))
    return result, "\n".join(lines)


def test_it_starts_from_the_state_of_pre_training_with_scaled_rope(home, midtrained):
    result, printed = midtrained
    assert result.finished
    assert f"starting from params and opt_state of {home}/runs/pretrain" in printed
    assert "another rope_parameters.rope_type: weights 'default', config 'llama3'" in printed
    counts = [int(x) for x in jax.tree.leaves(result.state.opt_state) if x.ndim == 0]
    assert PRETRAIN_STEPS + MIDTRAIN_STEPS in counts, "Adam's count goes on"
    stored = json.loads((resolve_checkpoint(result.folder) / "config.json").read_text())
    assert stored["rope_parameters"]["rope_type"] == "llama3"


def test_learning_rate_and_tokens_go_on_the_shared_cosine(home, midtrained):
    both = [*read_metrics(home / "runs" / "pretrain" / "metrics.jsonl")[1:]]
    both += midtrained[0].metrics[1:]
    one_run = dataclasses.replace(
        pretraining(home),
        optimizer=optimizer(train_tokens=(PRETRAIN_STEPS + MIDTRAIN_STEPS) * STEP_TOKENS),
    )
    plan = make_plan(one_run)
    assert plan.total_steps == len(both) == PRETRAIN_STEPS + MIDTRAIN_STEPS
    record = read_record(resolve_checkpoint(midtrained[0].folder))
    assert record.peak_learning_rate == plan.peak_learning_rate  # what a resumed run is held to
    rate = jax.jit(jax.vmap(plan.learning_rate))
    np.testing.assert_allclose(  # two compiled programs round the last bit differently
        [line["learning_rate"] for line in both], rate(np.arange(len(both))), rtol=3e-7
    )
    assert [line["tokens"] for line in both] == [
        STEP_TOKENS * step for step in range(1, len(both) + 1)
    ]


def test_the_mixture_is_printed_at_the_start_and_epochs_at_the_end(midtrained):
    result, printed = midtrained
    for name, share in (("traces", 30), ("code", 40), ("rehearsal", 30)):
        assert f"source {name}: " in printed
        (line,) = [x for x in printed.splitlines() if f"{name}: " in x and "of the run" in x]
        assert f" unique tokens, {share}.00% of the run, " in line
        planned = float(line.split("of the run, ")[1].split(" epochs")[0])
        assert result.metrics[0][f"epochs_{name}"] == 0
        assert result.metrics[-1][f"epochs_{name}"] == pytest.approx(planned, rel=0.25)
    assert "epochs seen: traces " in printed


def test_steps_of_both_buckets_are_taken_each_with_its_program(midtrained):
    result, printed = midtrained
    buckets = [line["length_bucket"] for line in result.metrics[1:]]
    assert set(buckets) == {0, 1}
    assert printed.count("compiled the step") == 2
    assert "compiled the step, global attention capped at 16, in" in printed
    assert f"bucket of documents to {LONG} tokens, global attention not capped: " in printed
    long_share = float(printed.split("capped at 16: ")[1].split("%")[0].split(", ")[1])
    assert abs(sum(buckets) - long_share / 100 * MIDTRAIN_STEPS) < 1.5


def test_each_line_has_the_loss_of_its_bucket_and_the_flops_of_its_cap(home, midtrained):
    result, printed = midtrained
    plan = make_plan(midtraining(home))
    model, (long, capped) = plan.config.model, plan.bucket_flops_per_token
    assert long == flops_per_token(model, T) > capped == flops_per_token(model, T, attention_cap=16)
    for line in result.metrics[1:]:
        bucket = line["length_bucket"]
        assert line[f"loss_bucket_{bucket}"] == line["loss"]
        assert f"loss_bucket_{1 - bucket}" not in line
        flops_per_s = line["tokens_per_s"] * plan.bucket_flops_per_token[bucket]
        assert line["tflops_per_s"] == pytest.approx(flops_per_s / 1e12)
    assert f"{capped:.4g} FLOP per token" in printed and "  bucket 1" in printed


def test_the_cap_changes_the_first_step_of_its_bucket_and_none_before(home, midtrained):
    capped = midtrained[0].metrics[1:]
    first = [line["length_bucket"] for line in capped].index(1) + 1
    config = midtraining(home, "uncapped", steps=first)
    data = dataclasses.replace(
        config.data, length_buckets=(LengthBucket(max_document_tokens=LONG), LengthBucket())
    )
    uncapped = loop.run(dataclasses.replace(config, data=data)).metrics[1:]
    differs = [a["loss"] != b["loss"] for a, b in zip(capped, uncapped, strict=False)]
    assert differs == [False] * (first - 1) + [True]


def test_losses_fall_and_prompts_of_traces_are_no_targets(midtrained):
    result, _ = midtrained
    targets = [line["num_targets"] for line in result.metrics[1:]]
    assert max(targets) <= STEP_TOKENS and STEP_TOKENS / 2 < min(targets) < 0.9 * STEP_TOKENS
    before, after = result.heldout_losses()
    assert after < before


def test_the_loss_mask_sums_to_the_frames_tokens(home, midtrained):
    tokenizer = midtrained[0].tokenizer
    config = midtraining(home).data
    config = dataclasses.replace(config, sources=config.sources[:1], packing="first_fit")
    shards = [prepare(config.sources[0], config, tokenizer)]
    rows = heldout_rows(
        shards,
        config,
        shares=source_shares(config.sources, shards, train_tokens=1),
        max_target_length=T,
        num_rows=10**6,
    )
    frames = [e["frames"] for e in EPISODES if is_heldout(e["name"].split("#")[0], 0.2)]
    expected = sum(len(tokenizer.encode_with_special_tokens(text)) for text in frames)
    assert int(rows["loss_mask"].sum()) == expected > 0
    with_context = dataclasses.replace(config, trace_context_loss=True)
    more = heldout_rows(
        shards,
        with_context,
        shares=source_shares(config.sources, shards, train_tokens=1),
        max_target_length=T,
        num_rows=10**6,
    )
    assert int(more["loss_mask"].sum()) == int((rows["segment_ids"] > 0).sum()) > expected


_KILLED = """
import json, os, signal, sys
from cwm_jax.config import RunConfig
from cwm_jax.config.schema import from_json
from cwm_jax.training import loop
from cwm_jax.training.trainer import Trainer

write = Trainer._write
def killed(self, line, evaluated):
    write(self, line, evaluated)
    if line["step"] == int(sys.argv[2]):
        self._saver.wait()
        os.kill(os.getpid(), signal.SIGKILL)

Trainer._write = killed
loop.run(from_json(RunConfig, json.load(open(sys.argv[1]))))
"""


def test_a_kill_between_buckets_changes_nothing(home, midtrained):
    whole, _ = midtrained
    buckets = [line["length_bucket"] for line in whole.metrics[1:]]
    saved = [
        step
        for step in range(3, MIDTRAIN_STEPS - 2, 3)
        if len({*buckets[step - 1 : step + 1]}) == 2  # the next step is of the other bucket
    ]
    assert saved, buckets
    config = midtraining(home, "killed")
    (home / "killed.json").write_text(json.dumps(to_json(config)))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _KILLED, str(home / "killed.json"), str(saved[0] + 2)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoints = sorted((home / "runs" / "killed" / "checkpoints").glob("0*"))
    assert int(checkpoints[-1].name) == saved[0]
    resumed = loop.run(config)

    def without_times(lines):
        return [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in lines]

    assert without_times(resumed.metrics) == without_times(whole.metrics)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    seconds = json.loads((resumed.folder / "goodput.json").read_text())["seconds"]
    assert seconds["repeated"] > 0 and seconds["step"] > 0


def test_a_resumed_run_with_other_buckets_is_refused(home, midtrained):
    config = midtraining(home)
    data = dataclasses.replace(
        config.data, length_buckets=(LengthBucket(max_document_tokens=LONG), LengthBucket())
    )
    with pytest.raises(ValueError, match=r"(?s)belongs to another run.*data\.length_buckets"):
        loop.run(dataclasses.replace(config, data=data))


def test_epochs_that_do_not_fit_are_refused_before_the_first_step(home, midtrained):
    config = midtraining(home, "never")
    traces = dataclasses.replace(config.data.sources[0], weight=1.0, epochs=400.0)
    data = dataclasses.replace(config.data, sources=(traces, *config.data.sources[1:]))
    with pytest.raises(ValueError, match=r"traces 400 x .*% of optimizer.train_tokens \(8,192\)"):
        loop.run(dataclasses.replace(config, data=data))
