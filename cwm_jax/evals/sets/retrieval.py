"""Long-context retrieval: values hidden in haystacks of text and code, of a length in tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from cwm_jax.data.chat import Message, encode_dialog, with_reasoning_prompt
from cwm_jax.evals.generated.haystacks import Pools, TooShortError, fitted
from cwm_jax.evals.generated.retrieval_tasks import TASKS, Draft
from cwm_jax.evals.option_values import names, whole_number, whole_numbers
from cwm_jax.evals.problem import Answer, EvalSet, Problem, Prompt, SetEntry, SetOptions, Verdict
from cwm_jax.tokenizer import BEGIN_OF_TEXT, Tokenizer
from cwm_jax.trace.format import is_plain

MODES = ("chat", "reasoning", "text")
_MAX_TOKENS = {"chat": 256, "reasoning": 8192, "text": 128}  # assumed; RULER: 30 to 128
_LENGTHS = (4096, 8192, 16_384, 32_768)  # assumed
_DEPTHS = (0, 25, 50, 75, 100)  # assumed
_COUNT = 5  # assumed
_ABOUT = (
    "Made by rule, seed {seed}; prompts have the stated tokens of the model's tokenizer, chat "
    "format included, or up to 1 % less, and the answer comes on top. As RULER's tasks without its "
    "texts: passed if all values are in the answer as whole words; recall: the share that is; any: "
    "at least one."
)


def load(path: Path | None, options: SetOptions) -> EvalSet:
    """Problems for each task, length and depth; prompts are made when they are asked for.

    Raises:
        ValueError: an option that cannot be used, no tokenizer, or a length that is too short.
    """
    assert path is None
    if options.tokenizer is None:
        raise ValueError(
            "retrieval makes prompts of a length in the model's tokens, and its tokenizer is not "
            "known; expected one: with a server, name a tokenizer.json, a tokenizer.model, or a "
            "folder with either"
        )
    seed = whole_number(options, "seed", 0, least=0)
    lengths = whole_numbers(options, "lengths", _LENGTHS)
    text = _text(options.values.get("text"))
    pools = {n: Pools(options.tokenizer, seed=seed, length=n, text=text) for n in lengths}
    problems = [
        _problem(task, length, depth, number, seed=seed, pools=pools[length], options=options)
        for task in names(options, "tasks", tuple(TASKS))
        for length in lengths
        for depth in _depths(task, options)
        for number in range(whole_number(options, "count", _COUNT))
    ]
    _check_shortest(problems, min(lengths))
    return EvalSet(
        name=f"retrieval/{options.mode}", problems=problems, about=_ABOUT.format(seed=seed)
    )


ENTRIES = {
    "retrieval": SetEntry(
        load=load,
        modes=MODES,
        summary="values hidden in long texts and code (needle, RULER-like), lengths in tokens",
        needs_path=False,
        options={
            "lengths": "of prompts, in the model's tokens; leave room for the answer "
            f"({','.join(map(str, _LENGTHS))})",
            "depths": f"of what is asked for, in percent ({','.join(map(str, _DEPTHS))})",
            "tasks": f"some of {','.join(TASKS)} (all)",
            "count": f"problems for each task, length and depth ({_COUNT})",
            "seed": "of the generator (0)",
            "text": "a UTF-8 file whose lines are used in place of made sentences",
        },
    )
}


class _Retrieval:
    """An attempt; its prompt is made at the start, since all of a set's would fill the memory."""

    def __init__(self, make: Callable[[], Prompt], judge: Callable[[Answer], Verdict]) -> None:
        self._make, self._judge = make, judge

    def start(self) -> Prompt:
        return self._make()

    def step(self, answer: Answer) -> Verdict:
        return self._judge(answer)

    def close(self) -> None:
        pass


def recall(values: Sequence[str], text: str) -> float:
    """The share of the values that are in the text as whole words, in any case."""
    found = [re.search(rf"(?<!\w){re.escape(v)}(?!\w)", text, re.IGNORECASE) for v in values]
    return sum(match is not None for match in found) / len(values)


