"""Runs of train.py in one process or several, with as many virtual devices as wanted in each."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from tiny import write_corpus

from cwm_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
BATCH_ROWS = 8
CONFIG = """
import dataclasses, pathlib, sys
sys.path.insert(0, {tests!r})
from cwm_jax.config import MeshConfig
from tiny import tiny_model, tiny_run

def get_config():
    config = tiny_run(pathlib.Path({folder!r}), model=tiny_model(num_hidden_layers=3))
    return dataclasses.replace(
        config,
        mesh=MeshConfig(),
        data=dataclasses.replace(config.data, num_streams=2),
        batch=dataclasses.replace(
            config.batch, gradient_accumulation_steps=None, global_batch_tokens={rows} * 32
        ),
        optimizer=dataclasses.replace(config.optimizer, train_tokens={steps} * {rows} * 32),
        checkpoint=dataclasses.replace(config.checkpoint, checkpoint_period=3, keep_last=100),
        logging=dataclasses.replace(config.logging, eval_period=1000),
    )
"""


class HostsRuns:
    """Runs in one folder, by name."""

    def __init__(self, folder: Path, steps: int):
        self.folder = folder
        write_corpus(folder)
        self._config = folder / "config.py"
        values = dict(tests=str(ROOT / "tests"), folder=str(folder), rows=BATCH_ROWS, steps=steps)
        self._config.write_text(CONFIG.format(**values))

    def start(
        self,
        name: str,
        *settings: str,
        processes: int = 1,
        devices: int = 1,
        options: tuple[str, ...] = (),
        only: dict[int, str] | None = None,
        shell: dict[int, str] | None = None,
    ) -> list[subprocess.Popen]:
        """Processes of a run with a micro-batch of eight rows.

        Args:
            settings: ``key=value`` for all.
            processes, devices: how many, and devices of each.
            options: more of train.py's.
            only: a setting for one process, by its number.
            shell: what bash runs in a process in the place of the command alone, by its number.
        """
        port = free_port()
        per_device = f"batch.per_device_batch_size={BATCH_ROWS / (processes * devices)}"
        started = []
        for i in range(processes):
            arguments = ["--config", str(self._config), "--set", f"run_name={name}", per_device]
            arguments += [*settings, *([only[i]] if only and i in only else [])]
            if processes > 1:
                arguments += ["--coordinator", f"localhost:{port}", "--process-id", str(i)]
                arguments += ["--num-processes", str(processes), "--heartbeat-timeout-s", "20"]
            command = (shell or {}).get(i, 'exec "$0" "$@"')
            started.append(
                subprocess.Popen(
                    ["bash", "-c", command, sys.executable, "train.py", *arguments, *options],
                    cwd=ROOT,
                    env=environment(devices),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        return started

    def finish(self, name: str, *settings: str, **how) -> list[str]:
        """What the processes of a run that ends well say."""
        return outputs(self.start(name, *settings, **how))

    def metrics(self, name: str) -> list[dict]:
        return [m for m in read_metrics(self._run(name) / "metrics.jsonl") if m["step"]]

    def losses(self, name: str) -> list[float]:
        lines = self.metrics(name)
        assert [m["step"] for m in lines] == list(range(1, len(lines) + 1))
        return [m["loss"] for m in lines]

    def checkpoints(self, name: str) -> list[str]:
        return sorted(path.name for path in (self._run(name) / "checkpoints").iterdir())

    def data_position(self, name: str, step: int) -> dict:
        record = self._run(name) / "checkpoints" / f"{step:08d}" / "run.json"
        return json.loads(record.read_text())["loader_state"]

    def wait_for_step(self, name: str, step: int, processes: list[subprocess.Popen]) -> None:
        deadline = time.monotonic() + 120
        while not (self.metrics(name) and self.metrics(name)[-1]["step"] >= step):
            ended = [p for p in processes if p.poll() is not None]
            assert not ended, ended[0].communicate()[0]
            assert time.monotonic() < deadline, f"{name} did not come to step {step}"
            time.sleep(0.05)

    def _run(self, name: str) -> Path:
        return self.folder / "runs" / name


def environment(devices: int) -> dict[str, str]:
    """Of a process with so many virtual devices; it shares the tests' compiled programs."""
    flags = re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}


def outputs(processes: list[subprocess.Popen], status: int | None = 0) -> list[str]:
    """What they said, all read at once; each ended with that status (None: with any but 0)."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda process: process.communicate(timeout=100)[0], processes))
    ended = [process.returncode for process in processes]
    right = (code != 0 if status is None else code == status for code in ended)
    assert all(right), f"{ended}\n" + "\n----\n".join(said)
    return said


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
