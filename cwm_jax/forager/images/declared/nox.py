"""noxfile.py, by its syntax: what sessions install and run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from cwm_jax.forager.images.declared.command_lines import CommandLines
from cwm_jax.forager.images.declared.literals import last_name, literal, module_literals
from cwm_jax.forager.images.declared.needs import RANKS, Declared, rank_of_name
from cwm_jax.forager.images.declared.project import Project, strings

_UNKNOWN = "{}"  # a word that only a run would show


def declared(project: Project) -> Iterator[Declared]:
    """Each session that runs pytest or unittest; those named after tests before others."""
    tree = project.python("noxfile.py")
    names = module_literals(tree)
    found = []
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and _is_session(function):
            read = CommandLines(project)
            _read_session(function, names, read)
            if read.runs_tests:
                found.append(read.declared(f"nox {function.name}", RANKS["runner"]))
    yield from sorted(found, key=lambda one: rank_of_name(one.name[4:]) != RANKS["test"])


def _read_session(function: ast.FunctionDef, names: dict[str, Any], read: CommandLines) -> None:
    session = function.args.args[0].arg if function.args.args else ""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        method = call.func
        if not isinstance(method, ast.Attribute) or not isinstance(method.value, ast.Name):
            continue
        if method.value.id != session:
            continue
        for group in _groups(call):
            read.group(group)
        words = _words(call, names)
        if method.attr == "install":
            read.install([word for word in words if word != _UNKNOWN])
        elif method.attr in ("run", "run_always", "run_install"):
            read.read(words)


def _groups(call: ast.Call) -> Iterator[str]:
    """Of ``*nox.project.dependency_groups(PYPROJECT, "test")``."""
    for argument in call.args:
        inner = argument.value if isinstance(argument, ast.Starred) else argument
        if isinstance(inner, ast.Call) and last_name(inner.func) == "dependency_groups":
            for name in inner.args[1:]:
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield name.value


def _words(call: ast.Call, names: dict[str, Any]) -> list[str]:
    words = []
    for argument in call.args:
        starred = isinstance(argument, ast.Starred)
        value = literal(argument.value if starred else argument, names)
        if isinstance(value, str):
            words.append(value)
        elif starred or isinstance(value, list):
            words += strings(value)
        else:
            words.append(_UNKNOWN)
    return words


def _is_session(function: ast.FunctionDef) -> bool:
    named = (one.func if isinstance(one, ast.Call) else one for one in function.decorator_list)
    return any(last_name(one) == "session" for one in named)
