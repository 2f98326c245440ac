"""A run of reinforcement learning on several processes: each plays its share, all learn the same.

Each process is one of two with two virtual devices.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from rl.small_runs import write_tokenizer
from tolerances import SAMPLER_ATOL, TRAJECTORY_RTOL
from training.hosts_runs import ROOT, environment, free_port, outputs

from cwm_jax.rl.trajectory import read_trajectories
from cwm_jax.training.metrics import read_metrics

pytestmark = pytest.mark.cluster

SCRIPT = """
import hashlib, json, pathlib, sys

index, count, port = map(int, sys.argv[1:4])
from cwm_jax.distributed import ClusterOptions, start

hosts = None
if count > 1:
    address = f"localhost:{port}"
    hosts = start(ClusterOptions(coordinator=address, num_processes=count, process_id=index))
import jax
import numpy as np
from rl import small_runs
from cwm_jax.config import schema
from cwm_jax.rl import loop

loop.make_environments, loop.load_tasks = small_runs.make_environments, small_runs.load_tasks
folder = pathlib.Path(sys.argv[4])
config = small_runs.rl_run(folder, folder / "tokenizer", kinds=("output_prediction", "swe"))
config = schema.override(config, *sys.argv[5:])
result = loop.run(config, hosts)
digest = hashlib.sha256()
for leaf in jax.tree.leaves(result.state.params):
    digest.update(np.asarray(leaf.addressable_shards[0].data).tobytes())
print("RESULT", json.dumps({"finished": result.finished, "params": digest.hexdigest()}))
"""


class Runs:
    def __init__(self, folder):
        self.folder = folder
        write_tokenizer(folder / "tokenizer")

    def run(self, name, *settings, processes=2, devices=2, status=0):
        port = str(free_port())
        settings = [str(self.folder), f"run_name={name}", *settings]
        started = [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(i), str(processes), port, *settings],
                env=environment(devices) | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i in range(processes)
        ]
        said = outputs(started, status)
        if status:
            return said
        return [json.loads(text.split("RESULT ")[1].splitlines()[0]) for text in said]

    def metrics(self, name):
        return read_metrics(self.folder / "runs" / name / "metrics.jsonl")

    def episodes(self, name):
        files = sorted((self.folder / "runs" / name / "trajectories").glob("*.jsonl"))
        return [t for file in files for t in read_trajectories(file)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("rl-hosts"))


TWO = ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2", "batch.per_device_batch_size=0.5")
ONE = ("mesh.fsdp=1", "batch.per_device_batch_size=2.0")


def test_two_processes_play_and_learn_what_one_does(runs):
    """Each plays half of a round, with weights from the shards of both; then one goes on alone."""
    both = runs.run("two", *TWO, "rl.groups_at_once=2", "steps=3")
    assert len({one["params"] for one in both}) == 2  # each has shards of its own
    runs.run("one", *ONE, "steps=3", processes=1, devices=1)
    ours, theirs = runs.episodes("two"), runs.episodes("one")
    for one, other in zip(ours, theirs, strict=True):
        assert (one.group, one.seed, one.task) == (other.group, other.seed, other.task)
    assert {t.group % 2 for t in ours} == {0, 1}
    assert any(t.turns[0].first_version for t in ours)
    for line, wanted in zip(runs.metrics("two"), runs.metrics("one"), strict=True):
        assert line.get("mismatch_max", 0) <= SAMPLER_ATOL
        played = [key for key in wanted if key.startswith(("eval_", "reward_", "groups"))]
        assert [line[key] for key in played] == [wanted[key] for key in played]
        np.testing.assert_allclose(
            line.get("grad_norm", 0), wanted.get("grad_norm", 0), rtol=TRAJECTORY_RTOL, atol=1e-6
        )
    (rest,) = runs.run("two", *ONE, "rl.groups_at_once=2", processes=1, devices=1)
    assert rest["finished"]
    went_on = runs.episodes("two")
    assert went_on[: len(ours)] == ours
    assert len({(t.group, t.seed) for t in went_on}) == len(went_on) > len(ours)


def test_playing_all_the_time_on_devices_of_each_process(runs):
    settings = ("mesh.fsdp=2", "batch.per_device_batch_size=1.0", "rl.rollout_devices=1")
    both = runs.run(
        "all", *settings, "rl.mode=asynchronous", "rl.ready_groups=2", "rl.eval_tasks=4"
    )
    assert [one["finished"] for one in both] == [True, True]
    lines, played = runs.metrics("all"), runs.episodes("all")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert len({(t.group, t.seed) for t in played}) == len(played) > 0
    assert {t.group % 2 for t in played} == {0, 1}  # both play, and both learn of it
