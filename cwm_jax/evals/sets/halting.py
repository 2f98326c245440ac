"""Halting: does a program end? Made pairs of known answer, or a file of programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.data.chat import Message, with_reasoning_prompt
from cwm_jax.evals.generated.termination import (
    FAMILIES,
    HaltingProgram,
    halting_programs,
    not_as_said,
)
from cwm_jax.evals.option_values import names, whole_number
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
from cwm_jax.evals.traces.predicted import read_frames
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.sandbox import SandboxError
from cwm_jax.tokenizer import END_OF_TEXT
from cwm_jax.trace.episodes import context_of_script
from cwm_jax.trace.format import START_MARKER, render_frame, render_prompt
from cwm_jax.trace.frames import TraceEvent, TraceFrame, is_left

MODES = ("direct", "cot", "reasoning", "trace")
_MAX_TOKENS = {"direct": 16, "cot": 2048, "reasoning": 32_768, "trace": 8192}  # assumed
_PAIRS = 115  # report: as many of each answer in HaltEval-prelim
_CHECKS = ("ending", "all", "none")
_QUESTION = (
    "Does this Python program end by itself, or does it run forever? Suppose that memory and time "
    "are unlimited.\n\n```python\n{code}\n```\n\n{form}"
)
_ONE_WORD = "Reply with one word: yes if it ends, no if it runs forever."
_LAST_LINE = (
    "Reason step by step. The last line of your reply is `Answer: yes` if the program ends, or "
    "`Answer: no` if it runs forever."
)
_ANSWER = re.compile(r"(?:answer\s*:\s*)?(yes|no)", re.IGNORECASE)
_MAIN = re.compile(r"^def main\(\):[ \t]*$", re.MULTILINE)
_ENTRY = TraceFrame(TraceEvent.CALL, "def main():\n")
_ABOUT = (
    "{origin}: {ends} programs that end, {runs} that do not. HaltEval-prelim itself is not "
    "published; on it the report gives CWM 37 (direct), 55 (cot), 94 (reasoning)."
)


def load_generated(path: Path | None, options: SetOptions) -> EvalSet:
    """Pairs that are made by rule from a seed; those that end are run.

    Raises:
        ValueError: an option that cannot be used.
        EnvironmentFailure: no sandbox can be had to run them in.
    """
    assert path is None
    seed = whole_number(options, "seed", 0, least=0)
    families = names(options, "families", tuple(FAMILIES))
    pairs = whole_number(options, "pairs", _PAIRS)
    programs = [*halting_programs(seed, pairs, families)]
    _check(programs, options)
    return _set("halting", programs, options, f"made by rule, seed {seed}")


def load_file(path: Path | None, options: SetOptions) -> EvalSet:
    """Programs of a JSONL file with ``id``, ``code`` and ``halts`` in each line.

    Raises:
        ValueError: a line that is no such object, an id that is there twice, or a program that
            cannot be asked about in this mode.
    """
    assert path is not None
    programs = [*_programs_of(path)]
    if not programs:
        raise ValueError(f"{path} has no line; expected a program in each")
    return _set("halting_file", programs, options, path.name)


ENTRIES = {
    "halting": SetEntry(
        load=load_generated,
        modes=MODES,
        summary="does a program end? pairs made by rule, half of them do",
        needs_path=False,
        options={
            "pairs": f"of one that ends and one that does not ({_PAIRS})",
            "seed": "of the generator (0)",
            "families": f"some of {','.join(FAMILIES)} (all)",
            "check": f"which are run in the sandbox first: {', '.join(_CHECKS)} (ending)",
        },
    ),
    "halting_file": SetEntry(
        load=load_file,
        modes=MODES,
        summary="does a program end? a JSONL file with id, code and halts",
    ),
}


def _check(programs: Sequence[HaltingProgram], options: SetOptions) -> None:
    wanted = options.values.get("check", _CHECKS[0])
    if wanted not in _CHECKS:
        raise ValueError(f"--option check={wanted}; expected one of {', '.join(_CHECKS)}")
    if wanted == "none":
        return
    run = [program for program in programs if program.halts or wanted == "all"]
    try:
        wrong = not_as_said(run, unsafe=options.unsafe)
    except SandboxError as error:
        message = f"{error}; or leave the programs unchecked, with --option check=none"
        raise EnvironmentFailure(message) from error
    assert not wrong, wrong


def _programs_of(path: Path) -> Iterator[HaltingProgram]:
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = _row(f"{path}:{number}", line)
            name = str(row["id"])
            if name in seen:
                raise ValueError(f"{path}:{number}: id {name!r} is there already; expected others")
            seen.add(name)
            yield HaltingProgram(
                name=name, code=row["code"], halts=row["halts"], family="", reason=""
            )


def _row(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
        right = isinstance(row["code"], str) and isinstance(row["halts"], bool) and "id" in row
    except (ValueError, KeyError, TypeError, RecursionError):
        right = False
    if not right:
        raise ValueError(
            f"{where}: got {line[:60]!r}; expected an object with 'id', a string 'code' and "
            "'halts', true or false: mend or remove the line"
        )
    return row


def _set(
    name: str, programs: Sequence[HaltingProgram], options: SetOptions, origin: str
) -> EvalSet:
    ends = sum(program.halts for program in programs)
    return EvalSet(
        name=f"{name}/{options.mode}",
        problems=[_problem(program, options) for program in programs],
        about=_ABOUT.format(origin=origin, ends=ends, runs=len(programs) - ends),
    )


def _problem(program: HaltingProgram, options: SetOptions) -> Problem:
    max_tokens = options.max_tokens or _MAX_TOKENS[options.mode]
    if options.mode == "trace":
        prompt, read = _trace_prompt(program, max_tokens)
    else:
        prompt, read = _question(program, options.mode, max_tokens), _said
    right = "yes" if program.halts else "no"

    def judge(answer: Answer) -> Verdict:
        said, reason = read(answer)
        return Verdict(
            passed=said == right,
            answer=said,
            reason="" if said == right else reason or f"it says {said}",
            scores={"answered": float(said is not None), "says_it_ends": float(said == "yes")},
            info={"why": program.reason} if program.reason else {},
        )

    family = {"family": program.family} if program.family else {}
    return Problem(
        name=program.name,
        attempt=one_answer(prompt, judge),
        text=program.code,
        labels={"ends": right} | family,
    )


def _question(program: HaltingProgram, mode: str, max_tokens: int) -> Prompt:
    form = _LAST_LINE if mode == "cot" else _ONE_WORD
    question = _QUESTION.format(code=program.code.strip("\n"), form=form)
    messages, think = [Message("user", question)], mode == "reasoning"
    return Prompt(
        messages=with_reasoning_prompt(messages) if think else messages,
        max_tokens=max_tokens,
        think=think,
    )


def _said(answer: Answer) -> tuple[str | None, str]:
    """The word of the last line, or why there is none."""
    if answer.finish_reason != "stop":
        return None, "not finished"
    lines = answer.text.strip().splitlines() or [""]
    found = _ANSWER.fullmatch(lines[-1].strip(" \t*_`'\".!"))
    return (found[1].lower(), "") if found else (None, "the last line is neither yes nor no")


def _trace_prompt(
    program: HaltingProgram, max_tokens: int
) -> tuple[Prompt, Callable[[Answer], tuple[str | None, str]]]:
    """The trace of ``main``, or of the whole script where there is none."""
    entry = _ENTRY if len(_MAIN.findall(program.code)) == 1 else None
    try:
        context = (
            context_of_script(program.code)
            if entry is None
            else _MAIN.sub(f"def main():{START_MARKER}", program.code)
        )
        text = render_prompt(context) + ("" if entry is None else render_frame(entry, None))
    except ValueError as error:
        raise ValueError(f"program {program.name!r} cannot be traced: {error}") from error
    prompt = Prompt(text=text, max_tokens=max_tokens, stop=(END_OF_TEXT,))

    def read(answer: Answer) -> tuple[str | None, str]:
        if answer.finish_reason == "length":
            return "no", ""
        frames, malformed = read_frames(answer.text, entry)
        whole = frames if entry is None else [entry, *frames]
        is_whole = not malformed and is_left(whole)
        return ("yes", "") if is_whole else (None, "the trace ends before the entry is left")

    return prompt, read
