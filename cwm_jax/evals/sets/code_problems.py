"""HumanEval, HumanEval+ and MBPP: functions that pass assertions which are not shown, or are.

The assertions run where the answer's code never is, see `cwm_jax.rl.envs.code`; an answer counts
if all of them hold. A dialog's answer is exactly one block of code, as in CWM's own evaluations;
what a base model writes after the prompt is run as it is, up to a stop string.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cwm_jax.evals.option_values import one_of
from cwm_jax.evals.problem import (
    Answer,
    EvalSet,
    Problem,
    Prompt,
    SetEntry,
    SetOptions,
    Verdict,
    one_answer,
)
from cwm_jax.evals.sets.asking import (
    COMPLETION,
    MAX_COMPLETION_TOKENS,
    NO_THINKING,
    THINKING,
    chat,
    final_text,
    judge_with,
)
from cwm_jax.evals.sets.code.rows import (
    MBPP_SPLITS,
    Row,
    read_humaneval,
    read_humaneval_plus,
    read_mbpp,
)
from cwm_jax.rl.envs.answers import only_code_block
from cwm_jax.rl.envs.code.environment import ONE_BLOCK, PROFILES, code_question
from cwm_jax.rl.envs.code.grading import Grader
from cwm_jax.rl.envs.code.tests import AssertTests
from cwm_jax.rl.envs.fields import listed
from cwm_jax.tokenizer import BEGIN_OF_TEXT

MODES = (NO_THINKING, THINKING, COMPLETION)
# Percent; report, Table 13: without reasoning, greedy.
_PUBLISHED = {
    "humaneval_plus": {"CWM": 75.0, "CWM after mid-training": 68.3, "Qwen3-32B": 72.1},
    "mbpp": {"CWM": 73.4, "CWM after mid-training": 67.8, "Qwen3-32B": 78.2},
}
# Source: Codex's paper, which introduced HumanEval.
_HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_BEGIN, _DONE = "[BEGIN]", "[DONE]"
_MBPP_SHOTS = ("2", "3", "4")  # source: the prompt of MBPP's paper
# As CWM's own: 6 s for a call. HumanEval+ has up to 1,100 inputs to a problem.
_LIMITS = PROFILES["64k"].grading
_PLUS_LIMITS = dataclasses.replace(_LIMITS, calls=20_000, assertions_s=300.0)  # assumed

Code = Callable[[Answer], str]


def load_humaneval(path: Path | None, options: SetOptions) -> EvalSet:
    """HumanEval; raises ValueError as `read_humaneval`."""
    assert path is not None
    return _humaneval("humaneval", read_humaneval(path), options)


def load_humaneval_plus(path: Path | None, options: SetOptions) -> EvalSet:
    """HumanEval+; raises ValueError as `read_humaneval`."""
    assert path is not None
    return _humaneval("humaneval_plus", read_humaneval_plus(path), options)


def load_mbpp(path: Path | None, options: SetOptions) -> EvalSet:
    """MBPP.

    Raises:
        ValueError: as `read_mbpp`; nothing of the split is in the file, or what a base model is
            shown first is not.
    """
    assert path is not None
    challenge = one_of(options, "challenge", ("no", "yes"), "no") == "yes"
    split = one_of(options, "split", (*MBPP_SPLITS, "all"), "test")
    rows = read_mbpp(path, challenge=challenge)
    chosen = [row for row in rows if split in ("all", row.labels["split"])]
    if not chosen:
        counts = {s: sum(row.labels["split"] == s for row in rows) for s in MBPP_SPLITS}
        raise ValueError(
            f"{path} has no problem of the split {split!r}; it has {counts}: take another file, or "
            "--option split=..."
        )
    shots = _mbpp_shots(rows, path) if options.mode == COMPLETION else ""
    grader = Grader(_LIMITS, unsafe=options.unsafe)

    def problem(row: Row) -> Problem:
        tests = "\n".join(row.shown)
        task = f"{row.prompt.strip()}\n\nIt has to pass these tests:\n```python\n{tests}\n```"
        question = code_question(task, AssertTests(row.entry, ""))
        prompt = Prompt(
            text=f"{BEGIN_OF_TEXT}{shots}{_mbpp_shown(row)}",
            max_tokens=options.max_tokens or MAX_COMPLETION_TOKENS,
            stop=(_DONE,),
        )
        return _problem(row, _asked(question, prompt, options), grader, _code_of(options))

    return EvalSet(
        name=f"mbpp/{options.mode}",
        problems=[problem(row) for row in chosen],
        about=f"Split: {split}. {_ABOUT}",
        published=_PUBLISHED["mbpp"] if options.mode == NO_THINKING else {},
        close=grader.close,
        **_sampling(options.mode),
    )


def grade(grader: Grader, row: Row, code: str) -> Verdict:
    """The verdict on a whole module.

    Raises:
        EnvironmentFailure: there is no sandbox, or the tests cannot be used.
    """
    tests = row.tests if isinstance(row.tests, AssertTests) else row.tests.made(grader)
    found = grader.grade(code, tests)
    passed = found.verdict.value == "passed"
    return Verdict(
        passed=passed,
        reason="" if passed else f"{found.verdict.value}: {found.detail}".rstrip(": "),
        info={"code": code, "verdict": found.verdict.value},
    )


def make_grader(*, plus: bool = False, unsafe: bool = False) -> Grader:
    """One with the limits of these sets."""
    return Grader(_PLUS_LIMITS if plus else _LIMITS, unsafe=unsafe)


def _humaneval(name: str, rows: list[Row], options: SetOptions) -> EvalSet:
    grader = make_grader(plus=name == "humaneval_plus", unsafe=options.unsafe)

    def problem(row: Row) -> Problem:
        question = (
            f"Complete the function `{row.entry}`:\n\n```python\n{row.prompt.strip()}\n```\n\n"
            f"{ONE_BLOCK}"
        )
        prompt = Prompt(
            text=BEGIN_OF_TEXT + row.prompt,
            max_tokens=options.max_tokens or MAX_COMPLETION_TOKENS,
            stop=_HUMANEVAL_STOPS,
        )
        code = _code_of(options)
        if options.mode == COMPLETION:
            return _problem(row, prompt, grader, lambda answer: row.prompt + answer.text)
        asked = _asked(question, prompt, options)
        return _problem(row, asked, grader, lambda answer: _with_prompt(row.prompt, code(answer)))

    return EvalSet(
        name=f"{name}/{options.mode}",
        problems=[problem(row) for row in rows],
        about=_ABOUT if name == "humaneval" else f"{_ABOUT} {_ABOUT_PLUS}",
        published=_PUBLISHED.get(name, {}) if options.mode == NO_THINKING else {},
        close=grader.close,
        **_sampling(options.mode),
    )


def _asked(question: str, completion: Prompt, options: SetOptions) -> Prompt:
    if options.mode == COMPLETION:
        return completion
    return chat(question, options, think=options.mode == THINKING)


def _code_of(options: SetOptions) -> Code:
    if options.mode == COMPLETION:
        return lambda answer: answer.text
    return lambda answer: only_code_block(final_text(answer))


def _with_prompt(prompt: str, code: str) -> str:
    """The answer after the code that the question shows, which it may use and defines again."""
    return code if "from __future__" in code else f"{prompt}\n\n{code}"


def _problem(row: Row, prompt: Prompt, grader: Grader, code: Code) -> Problem:
    def judge(answer: Answer) -> Verdict:
        return grade(grader, row, code(answer))

    return Problem(
        name=row.name,
        attempt=one_answer(prompt, judge_with(judge)),
        text="\n".join([row.prompt, *row.shown]),
        labels=row.labels,
    )


def _sampling(mode: str) -> dict[str, Any]:
    """Greedy, as the report's without reasoning; with it as all answers that reason."""
    return {"temperature": 1.0, "top_p": 0.95} if mode == THINKING else {}


