"""An image as tasks are made of it: its files, its tests, and what a change does to them."""

from __future__ import annotations

import dataclasses
import functools
import posixpath
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwm_jax.forager.images.builds import BuildLimits, suite_of
from cwm_jax.forager.images.store import Image, read_image
from cwm_jax.forager.tasks.statement import Failure, read_failure
from cwm_jax.rl.envs.swe.suite import Suite, suite_results
from cwm_jax.rl.envs.swe.workspaces.checkout import bare_repository, files_of, image_root
from cwm_jax.rl.envs.swe.workspaces.local import LocalWorkspace
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace

_LIMITS = BuildLimits().test  # as of an image's own tests
_ONE_TEST = {
    "pytest": "python -m pytest -p no:cacheprovider -o addopts= --tb=short {name}",
    "unittest": "python -m unittest {name}",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested:
    """An image, and the tests of it that pass each time.

    Attributes:
        image: of which.
        passing: names of the tests, sorted.
        timeout_s: of a run of them.
    """

    image: Image
    passing: tuple[str, ...]
    timeout_s: float

    @property
    def repository(self) -> dict[str, Any]:
        """As a task's data have it, unchanged."""
        return {"built": str(self.image.path), "commit": self.image.manifest.commit}

    @property
    def suite(self) -> Suite:
        """All tests; none is required."""
        return suite_of(self.image.manifest.recipe)

    def files(self) -> Mapping[str, bytes]:
        """Of the commit, by path."""
        return files_of(self.repository)

    def workspace(self, commit: str | None = None) -> Workspace:
        """A new one; of another commit where one is given."""
        repository = self.repository if commit is None else {**self.repository, "commit": commit}
        root = image_root(repository)
        return LocalWorkspace(bare_repository(repository), base=root, limits=_LIMITS)

    def failing(self, workspace: Workspace) -> list[str]:
        """Tests that pass in the image and do not with what the workspace has.

        Raises:
            SuiteFailed: as of `suite_results`.
        """
        found = suite_results(workspace, self.suite, timeout_s=self.timeout_s)
        return [name for name in self.passing if not found.get(name)]


@functools.cache
def tested(path: Path, timeout_s: float) -> Tested:
    """Of an image's folder; read once by each process."""
    image = read_image(path)
    outcomes, unsure = image.manifest.tests, {*image.manifest.flaky}
    passing = [name for name, outcome in outcomes.items() if outcome == "passed"]
    return Tested(
        image=image,
        passing=tuple(sorted(name for name in passing if name not in unsure)),
        timeout_s=timeout_s,
    )


def failure_of(test: str, workspace: Workspace, style: str, *, timeout_s: float) -> Failure | None:
    """What a run of one test shows; None if that is no error."""
    command = _ONE_TEST[style].format(name=shlex.quote(test))
    reply = workspace.run(f"cd {shlex.quote(workspace.root)} && {command}", timeout_s)
    return read_failure(test, reply.output) if reply.outcome == "ok" else None


def write_files(workspace: Workspace, files: Mapping[str, str]) -> None:
    """Writes texts below the workspace's root."""
    for path, text in files.items():
        workspace.write(posixpath.join(workspace.root, path), text.encode())


def tests_data(
    suite: Suite, fail_to_pass: list[str], pass_to_pass: list[str], files: Mapping[str, str]
) -> dict[str, Any]:
    """As a task's data have them."""
    return {
        "command": suite.command,
        "format": suite.format,
        "files": dict(files),
        "fail_to_pass": fail_to_pass,
        "pass_to_pass": pass_to_pass,
        "canary": suite.canary,
    }
