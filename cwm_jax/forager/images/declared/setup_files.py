"""setup.cfg, and the literals of setup.py."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import Any

from cwm_jax.forager.images.declared.literals import last_name, literal, module_literals
from cwm_jax.forager.images.declared.needs import (
    Declared,
    index_requirements,
    rank_of_name,
)
from cwm_jax.forager.images.declared.project import Project, strings


def declared(project: Project) -> Iterator[Declared]:
    """Extras for tests, and tests_require."""
    for path, (extras, tests) in _sources(project):
        for name in extras:
            if (rank := rank_of_name(name)) is not None:
                yield Declared(name=f"{path} extra {name}", rank=rank, extras=(name,))
        if requirements := index_requirements(tests):
            rank = rank_of_name("tests") or 0
            yield Declared(name=f"{path} tests_require", rank=rank, requirements=requirements)


def extras(project: Project) -> dict[str, tuple[str, ...]]:
    """Requirements by extra, of both files."""
    found: dict[str, tuple[str, ...]] = {}
    for _, (declared_extras, _) in _sources(project):
        found |= {name: index_requirements(texts) for name, texts in declared_extras.items()}
    return found


def runtime_requirements(project: Project) -> tuple[str, ...]:
    """What the project itself needs, as far as literals say."""
    options = project.ini("setup.cfg").get("options", {})
    literal = _setup_arguments(project).get("install_requires")
    return index_requirements([*options.get("install_requires", "").splitlines(), *_texts(literal)])


def setup_literal(project: Project, name: str) -> str:
    """An argument of setup() that is a literal text; empty otherwise."""
    value = _setup_arguments(project).get(name)
    return value if isinstance(value, str) else ""


def _sources(project: Project) -> Iterator[tuple[str, tuple[dict[str, list[str]], list[str]]]]:
    sections = project.ini("setup.cfg")
    extras = {
        name: value.splitlines()
        for name, value in sections.get("options.extras_require", {}).items()
        if ":" not in name
    }
    tests = sections.get("options", {}).get("tests_require", "").splitlines()
    yield "setup.cfg", (extras, tests)
    arguments = _setup_arguments(project)
    literals = arguments.get("extras_require")
    literals = literals if isinstance(literals, dict) else {}
    named = {name: list(_texts(value)) for name, value in literals.items() if ":" not in name}
    yield "setup.py", (named, list(_texts(arguments.get("tests_require"))))


def _texts(value: Any) -> Iterable[str]:
    """Of a list, or of lines."""
    return value.splitlines() if isinstance(value, str) else strings(value)


def _setup_arguments(project: Project) -> dict[str, Any]:
    tree = project.python("setup.py")
    names = module_literals(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and last_name(node.func) == "setup":
            return {word.arg: literal(word.value, names) for word in node.keywords if word.arg}
    return {}
