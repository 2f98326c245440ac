"""Workflows of GitHub: jobs whose lines install something and run tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from cwm_jax.forager.images.declared.command_lines import CommandLines
from cwm_jax.forager.images.declared.needs import RANKS, Declared
from cwm_jax.forager.images.declared.project import Project, table

# Assumed; aliases may make many of few lines.
_MAX_WORKFLOWS = 8
_MAX_JOBS = 30
_MAX_STEPS = 60
_PATH = re.compile(r"\.github/workflows/[^/]+\.ya?ml")


def declared(project: Project) -> Iterator[Declared]:
    """Each job that runs pytest or unittest, those of files named after tests first."""
    paths = [path for path in project.paths if _PATH.fullmatch(path)]
    paths.sort(key=lambda path: ("test" not in path.lower(), path))
    for path in paths[:_MAX_WORKFLOWS]:
        document = project.yaml(path)
        for job, content in islice(table(document, "jobs").items(), _MAX_JOBS):
            read = CommandLines(project)
            _read_job(table({"job": content}, "job"), read)
            if read.runs_tests:
                name = f"workflow {path.rpartition('/')[2]} {job}"
                yield read.declared(name[:100], RANKS["workflow"])


def _read_job(job: dict[str, Any], read: CommandLines) -> None:
    steps = job.get("steps")
    for step in islice(steps if isinstance(steps, list) else [], _MAX_STEPS):
        step = table({"step": step}, "step")
        lines = step.get("run")
        # Elsewhere than in the root, or for another system: not what this recipe is for.
        if not isinstance(lines, str) or step.get("working-directory", ".") not in (".", "./"):
            continue
        if re.search(r"windows|macos", str(step.get("if", ""))[:1000], re.I):
            continue
        read_before = read.runs_tests
        read.read_shell(_resolved(lines))
        if read.runs_tests and not read_before:
            read.variables(_texts(job.get("env")) | _texts(step.get("env")))


def _resolved(lines: str) -> str:
    """Expressions become a word that is no value, so that readers leave out what has it."""
    return re.sub(r"\$\{\{[^\n]*?\}\}", "${x}", lines)


def _texts(value: Any) -> dict[str, str]:
    return {
        name: str(one)
        for name, one in table({"all": value}, "all").items()
        if isinstance(name, str) and isinstance(one, str | int)
    }
