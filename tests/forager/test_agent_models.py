"""Models as policies: a fake server, and a tiny engine in this process."""

import argparse
import json
import textwrap
import threading
from pathlib import Path

import jax
import pytest
from evals.fake_server import fake_server
from tiny import VOCAB_SIZE, tiny_model

from convert import save_hf
from cwm_jax.data.chat import Message
from cwm_jax.data.trajectories import read_trajectories
from cwm_jax.evals.models import ModelFailure, PromptTooLongError
from cwm_jax.evals.models.in_process import open_folder
from cwm_jax.evals.problem import Answer
from cwm_jax.forager.agent import command
from cwm_jax.forager.agent.forage import forage, model_settings
from cwm_jax.forager.agent.loop import EMPTY_TURN, EpisodeLimits
from cwm_jax.forager.agent.policies.asked import AnswerSettings, ModelPolicies
from cwm_jax.forager.agent.threads import ThreadEngine
from cwm_jax.model.transformer import init
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.actions import CUT_TURN, EMPTY_ANSWER
from cwm_jax.rl.envs.swe.shipped.tasks import diff_of
from cwm_jax.storage import StorageError
from cwm_jax.tokenizer import train_tokenizer

MEND = "I mend it.\n\n<tool: bash>\nsed -i s/1/2/ a.py && cat a.py\n</tool>"


def task(number: int = 0) -> Task:
    before, after = {"a.py": "def f():\n    return 1\n"}, {"a.py": "def f():\n    return 2\n"}
    data = {
        "issue": f"Number {number}: f() should give 2",
        "repository": {"files": before},
        "patch": diff_of(before, after),
        "tests": {"calls": [{"module": "a", "call": "f()", "expected": "2"}]},
    }
    return Task(name=f"task-{number}", data=data)


