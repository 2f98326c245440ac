"""Runs play every sample once, whatever the order, and say what was not the model's fault."""

import hashlib
import threading

import pytest
from toy_set import Broken, load, write_toy_file

from cwm_jax.evals.models import ModelFailure, PromptTooLongError
from cwm_jax.evals.problem import Answer, Problem, Prompt, SetOptions, Verdict, one_answer
from cwm_jax.evals.runs.records import RecordFile, read_records
from cwm_jax.evals.runs.runner import Outcome, RunLimits, RunSettings, attempt_seed, run

QUICK = RunLimits(parallel=4, retry_wait_s=0.0)
SETTINGS = RunSettings(samples=2, temperature=1.0, top_p=1.0)


class FakeModel:
    """Answers with a function of prompt and seed; ``fails(count, prompt)`` may raise."""

    name, tokenizer = "fake", None

    def __init__(self, fails=lambda count, prompt: None):
        self._fails, self._lock, self.count = fails, threading.Lock(), 0
        self.closed = threading.Event()

    def identity(self):
        return {}

    def notes(self):
        return ()

    def answer(self, prompt, *, temperature, top_p, seed):
        with self._lock:
            self.count += 1
        self._fails(self.count, prompt)
        text = " ".join(m.content for m in prompt.messages)
        number = hashlib.sha256(f"{text}{seed}".encode()).digest()[0] % 20
        return Answer(text=str(number), finish_reason="stop", num_prompt_tokens=4, num_tokens=1)

    def close(self):
        self.closed.set()


@pytest.fixture
def problems(tmp_path):
    path = write_toy_file(tmp_path / "toy.jsonl", 12)
    return load(path, SetOptions(mode="chat")).problems


def played(folder, problems, model=None, settings=SETTINGS, limits=QUICK) -> Outcome:
    with RecordFile(folder, {}) as file:
        return run(problems, model or FakeModel(), file, settings, limits, progress=None)


def answers(folder) -> dict:
    return {key: record.answer for key, record in read_records(folder).items()}


def test_answers_depend_on_seed_problem_and_sample_alone(tmp_path, problems):
    outcome = played(tmp_path / "a", problems)
    assert outcome == Outcome(num_left=0, num_void=0)
    played(tmp_path / "b", problems[::-1], limits=RunLimits(parallel=1))
    assert answers(tmp_path / "a") == answers(tmp_path / "b")
    assert len(answers(tmp_path / "a")) == 24
    other = RunSettings(samples=2, temperature=1.0, top_p=1.0, seed=1)
    played(tmp_path / "c", problems, settings=other)
    assert answers(tmp_path / "a") != answers(tmp_path / "c")
    seeds = [attempt_seed(s, p, n) for s in (0, 1) for p in ("p", "q") for n in range(50)]
    assert len({*seeds}) == 200 and all(0 <= seed < 2**31 for seed in seeds)


def test_limits_and_shards_choose_problems(tmp_path, problems):
    whole = RunSettings(samples=1, temperature=0.0, top_p=1.0, limit=7)
    shards = [
        RunSettings(samples=1, temperature=0.0, top_p=1.0, limit=7, shard=(i, 3)) for i in range(3)
    ]
    chosen = [[problem.name for problem in s.chosen(problems)] for s in (whole, *shards)]
    assert chosen[0] == [f"sum/{n}" for n in range(7)]
    assert chosen[1] == ["sum/0", "sum/3", "sum/6"]
    assert sorted(name for shard in chosen[1:] for name in shard) == sorted(chosen[0])
    with pytest.raises(ValueError, match="expected i/n"):
        RunSettings(samples=1, temperature=0.0, top_p=1.0, shard=(3, 3))
    with pytest.raises(ValueError, match="limit is 0"):
        RunSettings(samples=1, temperature=0.0, top_p=1.0, limit=0)


def test_attempts_of_several_turns_go_on_until_there_is_a_verdict(tmp_path):
    path = write_toy_file(tmp_path / "toy.jsonl", 3)
    problems = load(path, SetOptions(mode="two_turns")).problems
    model = FakeModel()
    played(tmp_path / "run", problems, model)
    records = read_records(tmp_path / "run")
    assert model.count == 12 and all(len(record.turns) == 2 for record in records.values())
    assert all(record.answer == record.turns[1].text for record in records.values())
    assert {record.num_tokens for record in records.values()} == {2}


