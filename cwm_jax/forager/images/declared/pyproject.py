"""pyproject.toml: extras, groups of requirements, and hatch's environments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from packaging.utils import canonicalize_name

from cwm_jax.forager.images.declared.command_lines import CommandLines
from cwm_jax.forager.images.declared.groups import groups, poetry_requirements
from cwm_jax.forager.images.declared.needs import (
    RANKS,
    Declared,
    index_requirements,
    lines_of_file,
    rank_of_name,
)
from cwm_jax.forager.images.declared.project import Project, strings, table


def declared(project: Project) -> Iterator[Declared]:
    """Extras and groups whose names say tests or development, and hatch's environments."""
    for name in extras(project):
        if (rank := rank_of_name(name)) is not None:
            yield Declared(name=f"pyproject extra {name}", rank=rank, extras=(name,))
    for name, requirements in groups(project).items():
        if (rank := rank_of_name(name)) is not None and requirements:
            yield Declared(name=f"pyproject group {name}", rank=rank, requirements=requirements)
    yield from _hatch_environments(project)


def extras(project: Project) -> dict[str, tuple[str, ...]]:
    """Requirements by extra, also of those in files that setuptools reads, and of poetry."""
    document = project.toml("pyproject.toml")
    tool = table(document, "tool")
    found = {
        name: index_requirements(strings(texts))
        for name, texts in table(document, "project", "optional-dependencies").items()
    }
    for name, texts in table(tool, "flit", "metadata", "requires-extra").items():
        found.setdefault(name, index_requirements(strings(texts)))
    for name, where in table(tool, "setuptools", "dynamic", "optional-dependencies").items():
        lines = (
            line
            for path in strings(table({"all": where}, "all").get("file"))
            for line in lines_of_file(project, path)
        )
        found.setdefault(name, index_requirements(lines))
    for name, names in table(tool, "poetry", "extras").items():
        found.setdefault(name, index_requirements(strings(names)))
    return {name: texts for name, texts in found.items() if re.fullmatch(r"\w[\w.-]*", name)}


def runtime_requirements(project: Project) -> tuple[str, ...]:
    """What the project itself needs."""
    document = project.toml("pyproject.toml")
    standard = index_requirements(strings(table(document, "project").get("dependencies")))
    return standard + poetry_requirements(table(document, "tool", "poetry", "dependencies"))


def _hatch_environments(project: Project) -> Iterator[Declared]:
    environments = table(project.toml("pyproject.toml"), "tool", "hatch", "envs")
    for name in environments:
        read = CommandLines(project)
        chain = [table(environments, "default"), table(environments, name)]
        if chain[1].get("detached"):
            del chain[0]
        for environment in chain:
            _read_environment(environment, read)
        named = rank_of_name(name) == RANKS["test"] or canonicalize_name(name) == "hatch-test"
        if read.runs_tests or (named and read.installs_pytest()):
            yield read.declared(f"hatch {name}", RANKS["runner"])


def _read_environment(environment: dict[str, Any], read: CommandLines) -> None:
    for key in ("dependencies", "extra-dependencies"):
        for text in strings(environment.get(key)):
            read.line(text)
    for extra in strings(environment.get("features")):
        read.extra(extra)
    for group in strings(environment.get("dependency-groups")):
        read.group(group)
    scripts = table(environment, "scripts")
    # "test" before "test-cov", whatever is written first
    for name in sorted(scripts, key=lambda name: (rank_of_name(name) or 0, name)):
        if rank_of_name(name) is None:
            continue
        for line in strings(scripts[name]):
            read.read_shell(re.sub(r"\{args:?([^{}]*)\}", r"\1", line))