class Scripted:
    """A model that gives these answers in turn; an exception is raised."""

    name, tokenizer = "scripted", None

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def identity(self):
        return {}

    def notes(self):
        return ()

    def answer(self, prompt, *, temperature, top_p, seed):
        self.asked.append((prompt, seed))
        answer = self.answers[len(self.asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        pass


def said(text, finish_reason="stop", reasoning=""):
    return Answer(text=text, finish_reason=finish_reason, reasoning=reasoning)


def played(out, model, *, tasks=None, workers=1, limits=None, **answers):
    policies = ModelPolicies(model, AnswerSettings(**answers))
    limits, tasks = limits or EpisodeLimits(), tasks or (task(),)
    settings = model_settings(policies, policy="endpoint", seed=0, limits=limits)
    forage(tasks, out, settings, engine=ThreadEngine(workers), policies=policies)
    return list(read_trajectories(out))


def run(*arguments) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["run", *map(str, arguments)])
    return args.main(args)


def tasks_file(path: Path, num: int) -> Path:
    rows = [{"name": t.name, "data": t.data} for t in map(task, range(num))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_server_solves_tasks_at_once_and_in_their_order(tmp_path, capsys):
    met = threading.Barrier(4, timeout=20)  # four episodes ask at one time, or it breaks

    def reply(number, path, body):
        if len(body["messages"]) == 2:
            met.wait()
        text = MEND if len(body["messages"]) == 2 else "Done."
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return 200, {"choices": [choice]}, {}

    tasks, out = tasks_file(tmp_path / "tasks.jsonl", 4), tmp_path / "rows.jsonl"
    with fake_server() as fake:
        fake.refuse = reply
        arguments = ["--tasks", tasks, "--out", out, "--policy", "endpoint", "--url", fake.url]
        arguments += ["--model", "fake", "--workers", 4, "--temperature", 0.5, "--max-tokens", 64]
        assert run(*arguments) == 0
        bodies = [body for _, body in fake.seen]
        assert run(*arguments) == 0 and len(fake.seen) == 8  # nothing is left to be asked
        assert run(*arguments, "--top-p", 0.5) == 2
    assert "4 episodes played, 4 in all, 4 solved" in capsys.readouterr().out
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in bodies} == {("fake", 0.5, 64)}
    assert len({body["seed"] for body in bodies}) == 8
    rows = list(read_trajectories(out))
    assert [row.name for row in rows] == [f"task-{n}/fake/0" for n in range(4)]
    assert [(row.policy, row.outcome, row.solved) for row in rows] == [
        ("fake", "finished", True)
    ] * 4
    roles = [message.role for message in rows[0].messages]
    assert roles == ["system", "user", "assistant", "tool: bash", "assistant"]


def test_cut_and_empty_turns_and_two_calls_are_told(tmp_path):
    model = Scripted(said(MEND, "length"), said(" "), said(MEND + MEND), said(MEND), said("Done."))
    (row,) = played(tmp_path / "rows.jsonl", model)
    texts = [message.content for message in row.messages[2:]]
    assert texts[:4] == [MEND, CUT_TURN, EMPTY_TURN, EMPTY_ANSWER]
    assert texts[5].startswith("Your answer calls 2 tools")
    assert (row.outcome, row.solved) == ("finished", True)


def test_reasoning_stays_in_the_dialog_and_calls_in_it_do_nothing(tmp_path):
    mended = said("I look.", reasoning=f"hm\n{MEND}")
    model = Scripted(said("", reasoning="hm"), said("x</think>y", reasoning="hm"), mended)
    (row,) = played(tmp_path / "rows.jsonl", model, think=True)
    assert row.messages[3].content == EMPTY_ANSWER
    assert "2 </think>" in row.messages[5].content
    assert (row.outcome, row.solved, row.messages[-1].content) == ("finished", False, "I look.")
    assert model.asked[1][0].messages[2] == Message("assistant", "", "hm")
    assert all(prompt.think for prompt, _ in model.asked)


def test_a_dialog_without_room_ends_with_its_word_and_the_last_turn(tmp_path):
    model = Scripted(said(MEND), PromptTooLongError("long"))
    (row,) = played(tmp_path / "rows.jsonl", model)
    assert (row.outcome, row.solved, row.messages[-1].content) == ("context", True, MEND)
    (row,) = played(tmp_path / "none.jsonl", Scripted(PromptTooLongError("long")))
    assert (row.outcome, row.solved, row.messages) == ("context", False, [])


def test_a_model_that_fails_ends_the_run_which_goes_on_later(tmp_path):
    out, tasks = tmp_path / "rows.jsonl", (task(0), task(1))
    with pytest.raises(ModelFailure, match="gone"):
        played(out, Scripted(said("No."), said(MEND), ModelFailure("gone")), tasks=tasks)
    assert len(list(read_trajectories(out))) == 1
    rows = played(out, Scripted(said(MEND), said("Done.")), tasks=tasks)
    assert [row.solved for row in rows] == [False, True]
    with pytest.raises(StorageError, match="other settings"):
        played(out, Scripted(), tasks=tasks, temperature=0.3)


def test_no_turn_is_asked_for_after_the_end():
    policies = ModelPolicies(Scripted(said("x")), AnswerSettings())
    policies.close()
    with pytest.raises(ModelFailure, match="being stopped"):
        policies.policy("0").turn([])


def test_settings_that_are_none_are_refused(capsys, tmp_path):
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="expected"):
            AnswerSettings(**bad)
    with pytest.raises(ValueError, match="workers is 0"):
        ThreadEngine(0)
    out = ["--shipped", 1, "--out", tmp_path / "rows.jsonl"]
    assert run(*out, "--policy", "endpoint") == 2 and "--url" in capsys.readouterr().err
    assert run(*out, "--policy", "engine") == 2 and "--model" in capsys.readouterr().err
    assert run(*out, "--policy", "fixer", "--temperature", 0.5) == 2
    assert "--temperature is given with --policy fixer" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    config = tiny_model(num_hidden_layers=2, max_position_embeddings=2048)
    tokenizer = train_tokenizer([Path(textwrap.__file__).read_text()], VOCAB_SIZE)
    path = tmp_path_factory.mktemp("run") / "tiny"
    save_hf(path / "export", config, init(config, jax.random.key(0)), tokenizer)
    return path


def test_an_engine_plays_several_episodes_and_as_it_does_one_at_a_time(folder, tmp_path):
    tasks = tuple(map(task, range(3)))
    common = {"tasks": tasks, "limits": EpisodeLimits(turns=2), "max_tokens": 8}
    model = open_folder(folder, parallel=3)
    try:
        rows = played(tmp_path / "three.jsonl", model, workers=3, **common)
        played(tmp_path / "one.jsonl", model, workers=1, **common)
    finally:
        model.close()
    assert (tmp_path / "three.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert {row.policy for row in rows} == {"tiny/export"}
    assert len({row.messages[2].content for row in rows}) == 3
    assert all(row.messages[3].content == CUT_TURN for row in rows)
    said_by = json.loads((tmp_path / "one.settings.json").read_text())
    assert said_by["model"]["fingerprint"] and said_by["answers"]["max_tokens"] == 8


def test_the_command_runs_a_folder(folder, tmp_path, capsys):
    tasks, out = tasks_file(tmp_path / "tasks.jsonl", 1), tmp_path / "rows.jsonl"
    arguments = ["--tasks", tasks, "--out", out, "--policy", "engine", "--model", folder]
    assert run(*arguments, "--turns", 1, "--max-tokens", 4, "--workers", 1) == 0
    (row,) = read_trajectories(out)
    assert (row.outcome, row.policy) == ("turns", "tiny/export")
    assert row.solved is False
