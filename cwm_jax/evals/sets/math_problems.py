r"""GSM8K, MATH-500 and AIME: problems whose answer stands in one ``\boxed{}``.

Answers are compared by `cwm_jax.rl.envs.math`: exact numbers, LaTeX tidied, and math-verify where
our comparer does not know.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
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
    name_of,
    row_of,
)
from cwm_jax.rl.envs.answers import NoAnswerError, only_boxed
from cwm_jax.rl.envs.fields import short, text
from cwm_jax.rl.envs.math.environment import BOX
from cwm_jax.rl.envs.math.exact import MalformedError, number_of
from cwm_jax.rl.envs.math.gold import complaint_of_gold
from cwm_jax.rl.envs.math.latex import tidy
from cwm_jax.rl.envs.math.verifying import MathVerifier
from cwm_jax.rl.envs.record_files import read_records
from cwm_jax.tokenizer import BEGIN_OF_TEXT
from cwm_jax.trace.format import check_plain

# Percent. Of gsm8k: report, Table 13, without reasoning; the others: model card of CWM,
# temperature 1.0, top-p 0.95, mean of 20 samples.
_PUBLISHED: dict[tuple[str, str], dict[str, float]] = {
    ("gsm8k", NO_THINKING): {"CWM": 93.3, "CWM after mid-training": 84.7, "Qwen3-32B": 93.4},
    ("math500", THINKING): {"CWM": 96.6, "Qwen3-32B": 97.2},
    ("aime24", THINKING): {
        "CWM": 76.0,
        "Qwen3-32B": 81.4,
        "Magistral-Small-2509-24B": 86.1,
        "gpt-oss-20B (low)": 42.1,
        "gpt-oss-20B (med)": 80.0,
    },
    ("aime25", THINKING): {
        "CWM": 68.2,
        "Qwen3-32B": 72.9,
        "Magistral-Small-2509-24B": 77.3,
        "gpt-oss-20B (low)": 37.1,
        "gpt-oss-20B (med)": 72.1,
    },
}
_VERIFY_S = 5.0  # assumed: 0.04 s are usual (measured)
_MARK = "####"
# Common spellings of AIME's keys.
_PROBLEM_KEYS = ("problem", "question", "Problem", "Question")
_ANSWER_KEYS = ("answer", "Answer", "expected_answer", "final_answer")
_SOLUTION_KEYS = ("solution", "Solution")  # some files have nothing but the box there
_ID_KEYS = ("id", "ID", "unique_id", "problem_idx", "problem_id")
_AIME_ANSWER = re.compile(r"(?:\\boxed\{)?0*(\d{1,3})(?:\^\\circ)?\}?")
_LABELS = ("subject", "level", "type")
# Ours; a base model learns from them where the answer stands.
_SHOTS = (
    (
        "A box holds 12 pencils. A teacher buys 5 boxes and gives away 18 pencils. How many "
        "pencils are left?",
        "The boxes hold 5 * 12 = 60 pencils.\n60 - 18 = 42 pencils are left.\n#### 42",
    ),
    (
        "Mina reads 15 pages on each school day and 40 pages on each of the other two days of the "
        "week. How many pages does she read in three weeks?",
        "On school days she reads 5 * 15 = 75 pages.\nOn the others she reads 2 * 40 = 80 pages.\n"
        "In a week that is 75 + 80 = 155 pages, in three weeks 3 * 155 = 465.\n#### 465",
    ),
    (
        "A shirt costs $24 and trousers cost one and a half times as much. What do two shirts and "
        "one pair of trousers cost?",
        "The trousers cost 1.5 * 24 = 36 dollars.\nTwo shirts cost 2 * 24 = 48 dollars.\n"
        "Together that is 48 + 36 = 84 dollars.\n#### 84",
    ),
)
_NEXT = "\nQuestion:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A problem with its gold answer in LaTeX."""

    name: str
    problem: str
    answer: str
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_gsm8k(path: Path) -> list[Row]:
    """The lines of GSM8K's file; they have no names, so that they are called by their numbers.

    Raises:
        ValueError: with file and line, for a file that cannot be used.
    """
    return _read_rows(path, _read_gsm8k, "lines with question and answer")