def _depths(task: str, options: SetOptions) -> tuple[int | None, ...]:
    depths = whole_numbers(options, "depths", _DEPTHS, least=0)
    if max(depths) > 100:
        raise ValueError(f"--option depths has {max(depths)}; expected percent, 0 to 100")
    return depths if TASKS[task].has_depth else (None,)


def _text(name: str | None) -> list[str] | None:
    """The file's lines, each once."""
    if name is None:
        return None
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--option text={name}: cannot be read ({error}); expected a file of lines in UTF-8"
        ) from error
    found = [*dict.fromkeys(f"{line.strip()}\n" for line in lines if line.strip())]
    special = next((line for line in found if not is_plain(line)), None)
    if special or not found:
        got = f"has the name of a special token in {special[:60]!r}" if special else "has no line"
        raise ValueError(f"--option text={name}: {got}; expected lines of plain text")
    return found


def _problem(
    task: str,
    length: int,
    depth: int | None,
    number: int,
    *,
    seed: int,
    pools: Pools,
    options: SetOptions,
) -> Problem:
    place = "" if depth is None else f"-{depth}"
    name = f"{task}-{length}{place}-{number}"
    fraction = None if depth is None else depth / 100
    draft = TASKS[task].draft(f"{seed} {name}", fraction, pools)
    max_tokens = options.max_tokens or _MAX_TOKENS[options.mode]

    def make() -> Prompt:
        return _prompt(draft, length, options.mode, max_tokens, pools.tokenizer)

    return Problem(
        name=name,
        attempt=lambda: _Retrieval(make, lambda answer: _judge(draft.values, answer)),
        text=f"{draft.hidden}\n{draft.question}",
        labels={
            "task": task,
            "length": str(length),
            "depth": "spread" if depth is None else f"{depth} %",
        },
    )


def _prompt(draft: Draft, length: int, mode: str, max_tokens: int, tokenizer: Tokenizer) -> Prompt:
    def wrapped(units: Sequence[str]) -> Prompt:
        text = f"{draft.intro}{''.join(units)}{draft.question}"
        if mode == "text":
            text = f"{BEGIN_OF_TEXT}{text}\n{draft.opening}"
            return Prompt(text=text, max_tokens=max_tokens, stop=("\n\n",))
        messages = [Message("user", text)]
        if mode == "reasoning":
            messages = with_reasoning_prompt(messages)
        return Prompt(messages=messages, max_tokens=max_tokens, think=mode == "reasoning")

    def count(units: Sequence[str]) -> int:
        return num_tokens(wrapped(units), tokenizer)

    units = fitted(length, fixed=count([]), units=draft.units, count=count)
    return wrapped(units)


def num_tokens(prompt: Prompt, tokenizer: Tokenizer) -> int:
    """Of a dialog in CWM's chat format, or of a text with special tokens."""
    if prompt.messages is not None:
        return len(encode_dialog(tokenizer, prompt.messages, think=prompt.think))
    assert prompt.text is not None
    return len(tokenizer.encode_with_special_tokens(prompt.text))


def _judge(values: Sequence[str], answer: Answer) -> Verdict:
    """An answer that was cut may have named them already."""
    share = recall(values, answer.text)
    lacking = [value for value in values if not recall([value], answer.text)]
    return Verdict(
        passed=not lacking,
        answer=", ".join(v for v in values if v not in lacking) or None,
        reason=f"not named: {', '.join(lacking)}" if lacking else "",
        scores={"recall": share, "any": float(share > 0)},
        info={"values": [*values]},
    )


def _check_shortest(problems: Sequence[Problem], length: int) -> None:
    """Makes one prompt of each task: what is too short is told before anything runs."""
    checked: set[str] = set()
    for problem in problems:
        task = problem.labels["task"]
        if problem.labels["length"] == str(length) and task not in checked:
            checked.add(task)
            try:
                problem.attempt().start()
            except TooShortError as error:
                raise ValueError(
                    f"--option lengths has {length}, which is too short for the task {task}: "
                    f"{error}; give greater lengths, or leave the task out of --option tasks"
                ) from error
