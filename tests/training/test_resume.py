"""A run that is killed, stopped or out of disk goes on as if nothing had happened.

Each run is a process of its own: train.py with a config file made by the fixture.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import write_corpus

from cwm_jax.training.checksums import damage
from cwm_jax.training.metrics import TIMING_FIELDS, read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 24
CONFIG = """
import dataclasses, pathlib, sys
sys.path.insert(0, {tests!r})
from tiny import tiny_run

def get_config():
    config = tiny_run(pathlib.Path({folder!r}), accumulation=2)
    return dataclasses.replace(
        config,
        run_name={name!r},
        optimizer=dataclasses.replace(config.optimizer, train_tokens={steps} * 2 * 2 * 32),
        checkpoint=dataclasses.replace(config.checkpoint, checkpoint_period=3, keep_last=100),
    )
"""


class Runs:
    """Runs of one config under several names."""

    def __init__(self, folder: Path):
        self.folder = folder
        write_corpus(folder)

    def start(self, name: str, *args: str, shell: str = 'exec "$0" "$@"') -> subprocess.Popen:
        config = self.folder / f"{name}.py"
        values = dict(tests=str(ROOT / "tests"), folder=str(self.folder), name=name, steps=STEPS)
        config.write_text(CONFIG.format(**values))
        env = {
            **os.environ,
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "PYTHONUNBUFFERED": "1",
        }
        return subprocess.Popen(
            ["bash", "-c", shell, sys.executable, "train.py", "--config", str(config), *args],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, name: str, *args: str) -> str:
        process = self.start(name, *args)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def cut(self, name: str, other: str, step: int) -> None:
        """Makes a run of what another one had written when it had just saved that step."""
        shutil.copytree(self.folder / "runs" / other, self.folder / "runs" / name)
        for saved in self.checkpoints(name).iterdir():
            if int(saved.name) > step:
                shutil.rmtree(saved)

    def metrics(self, name: str) -> list[dict]:
        return read_metrics(self.folder / "runs" / name / "metrics.jsonl")

    def checkpoints(self, name: str) -> Path:
        return self.folder / "runs" / name / "checkpoints"

    def arrays(self, name: str) -> dict[str, bytes]:
        """Every byte of the last checkpoint's arrays."""
        state = self.checkpoints(name) / f"{STEPS:08d}" / "state"
        files = sorted(p for p in state.rglob("*") if p.is_file() and p.parent.name.count("."))
        assert len(files) > 50
        return {str(p.relative_to(state)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def uninterrupted(runs: Runs) -> str:
    output = runs.finish("whole")
    assert f"step {STEPS}/{STEPS}" in output
    return "whole"


def assert_same_run(runs: Runs, name: str, other: str) -> None:
    def without_times(lines):
        return [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in lines]

    got, expected = without_times(runs.metrics(name)), without_times(runs.metrics(other))
    assert [line["step"] for line in got] == list(range(STEPS + 1))
    assert got == expected  # floats are compared bit for bit: JSON carries them exactly
    assert runs.arrays(name) == runs.arrays(other)


def wait_for(condition, process, timeout_s=90):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_kill_at_random_moments_also_during_a_save(runs, uninterrupted):
    rng = random.Random(0)
    folder = runs.checkpoints("killed")
    process = runs.start("killed")
    wait_for(lambda: runs.metrics("killed"), process)  # before the first save is whole
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kills = 0
    for round_number in range(3):
        process = runs.start("killed")
        seen = len(list(folder.glob("0*")))
        if round_number != 1:  # while a save is being written
            wait_for(lambda: list(folder.glob(".tmp-*")), process)
        else:  # somewhere after the next checkpoint
            wait_for(lambda seen=seen: len(list(folder.glob("0*"))) > seen, process)
            time.sleep(rng.random() * 0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    runs.finish("killed")
    assert kills >= 2
    assert_same_run(runs, "killed", uninterrupted)


@pytest.mark.slow
def test_sigterm_saves_exits_0_and_says_how_to_resume(runs, uninterrupted):
    process = runs.start("stopped")
    wait_for(lambda: len(runs.metrics("stopped")) > 4, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "SIGTERM: saved step" in output and "to resume" in output
    assert len(runs.metrics("stopped")) < STEPS + 1, "it was too fast to be stopped"
    assert "resuming at step" in runs.finish("stopped")
    assert_same_run(runs, "stopped", uninterrupted)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_only_time(runs, uninterrupted):
    runs.cut("damaged", uninterrupted, 9)
    newest = runs.checkpoints("damaged") / "00000009"
    chunk = next(newest.glob("state/params.embed_tokens*/0.0"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    output = runs.finish("damaged")
    assert "00000009 is damaged" in output and "resuming at step 6" in output
    assert (runs.checkpoints("damaged") / "00000009.damaged-1").is_dir()
    # what the flipped bit spoilt was never read; steps 7 to 9 were done again
    assert_same_run(runs, "damaged", uninterrupted)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_what_was_saved(runs, uninterrupted):
    runs.cut("full", uninterrupted, 9)

    # every file beyond 8 KiB fails: EFBIG stands for ENOSPC
    process = runs.start("full", shell='trap "" XFSZ; ulimit -f 8; exec "$0" "$@"')
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 2, output
    assert (
        "could not save a checkpoint" in output
        and "newest complete checkpoint is 00000009" in output
    )
    assert damage(runs.checkpoints("full") / "00000009") == []
    assert not list(runs.checkpoints("full").glob(".tmp-*"))
    runs.finish("full")
    assert_same_run(runs, "full", uninterrupted)


@pytest.mark.slow
def test_a_second_process_and_another_config_are_refused(runs, uninterrupted):
    process = runs.start("whole", "--set", "seed=5", "--set", "optimizer.learning_rate=0.5")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "belongs to another run" in output
    assert "seed: checkpoint 0, config 5" in output
    first = runs.start("twice", "--set", "steps=6")
    wait_for(lambda: runs.metrics("twice"), first)
    first.send_signal(signal.SIGSTOP)
    second = runs.start("twice")
    output, _ = second.communicate(timeout=60)
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=60)
    assert second.returncode == 2
    assert "another process is training" in output


def test_timing_fields_are_all_that_may_differ(runs, uninterrupted):
    line = runs.metrics(uninterrupted)[-1]
    assert set(line) > TIMING_FIELDS
    assert {"loss", "grad_norm", "learning_rate", "heldout_loss", "tokens"} <= set(line)
    assert np.isfinite(line["loss"])
    assert json.loads((runs.folder / "runs" / "whole" / "config.json").read_text())["seed"] == 0
