"""LiveCodeBench: contest problems of a window of days, by programs or functions."""

from __future__ import annotations

import datetime
from pathlib import Path

from cwm_jax.evals.option_values import one_of
from cwm_jax.evals.problem import (
    Answer,
    EvalSet,
    Problem,
    SetEntry,
    SetOptions,
    Verdict,
    one_answer,
)
from cwm_jax.evals.sets.asking import chat, final_text, judge_with
from cwm_jax.evals.sets.code.livecodebench import Row, Window, read_rows
from cwm_jax.rl.envs.answers import only_code_block
from cwm_jax.rl.envs.code.environment import PROFILES, code_question
from cwm_jax.rl.envs.code.grading import Grader
from cwm_jax.rl.envs.code.tests import FunctionTests, StdinTests

# Source: model card of CWM.
WINDOWS = {
    "v6": Window(first=datetime.date(2024, 8, 1), last=datetime.date(2025, 5, 1)),
    "v5": Window(first=datetime.date(2024, 10, 1), last=datetime.date(2025, 2, 1)),
}
MODES = (*WINDOWS, "all")
# Percent; model card of CWM: temperature 1.0, top-p 0.95, mean of 10 samples.
_PUBLISHED = {
    "v5": {
        "CWM": 68.6,
        "Qwen3-32B": 65.7,
        "Magistral-Small-2509-24B": 70.0,
        "gpt-oss-20B (low)": 54.2,
        "gpt-oss-20B (med)": 66.9,
    },
    "v6": {
        "CWM": 63.5,
        "Qwen3-32B": 61.9,
        "Magistral-Small-2509-24B": 61.6,
        "gpt-oss-20B (low)": 47.3,
        "gpt-oss-20B (med)": 62.0,
    },
}
_PROFILE = PROFILES["64k"]  # released


def load(path: Path | None, options: SetOptions) -> EvalSet:
    """The problems of a window.

    Raises:
        ValueError: the file cannot be used, or has no problem of those days.
    """
    assert path is not None
    think = one_of(options, "think", ("yes", "no"), "yes") == "yes"
    window = _window(options)
    rows = read_rows(path, window)
    if not rows:
        raise ValueError(
            f"{path} has no problem from {window.first} to {window.last}: take the release that "
            "has them, or another mode"
            if window
            else f"{path} has no problem"
        )
    grader = Grader(_PROFILE.grading, unsafe=options.unsafe)
    return EvalSet(
        name=f"livecodebench/{options.mode}",
        problems=[_problem(row, options, think, grader) for row in rows],
        samples=10,  # released
        temperature=1.0,  # released
        top_p=0.95,  # released
        metrics=("mean", "@5", "@10"),
        about=_ABOUT,
        published=_PUBLISHED.get(options.mode, {}) if think else {},
        close=grader.close,
    )


def _problem(row: Row, options: SetOptions, think: bool, grader: Grader) -> Problem:
    form = FunctionTests(row.entry, ()) if row.entry else StdinTests(())
    content = f"{row.title.strip()}\n\n{row.content}" if row.title.strip() else row.content
    prompt = chat(
        code_question(content, form, row.starter),
        options,
        think=think,
        most=_PROFILE.max_action_tokens if think else None,
    )

    def judge(answer: Answer) -> Verdict:
        grade = grader.grade(only_code_block(final_text(answer)), row.tests())
        passed = grade.verdict.value == "passed"
        return Verdict(
            passed=passed,
            reason="" if passed else f"{grade.verdict.value}: {grade.detail}".rstrip(": "),
            info={"verdict": grade.verdict.value, "tests_passed": grade.num_passed},
        )

    labels = {"difficulty": row.difficulty, "platform": row.platform}
    return Problem(
        name=row.name,
        attempt=one_answer(prompt, judge_with(judge)),
        text=content,
        labels={name: value for name, value in labels.items() if value},
    )


def _window(options: SetOptions) -> Window | None:
    """The mode's, or the one that the options say of mode ``all``."""
    if options.mode in WINDOWS:
        for name in ("first", "last"):
            if name in options.values:
                raise ValueError(
                    f"--option {name} beside the mode {options.mode}, which has its own days: take "
                    "the mode all"
                )
        return WINDOWS[options.mode]
    if not {"first", "last"} & {*options.values}:
        return None
    window = Window(
        first=_day(options, "first", datetime.date.min), last=_day(options, "last", _LAST_DAY)
    )
    if window.first > window.last:
        raise ValueError(f"--option first={window.first} is after last={window.last}")
    return window


_LAST_DAY = datetime.date.max


def _day(options: SetOptions, name: str, default: datetime.date) -> datetime.date:
    value = options.values.get(name)
    try:
        return default if value is None else datetime.date.fromisoformat(value)
    except ValueError:
        raise ValueError(f"--option {name}={value}: expected a day as 2024-10-01") from None


_ABOUT = (
    "Prompt: in our own words, the whole problem (the released environment keeps its last 2,048 "
    "tokens). Grader: every public and hidden test, 6 s each; printed lines are equal stripped, or "
    "word by word as numbers, returned values as JSON's. An answer has to be exactly one block of "
    "code after its reasoning."
)

ENTRIES = {
    "livecodebench": SetEntry(
        load=load,
        modes=MODES,
        summary="LiveCodeBench, code generation: contests of a window of days",
        options={
            "think": "yes (the default) or no: answers reason first",
            "first": "of mode all: the first day of contests, as 2024-10-01",
            "last": "of mode all: the last day",
        },
    )
}