def read_math500(path: Path) -> list[Row]:
    """The lines of MATH-500's file; raises as `read_gsm8k`."""
    return _read_rows(path, _read_math, "lines with problem, answer and unique_id")


def read_aime(path: Path) -> list[Row]:
    """Lines with a problem and its answer in common spellings of the keys; raises as the others."""
    return _read_rows(path, _read_aime, "lines with problem and answer, a whole number")


def make_verifier(options: SetOptions) -> MathVerifier:
    """The one of these sets.

    Raises:
        ValueError: math-verify is wanted and not installed.
    """
    wanted = one_of(options, "math_verify", ("yes", "no"), "yes") == "yes"
    return MathVerifier(use_math_verify=wanted, time_s=_VERIFY_S, unsafe=options.unsafe)


def canonical(answer: str) -> str:
    """One spelling for answers that tidying, or arithmetic, makes equal."""
    tidied = tidy(answer)
    try:
        number = number_of(tidied)
    except MalformedError:
        number = None
    return tidied if number is None else str(number.value)


def completed_answer(said: str) -> str:
    """What a completion says after its first ``####``.

    Raises:
        NoAnswerError: there is none.
    """
    answer = said.partition(_MARK)[2].strip().partition("\n")[0].strip().removesuffix(".")
    if not answer:
        raise NoAnswerError(f"nothing after {_MARK}")
    return answer.removeprefix("$").strip()


def _load(
    name: str, read: Callable[[Path], list[Row]], samples: int
) -> Callable[[Path | None, SetOptions], EvalSet]:
    def load(path: Path | None, options: SetOptions) -> EvalSet:
        assert path is not None
        rows, verifier = read(path), make_verifier(options)
        thinks = options.mode == THINKING
        return EvalSet(
            name=f"{name}/{options.mode}",
            problems=[_problem(row, options, verifier) for row in rows],
            samples=samples if thinks else 1,
            temperature=1.0 if thinks else 0.0,  # released; report
            top_p=0.95 if thinks else 1.0,
            metrics=("mean", f"majority@{samples}") if thinks and samples > 1 else ("mean",),
            about=_ABOUT,
            published=_PUBLISHED.get((name, options.mode), {}),
            close=verifier.close,
        )

    return load


def _problem(row: Row, options: SetOptions, verifier: MathVerifier) -> Problem:
    completes = options.mode == COMPLETION

    def judge(answer: Answer) -> Verdict:
        said = completed_answer(answer.text) if completes else only_boxed(final_text(answer))
        verdict = verifier.verdict(row.answer, said)
        reason = "" if verdict.passed else "another answer"
        return Verdict(
            passed=verdict.passed,
            answer=canonical(row.answer if verdict.passed else said),
            reason=f"{reason} ({verdict.reason})".strip() if verdict.reason else reason,
            info={"said": said, **verdict.info()},
        )

    return Problem(
        name=row.name,
        attempt=one_answer(_prompt(row, options), judge_with(judge)),
        text=row.problem,
        labels=row.labels,
    )


def _prompt(row: Row, options: SetOptions) -> Prompt:
    if options.mode != COMPLETION:
        question = f"{row.problem.strip()}\n\n{BOX}"
        return chat(question, options, think=options.mode == THINKING)
    shown = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in _SHOTS)
    return Prompt(
        text=f"{BEGIN_OF_TEXT}{shown}Question: {row.problem.strip()}\nAnswer:",
        max_tokens=options.max_tokens or MAX_COMPLETION_TOKENS,
        stop=(_NEXT,),
    )


# ---------------------------------------------------------------- files


