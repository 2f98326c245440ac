"""Fault: workers of a Ray cluster play, take new weights while they do, fail or die, are replaced.

What is decided in this is in test_ray_exchanges.py, with a fake of Ray.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import VOCAB_SIZE, tiny_model, tiny_run
from trace_corpora import CALLER, episode, write_trace_corpus

from cwm_jax.config import BatchConfig, DataConfig, EnvironmentConfig, RLConfig, TokenizerConfig
from cwm_jax.config.schema import to_json
from cwm_jax.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys, time
import jax
from cwm_jax.config import RunConfig, schema
from cwm_jax.model.transformer import init
from cwm_jax.rl.envs.kinds import load_tasks
from cwm_jax.rl.playing.on_ray import OnRay
from cwm_jax.rl.playing.players import Dealer
from cwm_jax.rl.playing.tasks import TaskStream
from cwm_jax.rl.selection import Curriculum

config = schema.from_json(RunConfig, json.loads(open(sys.argv[1]).read()))
tasks = {e.name: load_tasks(e) for e in config.rl.environments}
dealer = Dealer(TaskStream(config.rl.environments, tasks, 0), Curriculum(None, 0))
params = init(config.model, jax.random.key(0))
players = OnRay(config, dealer, params, 0)
first = [players.next_group(None) for _ in range(3)]
players.update_weights(jax.tree.map(lambda x: x * 1.01, params), 7)
versions = set()
deadline = time.time() + 120
while 7 not in versions and time.time() < deadline:
    versions |= {t.last_version for t in players.next_group(None).trajectories}
seat = players._workers[0]
fail = lambda worker: setattr(worker._players, "_failure", ValueError("a fault of its own"))
players._ray.get(seat.actor.__ray_call__.remote(fail))
while players._workers[0] is seat:
    first.append(players.next_group(None))
failed = players.num_lost_groups
first.append(players.next_group(None))
seat = players._workers[0]
pid = players._ray.get(seat.actor.__ray_call__.remote(lambda worker: __import__("os").getpid()))
__import__("os").kill(pid, 9)
after = [players.next_group(None) for _ in range(8)]
numbers = [g.number for g in first + after]
players._ready.clear()
ready = players.ready()
players.close()
print(json.dumps({
    "sizes": [len(g.trajectories) for g in first + after],
    "distinct": len(set(numbers)) == len(numbers),
    "pushed": 7 in versions,
    "failed": failed,
    "killed": players.num_lost_groups - failed,
    "endings": sorted({t.ending for g in after for t in g.trajectories}),
    "ready": len(ready),
}))
"""


@pytest.mark.filterwarnings("ignore")
def test_workers_play_take_weights_fail_die_and_are_replaced(tmp_path):
    write_trace_corpus(
        tmp_path / "traces",
        [episode(f"p{n}", n, num_frames=1, context=CALLER) for n in range(30)],
    )
    words = ["def count(x):\n    return x + 7\n"] * 50
    train_tokenizer([*words, *map(str, range(3000))], VOCAB_SIZE).save(tmp_path / "tokenizer")
    environment = EnvironmentConfig(
        name="output", kind="output_prediction", path=str(tmp_path / "traces"), profile="direct"
    )
    config = tiny_run(
        tmp_path,
        model=tiny_model(num_hidden_layers=2),
        data=DataConfig(sources=()),
        tokenizer=TokenizerConfig(path=str(tmp_path / "tokenizer")),
        batch=BatchConfig(max_target_length=160, per_device_batch_size=1),
        rl=RLConfig(
            environments=(environment,),
            mode="asynchronous",
            rollout_workers=1,
            group_size=2,
            groups_at_once=3,
            max_rows=4,
        ),
    )
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "config.json")],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["sizes"]) == {2} and found["distinct"] and found["pushed"]
    assert 1 <= found["failed"] <= 3 and 1 <= found["killed"] <= 3
    assert found["endings"] == ["done"]
    assert found["ready"] == 0
