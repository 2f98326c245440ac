"""A set of sums, for tests of everything around sets: file, modes, grader, environments."""

import json
import re
from pathlib import Path

from cwm_jax.data.chat import Message
from cwm_jax.evals.problem import (
    EvalSet,
    Problem,
    Prompt,
    SetEntry,
    SetOptions,
    Verdict,
    one_answer,
)
from cwm_jax.rl.environment import EnvironmentFailure

MAX_TOKENS = 8


def write_toy_file(path: Path, num_problems: int) -> Path:
    rows = [{"name": f"sum/{n}", "a": n, "b": 7 * n % 10} for n in range(num_problems)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge(answer, gold: int) -> Verdict:
    found = re.findall(r"-?\d+", answer.text)
    said = found[-1] if found else None
    passed = said == str(gold)
    reason = "" if passed else "no number" if said is None else f"wrong: {said} is not {gold}"
    scores = {"distance": float(abs(int(said) - gold))} if said and len(said) < 9 else {}
    return Verdict(passed=passed, answer=said, reason=reason, scores=scores)


class TwoTurns:
    """Asks, then asks whether that is sure; the second answer counts."""

    def __init__(self, row, max_tokens):
        self._row, self._max_tokens, self._messages = row, max_tokens, []

    def _ask(self, text):
        self._messages.append(Message("user", text))
        return Prompt(messages=tuple(self._messages), max_tokens=self._max_tokens)

    def start(self):
        return self._ask(question(self._row))

    def step(self, answer):
        self._messages.append(Message("assistant", answer.text))
        if len(self._messages) < 4:
            return self._ask("sure?")
        return judge(answer, self._row["a"] + self._row["b"])

    def close(self):
        pass


class Broken:
    """An environment that fails ``times`` times for the problem, counted on the class."""

    failures: dict = {}  # noqa: RUF012

    def __init__(self, name, inner, times):
        self._name, self._inner, self._times = name, inner, times
        self.step, self.close = inner.step, inner.close

    def start(self):
        count = self.failures[self._name] = self.failures.get(self._name, 0) + 1
        if count <= self._times:
            raise EnvironmentFailure("the sandbox is full")
        return self._inner.start()


def question(row) -> str:
    return f"What is {row['a']} + {row['b']}?"


def load(path: Path | None, options: SetOptions) -> EvalSet:
    assert path is not None
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    max_tokens = options.max_tokens or MAX_TOKENS
    broken = int(options.values.get("broken", 0))

    def attempts(row):
        if options.mode == "two_turns":
            make = lambda: TwoTurns(row, max_tokens)  # noqa: E731
        else:
            asked = (
                Prompt(messages=(Message("user", question(row)),), max_tokens=max_tokens)
                if options.mode == "chat"
                else Prompt(text=f"<|begin_of_text|>{question(row)}", max_tokens=max_tokens)
            )
            make = one_answer(asked, lambda answer: judge(answer, row["a"] + row["b"]))
        if not broken or row["a"] % 4:
            return make
        return lambda: Broken(row["name"], make(), broken)

    problems = [
        Problem(
            name=row["name"],
            attempt=attempts(row),
            text=f"{question(row)} Take {row['a']} apples and {row['b']} pears, put them together "
            "in one basket, and count what is in it.",
            labels={"size": "large" if row["a"] > 9 else "small"},
        )
        for row in rows
    ]
    return EvalSet(
        name=f"toy/{options.mode}",
        problems=problems,
        samples=2,
        temperature=1.0,
        metrics=("mean", "@2", "majority@2", "distance:best@2"),
        about="Sums, made by the tests.",
        published={"a pocket calculator": 100.0},
    )


ENTRIES = {
    "toy": SetEntry(
        load=load,
        modes=("chat", "text", "two_turns"),
        summary="sums of small numbers",
        url="http://127.0.0.1:1/toy.jsonl",
        options={"broken": "how often every fourth problem's environment fails"},
    )
}
