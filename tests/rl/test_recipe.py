"""Contract: phases follow each other by one command, go on where they were, end with a table."""

import json
import re

import pytest
from rl.games import Parity
from tiny import tiny_run, write_corpus

import train
from cwm_jax.config import (
    CheckpointConfig,
    DataConfig,
    EnvironmentConfig,
    GeneratedTraces,
    Recipe,
    RLConfig,
    SourceConfig,
    TokenizerConfig,
)
from cwm_jax.rl import loop
from cwm_jax.rl.environment import Task
from cwm_jax.training.step import NonFiniteError

RECIPE = """
import dataclasses
from pathlib import Path
from tiny import tiny_model, tiny_run
from cwm_jax.config import *

FOLDER = Path({folder!r})
MESH = MeshConfig(data=1, fsdp=8, tensor=1)
MODEL = tiny_model(num_hidden_layers=2)

def get_config():
    first = tiny_run(FOLDER, run_name="first", model=MODEL, mesh=MESH, rows=1,
        optimizer=OptimizerConfig(learning_rate=1e-2, train_tokens=8 * 8 * 32),
        logging=LoggingConfig(log_period=1, eval_period=4, eval_rows=8, export="export"))
    second = tiny_run(FOLDER, run_name="second", model=MODEL, mesh=MESH,
        data=DataConfig(sources=(), heldout_fraction=0.2),
        tokenizer=TokenizerConfig(path=str(FOLDER / "runs/first/export")),
        batch=BatchConfig(max_target_length=32, per_device_batch_size=1),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", train_tokens=2 * 8 * 32),
        checkpoint=CheckpointConfig(load_parameters_path=str(FOLDER / "runs/first")),
        rl=RLConfig(
            environments=(EnvironmentConfig(name="parity", kind="output_prediction"),),
            group_size=4, groups_at_once=4, max_rows=8, eval_tasks=10,
            filters=FilterConfig(gibberish_min_token_id=None)))
    return Recipe(phases=(first, second))
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    write_corpus(folder)
    (folder / "recipe.py").write_text(RECIPE.format(folder=str(folder)))
    return folder


@pytest.fixture(autouse=True)
def parity(monkeypatch):
    tasks = [Task(name=f"t{n}", data={"prompt": [3 + n, 4]}) for n in range(60)]
    monkeypatch.setattr(
        loop,
        "make_environments",
        lambda configs, tokenizer: lambda name, task: Parity(task, tokenizer),
    )
    monkeypatch.setattr(loop, "load_tasks", lambda config: tasks)


def run(recipe, capsys, *options):
    code = train.main(["--config", str(recipe / "recipe.py"), *options])
    found = capsys.readouterr()
    return code, found.out, found.err


def steps(recipe, name):
    lines = (recipe / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_the_phases_of_a_recipe(recipe, capsys):
    code, out, err = run(recipe, capsys)
    assert code == 0, err
    assert out.index("== phase 0 of 2: first") < out.index("== phase 1 of 2: second")
    assert "starting from params of" in out and "export: " in out
    table = out[out.index("phase   measured") :]
    assert re.search(r"first   held-out loss, nats +\d\.\d+ +\d\.\d+ +-\d\.\d+", table)
    assert re.search(r"second  parity, held-out accuracy +\d+\.\d% +\d+\.\d% +[+-]\d", table)
    assert steps(recipe, "first")[-1] == 8 and steps(recipe, "second") == [0, 1, 2]
    before = (recipe / "runs/first/metrics.jsonl").read_bytes()
    code, out, _ = run(recipe, capsys)  # all of it is finished
    assert code == 0 and "resuming at step 8" in out and "second  parity" in out
    assert (recipe / "runs/first/metrics.jsonl").read_bytes() == before


def test_a_setting_reaches_one_phase(recipe, capsys):
    code, out, _ = run(recipe, capsys, "--dry-run", "--set", "phases.1.rl.group_size=3")
    assert code == 0 and "rl.group_size = 3" in out and out.count("resolved config") == 2
    code, _, err = run(recipe, capsys, "--set", "phases.2.seed=1")
    assert code == 2 and "phases has 2 items" in err


def test_what_has_failed_ends_the_recipe_and_is_said_with_its_phase(recipe, capsys):
    code, out, err = run(
        recipe, capsys, "--set", "phases.0.run_name=other", "phases.0.data.sources.0.glob=*.none"
    )
    assert code == 2 and "phase 1" not in out
    assert err.startswith("train.py: phase 0 (other): source ") and "*.none" in err


def test_a_phase_that_diverges_is_said_with_its_name(recipe, capsys, monkeypatch):
    def diverge(*_, **__):
        raise NonFiniteError("no number")

    monkeypatch.setattr(loop, "run", diverge)
    code, _, err = run(recipe, capsys, "--set", "phases.1.run_name=fourth")
    assert code == 1
    assert err.endswith("train.py: no number\ntrain.py: that was phase 1 (fourth)\n")


@pytest.mark.parametrize(
    ("key", "phase"),
    [
        ("data.sources.0.path", "phase 0 (new-0)"),
        ("checkpoint.load_parameters_path", "phase 1 (new-1)"),
        ("tokenizer.path", "phase 1 (new-1)"),
        ("rl.environments.0.path", "phase 1 (new-1)"),
    ],
)
def test_what_no_phase_writes_is_missed_before_the_first(recipe, capsys, key, phase):
    names = ["phases.0.run_name=new-0", "phases.1.run_name=new-1"]
    code, out, err = run(recipe, capsys, "--set", *names, f"phases.{phase[6]}.{key}=nowhere/at/all")
    assert code == 2 and "== phase" not in out
    assert f"train.py: {phase}: {key} is nowhere/at/all" in err
    assert not (recipe / "runs" / "new-0").exists()


def test_paths_that_earlier_phases_write_are_not_missed(tmp_path):
    programs = SourceConfig(
        name="t", kind="traces", path=f"{tmp_path}/t", generate=GeneratedTraces(programs=9)
    )
    first = tiny_run(tmp_path, run_name="first", data=DataConfig(sources=(programs,)))
    export = TokenizerConfig(path=str(tmp_path / "runs/first/export"))
    second = tiny_run(
        tmp_path,
        run_name="second",
        tokenizer=export,
        checkpoint=CheckpointConfig(load_parameters_path=str(tmp_path / "runs/first")),
        data=DataConfig(sources=()),
        rl=RLConfig(
            environments=(
                EnvironmentConfig(name="o", kind="output_prediction", path=f"{tmp_path}/t"),
            )
        ),
    )
    Recipe(phases=(first, second)).check_paths()
    with pytest.raises(ValueError, match=r"phase 0 \(second\): checkpoint.load_parameters_path"):
        Recipe(phases=(second, first)).check_paths()
    (tmp_path / "runs/second/checkpoints/00000002").mkdir(parents=True)
    Recipe(phases=(second, first)).check_paths()  # it goes on from its own


def test_a_start_that_holds_no_checkpoint_is_named_by_its_key(recipe, capsys):
    empty = recipe / "empty"
    empty.mkdir()
    changes = ("phases.1.run_name=third", f"phases.1.checkpoint.load_parameters_path={empty}")
    code, _, err = run(recipe, capsys, "--set", *changes)
    assert code == 2
    assert f"phase 1 (third): checkpoint.load_parameters_path: {empty} holds no whole" in err
