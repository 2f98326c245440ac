"""The files of HumanEval, HumanEval+ and MBPP."""

from __future__ import annotations

import ast
import builtins
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwm_jax.evals.sets.asking import name_of, row_of
from cwm_jax.evals.sets.code.plus_tests import PlusTests, read_plus
from cwm_jax.rl.envs.code.tests import AssertTests
from cwm_jax.rl.envs.fields import each, identifier, listed, optional_text, text
from cwm_jax.rl.envs.record_files import read_records
from cwm_jax.trace.format import check_plain
from cwm_jax.trace.tracer import PARSE_ERRORS

# Source: MBPP's paper; first and last number.
MBPP_SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A problem of any of the three.

    Attributes:
        name: as in the file.
        entry: the function that is called.
        prompt: of HumanEval, code up to the function's body; of MBPP, a sentence.
        reference: the file's own solution, as a whole module.
        tests: that it has to pass.
        shown: of MBPP, the assertions, which are part of the question.
        labels: for break-downs.
    """

    name: str
    entry: str
    prompt: str
    reference: str
    tests: AssertTests | PlusTests
    shown: tuple[str, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_humaneval(path: Path) -> list[Row]:
    """The lines of HumanEval's file.

    Raises:
        ValueError: with file and line, for a file that cannot be used.
    """
    form = "lines with task_id, prompt, entry_point, canonical_solution and test"
    return read_records(path, _read_humaneval, form=form, what="problem")


def read_humaneval_plus(path: Path) -> list[Row]:
    """The lines of EvalPlus' file; raises as `read_humaneval`."""
    form = (
        "lines with task_id, prompt, entry_point, canonical_solution, base_input and plus_input, "
        "as EvalPlus releases HumanEvalPlus.jsonl"
    )
    return read_records(path, _read_humaneval_plus, form=form, what="problem")


def read_mbpp(path: Path, *, challenge: bool = False) -> list[Row]:
    """The lines of MBPP's file, or the array of its sanitized one; raises as `read_humaneval`.

    Args:
        path: of the file.
        challenge: with the further assertions that some problems have.
    """
    form = "lines with task_id, text (or prompt), code and test_list"
    return read_records(path, lambda v: _read_mbpp(v, challenge), form=form, what="problem")


def _read_humaneval(value: Any) -> tuple[str, Row]:
    row = row_of(value, ("task_id", "prompt", "entry_point", "canonical_solution", "test"))
    return _humaneval_row(row, AssertTests("", text(row["test"], "test")))


def _read_humaneval_plus(value: Any) -> tuple[str, Row]:
    keys = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input")
    row = row_of(value, keys)
    return _humaneval_row(row, read_plus(row))


def _humaneval_row(row: Mapping[str, Any], tests: AssertTests | PlusTests) -> tuple[str, Row]:
    name, entry = name_of(row, "task_id"), identifier(row["entry_point"], "entry_point")
    prompt = text(row["prompt"], "prompt")
    reference = prompt + text(row["canonical_solution"], "canonical_solution")
    _check_functions(prompt, "prompt", entry)
    _check_functions(reference, "canonical_solution", entry)
    check_plain(prompt, "prompt")
    if isinstance(tests, AssertTests):
        _parsed(tests.code, "test")
        tests = dataclasses.replace(tests, entry=entry, setup=prompt)
    else:
        tests = dataclasses.replace(tests, entry=entry, prompt=prompt, reference=reference)
    return name, Row(name=name, entry=entry, prompt=prompt, reference=reference, tests=tests)


def _read_mbpp(value: Any, challenge: bool) -> tuple[str, Row]:
    row = row_of(value, ("task_id", "code", "test_list"))
    sentence = row_of(row, ("prompt",)) if "text" not in row else row
    prompt = text(sentence["text" if "text" in row else "prompt"], "text")
    code = _with_line_ends(text(row["code"], "code"))
    name = name_of(row, "task_id")
    shown = each(row["test_list"], "test_list", lambda test: text(test, "it").strip())
    asserted = list(shown)
    if challenge:
        more = row.get("challenge_test_list") or []
        asserted += each(more, "challenge_test_list", lambda t: text(t, "it"), may_be_empty=True)
    imports = each(row.get("test_imports") or [], "test_imports", _line, may_be_empty=True)
    setup = "\n".join([*imports, optional_text(row, "test_setup_code", "test_setup_code")])
    for source in (prompt, code, *asserted):
        check_plain(source, "problem")
    entry = _called(code, "\n".join(asserted))
    tests = AssertTests(entry, _with_line_ends("\n".join(asserted)), _with_line_ends(setup))
    return name, Row(
        name=name,
        entry=entry,
        prompt=prompt,
        reference=code,
        tests=tests,
        shown=tuple(shown),
        labels={"split": _split(name)},
    )


def _split(name: str) -> str:
    number = int(name) if name.isdigit() else 0
    return next((s for s, (a, b) in MBPP_SPLITS.items() if a <= number <= b), "other")


def _line(value: Any) -> str:
    return text(value, "it")


def _with_line_ends(source: str) -> str:
    """Files from elsewhere end their lines with a carriage return, too."""
    return source.replace("\r\n", "\n")


def _called(code: str, tests: str) -> str:
    """The one function of the code that the tests call.

    Raises:
        ValueError: there is none, or several.
    """
    defined = _functions(_parsed(code, "code"))
    called = {
        node.func.id
        for node in ast.walk(_parsed(tests, "test_list"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    found = [name for name in defined if name in called]
    if len(found) != 1:
        others = sorted(called - set(dir(builtins)))
        raise ValueError(
            f"test_list calls {others} and code defines {defined}; expected tests that call one of "
            "its functions"
        )
    return found[0]


def _check_functions(source: str, what: str, entry: str) -> None:
    defined = _functions(_parsed(source, what))
    if entry not in defined:
        raise ValueError(f"{what} defines {listed(defined or ['nothing'])}; expected {entry}")


def _functions(tree: ast.Module) -> list[str]:
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return list(dict.fromkeys(functions))


def _parsed(source: str, what: str) -> ast.Module:
    try:
        return ast.parse(source)
    except PARSE_ERRORS as error:
        raise ValueError(f"{what} is no Python ({error}); expected source that parses") from None