def _read_rows(path: Path, read: Callable[[Any, int], Row], form: str) -> list[Row]:
    number = 0

    def named(value: Any) -> tuple[str, Row]:
        nonlocal number
        number += 1
        row = read(value, number)
        if complaint := complaint_of_gold(row.answer):
            raise ValueError(f"answer is {short(row.answer)}, {complaint}")
        check_plain(row.problem, "problem")
        return row.name, row

    return read_records(path, named, form=form, what="problem")


def _read_gsm8k(value: Any, number: int) -> Row:
    row = row_of(value, ("question", "answer"))
    solution = text(row["answer"], "answer")
    _, mark, answer = solution.rpartition(_MARK)
    if not mark or not answer.strip():
        raise ValueError(
            f"answer is {short(solution)}; expected its end to be {_MARK} and a number"
        )
    return Row(
        name=str(number),
        problem=text(row["question"], "question"),
        answer=answer.strip().replace(",", ""),
    )


def _read_math(value: Any, number: int) -> Row:
    row = row_of(value, ("problem", "answer"))
    return Row(
        name=name_of(row, "unique_id") if "unique_id" in row else str(number),
        problem=text(row["problem"], "problem"),
        answer=text(row["answer"], "answer"),
        labels={key: str(row[key]) for key in _LABELS if row.get(key) is not None},
    )


def _read_aime(value: Any, number: int) -> Row:
    row = row_of(value, ())
    has_answer = any(key in row for key in _ANSWER_KEYS)
    problem = _key(row, _PROBLEM_KEYS)
    answer = _key(row, _ANSWER_KEYS if has_answer else (*_ANSWER_KEYS, *_SOLUTION_KEYS))
    said = row[answer]
    if isinstance(said, int) and not isinstance(said, bool):
        said = str(said)
    found = _AIME_ANSWER.fullmatch(text(said, answer).strip())
    if not found:
        raise ValueError(f"{answer} is {short(said)}; expected a whole number from 0 to 999")
    named = next((key for key in _ID_KEYS if key in row), None)
    return Row(
        name=name_of(row, named) if named else str(number),
        problem=text(row[problem], problem),
        answer=found[1],
    )


def _key(row: Mapping[str, Any], known: tuple[str, ...]) -> str:
    found = [key for key in known if key in row]
    if len(found) != 1:
        raise ValueError(
            f"the line has {found or 'none'} of the keys {', '.join(known)}; expected one of them"
        )
    return found[0]


_ABOUT = (
    "Prompt: the problem and, in our own words, that the answer stands in one "
    r"\boxed{}; completion gives three solved problems of our own, and the answer stands after "
    "####. Grader: exact numbers, tidied LaTeX, and math-verify where these do not decide; unlike "
    r"Meta's, 100001 is not 100002, 50\% is not 50, and the box needs no dollar signs."
)
_OPTIONS = {"math_verify": "yes (the default; it has to be installed) or no: ours alone decides"}
_SAMPLES = 20  # released

ENTRIES = {
    "gsm8k": SetEntry(
        load=_load("gsm8k", read_gsm8k, 1),
        modes=(NO_THINKING, THINKING, COMPLETION),
        summary="GSM8K: grade-school word problems",
        url="https://raw.githubusercontent.com/openai/grade-school-math/master/"
        "grade_school_math/data/test.jsonl",
        options=_OPTIONS,
    ),
    "math500": SetEntry(
        load=_load("math500", read_math500, _SAMPLES),
        modes=(THINKING, NO_THINKING),
        summary="MATH-500: competition problems, answers in LaTeX",
        url="https://github.com/openai/prm800k/raw/main/prm800k/math_splits/test.jsonl",
        options=_OPTIONS,
    ),
    **{
        f"aime{year}": SetEntry(
            load=_load(f"aime{year}", read_aime, _SAMPLES),
            modes=(THINKING, NO_THINKING),
            summary=f"AIME 20{year}: 30 problems, answers from 0 to 999",
            options=_OPTIONS,
        )
        for year in (24, 25)
    },
}
