"""CruxEval: what does ``f`` return for this input, and which input makes it return this?

A line of the official file has ``id``, ``code`` that defines ``f``, ``input``, the source of its
arguments, and ``output``, that of its value. As in the official grader, a prediction is evaluated
and counts if it is equal as Python has it (``1 == True``), not if it is spelt alike.
"""

from __future__ import annotations

import dataclasses
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
    MAX_REASONING_TOKENS,
    THINKING,
    chat,
    final_text,
    judge_with,
)
from cwm_jax.evals.sets.code.cruxeval import Judge, Row, read_rows
from cwm_jax.evals.traces.metrics import FrameScore
from cwm_jax.evals.traces.predicted import predicted_trace, read_frames, single_step_output
from cwm_jax.rl.envs.answers import NOT_FINISHED, NoAnswerError
from cwm_jax.tokenizer import BEGIN_OF_TEXT, END_OF_TEXT, FRAME_SEP, RETURN_SEP
from cwm_jax.trace.episodes import direct_prompt
from cwm_jax.trace.format import parse_frames, render_frame, render_prompt
from cwm_jax.trace.frames import TraceEvent, TraceFrame, returned_value

DIRECT, FULL_TRACE, SINGLE_STEP = "direct", "full_trace", "single_step"
OUTPUT_MODES = (DIRECT, FULL_TRACE, SINGLE_STEP, THINKING)
INPUT_MODES = (DIRECT, THINKING)

# Percent, by mode. "report" is the technical report of CWM, Table 8; "secondary" are reruns of the
# released weights by others; "paper" is CruxEval's own (ICML 2024).
_PUBLISHED_OUTPUT: dict[str, dict[str, float]] = {
    DIRECT: {
        "CWM (report)": 66.6,
        "CWM after SFT (report)": 67.8,
        "CodeLlama-34B (paper)": 46.0,
        "CodeLlama-7B, T 0.2, n 10 (paper)": 34.2,
    },
    FULL_TRACE: {
        "CWM (report)": 87.7,
        "CWM after SFT (report)": 87.3,
        "CWM, bf16 (secondary)": 87.25,
        "CWM, 4 bits (secondary)": 87.0,
    },
    SINGLE_STEP: {"CWM (report)": 58.1, "CWM after SFT (report)": 59.1},
    THINKING: {
        "CWM (report)": 94.3,
        "CWM after SFT (report)": 83.3,
        "GPT-4 with chain of thought (paper)": 81.0,
    },
}
_PUBLISHED_INPUT: dict[str, dict[str, float]] = {
    DIRECT: {
        "CodeLlama-34B (paper)": 50.0,
        "CodeLlama-7B, T 0.2, n 10 (paper)": 35.95,
    },
    THINKING: {"GPT-4 with chain of thought (paper)": 75.0},
}
# Assumed; a trace takes 500 on average (report), the longest of CruxEval's some 40,000.
_MAX_TOKENS = {DIRECT: 1_024, FULL_TRACE: MAX_REASONING_TOKENS, SINGLE_STEP: 1_024}
_ANSWER, _ANSWER_END = "[ANSWER]", "[/ANSWER]"
_FORMS = ("main", "few_shot")

# Of main, which no model can get wrong: it takes no argument.
_ENTRY_CALL = render_frame(TraceFrame(TraceEvent.CALL, "def main():\n"), None)
# Source: the tags and the assertion are CruxEval's; words and examples are ours.
_OUTPUT_SHOTS = (
    ("def f(words):\n    return [w[::-1] for w in words if len(w) > 1]", "['ab', 'c']", "['ba']"),
    ("def f(n, base):\n    return str(n * base) + '!'", "12, base=3", "'36!'"),
)
_INPUT_SHOTS = (
    ("def f(items):\n    return sorted(set(items))[-2:]", "[5, 1, 7, 7]", "[5, 7]"),
    ("def f(text, n):\n    return text.upper() * n", "'ab', 2", "'ABAB'"),
)
_OUTPUT_TASK = (
    "Each problem is a Python function f and an assertion whose right side is missing. Complete "
    "the assertion with the value that f returns, written as a literal."
)
_INPUT_TASK = (
    "Each problem is a Python function f and an assertion whose arguments are missing. Complete "
    "the assertion with arguments for which it holds; any such arguments are right."
)
_OUTPUT_QUESTION = (
    "What does this function return?\n\n```python\n{code}\n```\n\nThe call is `f({input})`. Put "
    "the value that it returns, as Python writes it, between [ANSWER] and [/ANSWER], and nothing "
    "else there."
)
_INPUT_QUESTION = (
    "For which arguments does this function return a given value?\n\n```python\n{code}\n```\n\n"
    "Find any arguments for which `f(...) == {output}` holds. Put the whole call, as f(1, 'a'), "
    "between [ANSWER] and [/ANSWER], and nothing else there."
)