def broken_problems(tmp_path, times):
    Broken.failures.clear()
    path = write_toy_file(tmp_path / "toy.jsonl", 8)
    return load(path, SetOptions(mode="chat", values={"broken": str(times)})).problems


def test_an_environment_that_fails_is_tried_again_and_leaves_no_trace(tmp_path):
    once = RunSettings(samples=1, temperature=1.0, top_p=1.0)
    outcome = played(tmp_path / "a", broken_problems(tmp_path, 2), settings=once)
    assert outcome == Outcome(num_left=0, num_void=0)
    assert Broken.failures == {"sum/0": 3, "sum/4": 3}
    played(tmp_path / "b", broken_problems(tmp_path, 0), settings=once)
    assert answers(tmp_path / "a") == answers(tmp_path / "b")


def test_one_that_fails_each_time_is_void_until_a_later_start(tmp_path):
    once = RunSettings(samples=1, temperature=1.0, top_p=1.0)
    outcome = played(tmp_path / "a", broken_problems(tmp_path, 3), settings=once)
    assert outcome == Outcome(num_left=0, num_void=2)
    void = [record for record in read_records(tmp_path / "a").values() if record.is_void]
    assert {record.problem for record in void} == {"sum/0", "sum/4"}
    assert void[0].reason == "EnvironmentFailure: the sandbox is full"
    model = FakeModel()
    outcome = played(tmp_path / "a", broken_problems(tmp_path, 0), model, settings=once)
    assert outcome == Outcome(num_left=0, num_void=0) and model.count == 2


def test_prompts_without_room_fail_and_are_counted_apart(tmp_path, problems):
    def fails(count, prompt):
        if "What is 3 +" in prompt.messages[0].content:
            raise PromptTooLongError("the prompt has 9 tokens")

    assert played(tmp_path, problems, FakeModel(fails)).num_left == 0
    long = [r for r in read_records(tmp_path).values() if r.status == "too_long"]
    assert [(r.problem, r.passed) for r in long] == [("sum/3", False)] * 2
    assert long[0].reason == "prompt too long: the prompt has 9 tokens"


def test_a_model_that_fails_ends_the_run_and_what_was_done_stays(tmp_path, problems):
    def fails(count, prompt):
        if count > 9:
            raise ModelFailure("gone")

    model = FakeModel(fails)
    outcome = played(tmp_path, problems, model)
    assert outcome == Outcome(num_left=15, num_void=0, failure="gone") and model.closed.is_set()
    before = answers(tmp_path)
    model = FakeModel()
    assert played(tmp_path, problems, model).num_left == 0 and model.count == 15
    after = answers(tmp_path)
    assert len(after) == 24 and before.items() <= after.items()


def test_what_is_answered_while_a_run_ends_is_recorded(tmp_path, problems):
    def fails(count, prompt):
        if count == 1:
            assert model.closed.wait(30)
        elif count == 4:
            raise ModelFailure("gone")

    model = FakeModel(fails)
    outcome = played(tmp_path, problems, model, limits=RunLimits(parallel=2))
    assert outcome.failure == "gone" and outcome.num_left == 24 - 3
    assert ("sum/0", 0) in read_records(tmp_path)


def test_a_problem_that_is_wrong_itself_is_named_and_what_was_done_stays(tmp_path, problems):
    def judge(answer):
        raise ZeroDivisionError("grader")

    prompt = Prompt(messages=problems[0].attempt().start().messages, max_tokens=1)
    wrong = Problem(name="wrong/1", attempt=one_answer(prompt, judge), text="")
    with pytest.raises(ZeroDivisionError) as caught:
        played(tmp_path, [*problems, wrong], limits=RunLimits(parallel=1))
    assert caught.value.__notes__ == ["in sample 0 of problem 'wrong/1'"]
    assert len(read_records(tmp_path)) == 24


def test_attempts_are_closed_whatever_happens(tmp_path, problems):
    closed = []

    class Closing:
        def __init__(self, number):
            self._number = number

        def start(self):
            if self._number == 1:
                raise MemoryError
            return problems[0].attempt().start()

        def step(self, answer):
            return Verdict(passed=True)

        def close(self):
            closed.append(self._number)

    asked = [Problem(name=f"{n}", attempt=lambda n=n: Closing(n), text="") for n in range(2)]
    with pytest.raises(MemoryError):
        played(tmp_path, asked, limits=RunLimits(parallel=1))
    assert closed == [0, 0, 1]
