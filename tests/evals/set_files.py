"""Files of sets, made by tests, and answers to their problems."""

import json
from pathlib import Path

from cwm_jax.evals.problem import Answer, EvalSet, SetOptions, Verdict

HOSTILE_FILES = [
    ("", " has no problem; expected"),
    ("\n \n", " has no problem; expected"),
    ("\ufeff{}", ":1: the file begins with a byte order mark (BOM)"),
    ('{"a": ', ":1: the line is not JSON ("),
    ("[1", ":1: the line is not JSON ("),
    ("[1]", ": item 1: the line is 1; expected an object"),
    ("3", ":1: the line is 3; expected an object"),
    ("{}", ":1: the line has no"),
]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def written(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


def options(mode: str, **values: str) -> SetOptions:
    return SetOptions(mode=mode, values=values)


def answered(evaluation: EvalSet, number: int, text: str, *, cut: bool = False) -> Verdict:
    """The verdict on an answer to a problem of the set."""
    attempt = evaluation.problems[number].attempt()
    attempt.start()
    verdict = attempt.step(Answer(text=text, finish_reason="length" if cut else "stop"))
    assert isinstance(verdict, Verdict)
    attempt.close()
    return verdict


def prompt_of(evaluation: EvalSet, number: int = 0):
    return evaluation.problems[number].attempt().start()


def fenced(code: str) -> str:
    return f"Here it is.\n```python\n{code}\n```\n"