def load_output(path: Path | None, options: SetOptions) -> EvalSet:
    """Output prediction.

    Raises:
        ValueError: as `read_rows`; there is a form for a mode that has one alone.
    """
    if "form" in options.values and options.mode != DIRECT:
        raise ValueError(f"--option form is of the mode {DIRECT}, not of {options.mode}: drop it")
    form = one_of(options, "form", _FORMS, _FORMS[0])
    rows, judge = _opened(path), Judge(unsafe=options.unsafe)

    def problem(row: Row) -> Problem:
        prompt = _output_prompt(row, options, form)
        return _problem(row, prompt, _output_judge(row, options.mode, form, judge))

    scores = ("mean", "state_exact_match:mean", "action_exact_match:mean")
    return EvalSet(
        name=f"cruxeval_o/{options.mode}",
        problems=[problem(row) for row in rows],
        metrics=scores if options.mode == FULL_TRACE else ("mean",),
        about=_ABOUT_OUTPUT[options.mode],
        published=_PUBLISHED_OUTPUT[options.mode],
        close=judge.close,
        **_sampling(options.mode),
    )


def load_input(path: Path | None, options: SetOptions) -> EvalSet:
    """Input prediction; raises ValueError as `read_rows`."""
    rows, judge = _opened(path), Judge(unsafe=options.unsafe)

    def problem(row: Row) -> Problem:
        question = _INPUT_QUESTION.format(code=row.code, output=row.output)
        few_shot = _few_shot(_INPUT_TASK, _INPUT_SHOTS, row, lambda i, o: f"f(??) == {o}")
        prompt = _asked(question, few_shot, options)
        read = _tagged if options.mode == THINKING else _completed
        return _problem(row, prompt, lambda answer: judge.input(row, read(answer)))

    return EvalSet(
        name=f"cruxeval_i/{options.mode}",
        problems=[problem(row) for row in rows],
        about=_ABOUT_INPUT,
        published=_PUBLISHED_INPUT[options.mode],
        close=judge.close,
        **_sampling(options.mode),
    )


def _opened(path: Path | None) -> list[Row]:
    assert path is not None
    return read_rows(path)


def _problem(row: Row, prompt: Prompt, judge: Callable[[Answer], Verdict]) -> Problem:
    return Problem(
        name=row.name,
        attempt=one_answer(prompt, judge_with(judge)),
        text=f"{row.code}\nassert f({row.input}) == {row.output}",
    )


def _sampling(mode: str) -> dict[str, Any]:
    """Greedy, as the report's; with reasoning its decoding of all answers that reason."""
    return {"temperature": 1.0, "top_p": 0.95} if mode == THINKING else {}


# ---------------------------------------------------------------- prompts


def _output_prompt(row: Row, options: SetOptions, form: str) -> Prompt:
    if options.mode in (FULL_TRACE, SINGLE_STEP):
        full = options.mode == FULL_TRACE
        begun = render_prompt(row.context) + _ENTRY_CALL
        return Prompt(
            text=begun if full else begun + RETURN_SEP,
            max_tokens=options.max_tokens or _MAX_TOKENS[options.mode],
            stop=() if full else (FRAME_SEP,),
        )
    if options.mode == DIRECT and form == "main":
        prompt = direct_prompt(row.context)
        assert prompt is not None
        return _text(prompt, "\n", options)
    question = _OUTPUT_QUESTION.format(code=row.code, input=row.input)
    few_shot = _few_shot(_OUTPUT_TASK, _OUTPUT_SHOTS, row, lambda i, o: f"f({i}) == ??")
    return _asked(question, few_shot, options)


def _asked(question: str, few_shot: str, options: SetOptions) -> Prompt:
    if options.mode == THINKING:
        return chat(question, options, think=True)
    return _text(BEGIN_OF_TEXT + few_shot, _ANSWER_END, options)


def _text(prompt: str, stop: str, options: SetOptions) -> Prompt:
    most = options.max_tokens or _MAX_TOKENS[DIRECT]
    return Prompt(text=prompt, max_tokens=most, stop=(stop,))


def _few_shot(
    task: str,
    shots: tuple[tuple[str, str, str], ...],
    row: Row,
    asked: Callable[[str, str], str],
) -> str:
    parts = [task]
    for code, given, output in shots:
        parts.append(_shown(code, asked(given, output)) + f"\nassert f({given}) == {output}")
        parts[-1] += f"\n{_ANSWER_END}"
    return "\n\n".join([*parts, _shown(row.code, asked(row.input, row.output))]) + "\n"


def _shown(code: str, asked: str) -> str:
    return f"[PYTHON]\n{code.strip()}\nassert {asked}\n[/PYTHON]\n{_ANSWER}"


# ---------------------------------------------------------------- answers


def _output_judge(row: Row, mode: str, form: str, judge: Judge) -> Callable[[Answer], Verdict]:
    if mode == FULL_TRACE:
        return lambda answer: _judged_trace(row, answer, judge)
    if mode == SINGLE_STEP:
        return lambda answer: judge.output(row, _returned(answer))
    if mode == DIRECT:
        return lambda answer: judge.output(row, _completed(answer))
    return lambda answer: judge.output(row, _tagged(answer))