def _mbpp_shots(rows: list[Row], path: Path) -> str:
    """Three problems with their solutions, of the file itself."""
    named = {row.name: row for row in rows}
    missing = [name for name in _MBPP_SHOTS if name not in named]
    if missing:
        raise ValueError(
            f"{path} has no problem {listed(missing)}; expected those that a base model is shown "
            f"first, {listed(_MBPP_SHOTS)}: take a file with them, or another mode"
        )
    shots = [named[name] for name in _MBPP_SHOTS]
    return "".join(f"{_mbpp_shown(row)}{row.reference.strip()}\n{_DONE}\n\n" for row in shots)


def _mbpp_shown(row: Row) -> str:
    return (
        f"# Task: {row.prompt.strip()}\n# Tests that the code has to pass:\n"
        + "\n".join(row.shown)
        + f"\n{_BEGIN}\n"
    )


_ABOUT = (
    "Prompt: in our own words; completion gives HumanEval's prompt as it is, MBPP's after three "
    "solved problems of its own. Grader: the file's tests, each call of the answer in a process of "
    "its own that sees inputs alone. A dialog's answer has to be exactly one block of code."
)
_ABOUT_PLUS = (
    "Tests: EvalPlus' inputs, on which the reference solution says what is expected; floats are "
    "compared as there, to 1e-6 and a relative 1e-7, and the problem find_zero by the polynomial's "
    "value."
)

ENTRIES = {
    "humaneval": SetEntry(
        load=load_humaneval,
        modes=MODES,
        summary="HumanEval: complete a Python function by its docstring",
        url="https://github.com/openai/human-eval/raw/master/data/HumanEval.jsonl.gz",
    ),
    "humaneval_plus": SetEntry(
        load=load_humaneval_plus,
        modes=MODES,
        summary="HumanEval+: HumanEval with EvalPlus' many more tests",
        url="https://github.com/evalplus/humanevalplus_release/releases/download/v0.1.10/"
        "HumanEvalPlus.jsonl.gz",
    ),
    "mbpp": SetEntry(
        load=load_mbpp,
        modes=MODES,
        summary="MBPP: a function by one sentence and three assertions",
        url="https://raw.githubusercontent.com/google-research/google-research/master/mbpp/"
        "mbpp.jsonl",
        options={
            "split": "test (11 to 510, the default), prompt, validation, train or all",
            "challenge": "yes: with the further assertions that some problems have",
        },
    ),
}