def _completed(answer: Answer) -> str:
    """The rest of an assertion; one that was cut is none."""
    if answer.finish_reason == "length":
        raise NoAnswerError(NOT_FINISHED)
    if not answer.text.strip():
        raise NoAnswerError("nothing")
    return answer.text.strip()


def _tagged(answer: Answer) -> str:
    """What stands between the tags; all of an answer without any."""
    said = final_text(answer)
    count = said.count(_ANSWER), said.count(_ANSWER_END)
    if count == (1, 1):
        said = said.partition(_ANSWER)[2].partition(_ANSWER_END)[0].strip()
    elif count != (0, 0):
        raise NoAnswerError(f"{count[0]} {_ANSWER} and {count[1]} {_ANSWER_END}")
    if not said:
        raise NoAnswerError("nothing")
    return said


def _returned(answer: Answer) -> str:
    """The value in the frame of a forced return."""
    value = single_step_output(answer.text + FRAME_SEP) if answer.finish_reason == "stop" else None
    if value is None:
        raise NoAnswerError("no frame of a return")
    return value


def _judged_trace(row: Row, answer: Answer, judge: Judge) -> Verdict:
    ended = answer.finish_reason == "stop"
    written = answer.text + END_OF_TEXT if ended else answer.text
    episode = judge.trace(row)
    true = parse_frames(episode.frames)
    found = predicted_trace(episode, true, written)
    whole = [true[0], *read_frames(written, true[0])[0]]
    value = returned_value(whole) if ended else None
    try:
        if value is None:
            raise NoAnswerError("no return of main at the end" if ended else NOT_FINISHED)
        verdict = judge.output(row, value)
    except NoAnswerError as error:
        verdict = Verdict(passed=False, reason=str(error))
    scores = {"valid_trace_format": float(found.valid), **_frame_means(found.scores)}
    scores["exact_trace"] = float(found.valid and found.divergence is None)
    info = {**verdict.info, "first_divergence": found.divergence, "true_frames": len(true)}
    return dataclasses.replace(verdict, scores=scores, info=info)


# Names of the report's Table 9, in shares of a trace's true frames after the entry's call.
_FRAME_SCORES = {
    "valid_json_format": "valid",
    "state_exact_match": "state",
    "action_exact_match": "action",
    "key_match": "keys",
    "key_value_match": "key_values",
}


def _frame_means(scores: tuple[FrameScore, ...]) -> Mapping[str, float]:
    means = {}
    for name, field in _FRAME_SCORES.items():
        values = [getattr(score, field) for score in scores]
        counted = [float(value) for value in values if value is not None]
        means[name] = sum(counted) / len(counted) if counted else 0.0
    return means


_JUDGED = (
    "Grader: the prediction is evaluated in a sandbox and is right if Python calls it equal, as in "
    "the official grader. Unlike there, f is not defined where an output is evaluated, and only "
    "plain data can be equal: no object with an __eq__ of its own."
)
_ABOUT_OUTPUT = {
    DIRECT: "Prompt: the code and an assertion whose right side the model completes; with "
    f"form=few_shot CruxEval's form with two examples of our own. {_JUDGED}",
    FULL_TRACE: "Prompt: the code with a main() that calls f, marked, and the frame of main's "
    "call; the model writes the trace to its end, and the value of the last return is its answer. "
    "Frames are compared with those of this CPython: of 3.12 and later comprehensions have no "
    f"frames of their own, unlike in the traces that CWM was trained on. {_JUDGED}",
    SINGLE_STEP: "Prompt: as of full_trace, and a return forced right after main's call. "
    f"{_JUDGED}",
    THINKING: f"Prompt: in our own words; the answer between [ANSWER] and [/ANSWER]. {_JUDGED}",
}
_ABOUT_INPUT = (
    "Prompt: in our own words; direct has CruxEval's form with two examples of our own. Grader: f "
    "is run on the predicted arguments in a sandbox, and what it returns has to be equal as Python "
    "has it. Unlike in the official grader, the prediction is one call of f whose arguments are "
    "expressions of literals, pure builtin functions and methods: none can replace f."
)
_URL = "https://raw.githubusercontent.com/facebookresearch/cruxeval/main/data/cruxeval.jsonl"

ENTRIES = {
    "cruxeval_o": SetEntry(
        load=load_output,
        modes=OUTPUT_MODES,
        summary="CruxEval, output prediction: directly, by a trace, in one step, by reasoning",
        url=_URL,
        options={
            "form": "of mode direct: main (an assertion about main(), as in our corpora; the "
            "default) or few_shot (CruxEval's own form, for base models)"
        },
    ),
    "cruxeval_i": SetEntry(
        load=load_input,
        modes=INPUT_MODES,
        summary="CruxEval, input prediction: directly (base models) or by reasoning",
        url=_URL,
    ),
}
