"""One recipe at one commit: installed in a sandbox that reaches the index alone, tested without.

What the installation leaves comes out as a tape archive and is the root of the image; the tests run
on copies of it, twice, in sandboxes without a network.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

from cwm_jax.forager.images.bare import GitError, history_up_to
from cwm_jax.forager.images.index_access import Access
from cwm_jax.forager.images.outcomes import Outcome, flaky, outcomes, share_passing
from cwm_jax.forager.images.recipe import Recipe
from cwm_jax.forager.images.tree import TreeError, unpack
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.swe.suite import Suite, SuiteFailed, suite_run
from cwm_jax.rl.envs.swe.workspaces.local import LocalWorkspace
from cwm_jax.sandbox import SandboxError, Shell, ShellLimits, ShellReply

_MIB = 1 << 20
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "tar: Wrote only")
_DETAIL_CHARACTERS = 2_000  # assumed; the end of what was printed
_ARCHIVE = "/tmp/image.tar"
_BEGIN = """git clone --quiet {repository} /tmp/testbed && cd /tmp/testbed &&
git remote remove origin && python -m venv {options} /tmp/venv"""
_ACTIVE = "cd /tmp/testbed && . /tmp/venv/bin/activate && export PIP_NO_COMPILE=1"
# What the repository has comes from the repository. Bytecode that is checked by its source's hash
# stays true when files are copied, and is the same on every machine.
_FINISH = """cd /tmp/testbed && git ls-files -z | xargs -0 rm -f && rm -rf .git &&
find . -name __pycache__ -prune -exec rm -rf {{}} + &&
find . -mindepth 1 -type d -empty -delete &&
find /tmp/venv -name __pycache__ -prune -exec rm -rf {{}} + &&
(python -m compileall -q --invalidation-mode checked-hash -x /site-packages/pip/ /tmp/venv \
    > /dev/null || :) &&
cd /tmp && tar --create --file {archive} --sort=name --mtime=@0 --owner=0 --group=0 \\
    --numeric-owner --format=posix --pax-option=delete=atime,delete=ctime venv testbed"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildLimits:
    """What an installation and a run of the tests may take; all assumed.

    Attributes:
        install_s: of each command.
        test_s: of each run of the tests.
        image_bytes: of what an installation leaves.
        least_share: of the tests that are not skipped, that have to pass both times.
        install: of the sandbox of installations.
        test: of the sandbox of tests.
    """

    install_s: float = 600.0
    test_s: float = 300.0
    image_bytes: int = 512 * _MIB
    least_share: float = 0.9
    install: ShellLimits = dataclasses.field(
        default_factory=lambda: ShellLimits(
            memory_bytes=8192 * _MIB, scratch_bytes=2048 * _MIB, output_bytes=4 * _MIB
        )
    )
    test: ShellLimits = dataclasses.field(
        default_factory=lambda: ShellLimits(
            memory_bytes=4096 * _MIB, scratch_bytes=1024 * _MIB, output_bytes=8 * _MIB
        )
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """What came of one recipe.

    Attributes:
        failure: empty if the image can be kept; else ``install``, ``timeout``, ``disk``,
            ``sandbox``, ``no-tests`` or ``tests-fail``.
        detail: why, in words; the end of what was printed.
        build_s: of the installation.
        tests_s: of both runs of the tests.
        tests: each test's outcome, the worse of both runs.
        flaky: tests whose runs differ.
    """

    recipe: Recipe
    commit: str
    failure: str = ""
    detail: str = ""
    build_s: float = 0.0
    tests_s: float = 0.0
    tests: Mapping[str, Outcome] = dataclasses.field(default_factory=dict)
    flaky: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the tests that are not skipped, those that pass both times."""
        return share_passing(self.tests)


class _Failed(Exception):  # noqa: N818
    """What ends an attempt: its class, and the words."""

    def __init__(self, failure: str, detail: str) -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure, self.detail = failure, detail.strip()[-_DETAIL_CHARACTERS:]


def attempt(
    repository: Path,
    commit: str,
    recipe: Recipe,
    *,
    draft: Path,
    access: Access,
    limits: BuildLimits,
) -> Attempt:
    """Installs and tests; where it works, ``draft`` is ready to be kept.

    Args:
        repository: with the commit.
        commit: full hash.
        recipe: what to run.
        draft: an empty folder.
        access: of the index.
        limits: of all of it.
    """
    found = Attempt(recipe=recipe, commit=commit)
    began = time.monotonic()
    try:
        try:
            bare = draft / "repository.git"
            history_up_to(repository, commit, bare)
            _install(bare, recipe, draft, access, limits)
        finally:
            took = time.monotonic() - began
            found = dataclasses.replace(found, build_s=took)
        found = _tested(found, bare, draft / "root", limits)
    except _Failed as end:
        found = dataclasses.replace(found, failure=end.failure, detail=end.detail)
    except (SandboxError, EnvironmentFailure, GitError, TreeError) as error:
        found = dataclasses.replace(found, failure="sandbox", detail=str(error))
    return found


def suite_of(recipe: Recipe) -> Suite:
    """The recipe's tests, none of which is required."""
    return Suite(
        command=recipe.command,
        format=recipe.format,
        files={},
        fail_to_pass=[],
        pass_to_pass=[],
        canary=recipe.canary,
    )


def _install(bare: Path, recipe: Recipe, draft: Path, access: Access, limits: BuildLimits) -> None:
    readable = [bare, *access.readable, *_compiler_paths()]
    with Shell(readable=readable, start=access.start, limits=limits.install) as shell:
        # pip takes seconds, and is nothing to tests.
        options = "" if any("pip" in command for command in recipe.install) else "--without-pip"
        begin = _BEGIN.format(repository=shlex.quote(str(bare)), options=options)
        _checked(shell.run(begin, timeout_s=limits.install_s))
        for command in recipe.install:
            _checked(shell.run(f"{_ACTIVE} && {command}", timeout_s=limits.install_s))
        finish = _FINISH.format(archive=_ARCHIVE)
        _checked(shell.run(finish, timeout_s=limits.install_s))
        try:
            archive = shell.read(_ARCHIVE, max_bytes=limits.image_bytes)
        except OSError as error:
            raise _Failed("disk", f"the image cannot be read: {error}") from error
    taken = draft / "image.tar"
    taken.write_bytes(archive)
    unpack(taken, draft / "root")
    taken.unlink()


def _compiler_paths() -> list[Path]:
    """What building extensions needs besides a shell's programs, where Debian has it."""
    paths = ("/usr/include", "/usr/lib/gcc", "/usr/libexec/gcc", sysconfig.get_path("include"))
    return [Path(path) for path in paths if os.path.isdir(path)]


def _checked(reply: ShellReply) -> None:
    if reply.outcome == "ok" and reply.exit_code == 0:
        return
    said = f"{reply.output}\n{reply.detail}"
    if any(word in said for word in _DISK_FULL):
        raise _Failed("disk", said)
    raise _Failed("timeout" if reply.outcome == "timeout" else "install", said)


def _tested(found: Attempt, bare: Path, root: Path, limits: BuildLimits) -> Attempt:
    began = time.monotonic()
    first, second = (_run(found.recipe, bare, root, limits) for _ in range(2))
    unsure = flaky(first, second)
    tests = {name: _worse(first.get(name), second.get(name)) for name in sorted({*first, *second})}
    took = time.monotonic() - began
    found = dataclasses.replace(found, tests=tests, flaky=unsure, tests_s=took)
    if found.share >= limits.least_share:
        return found
    detail = f"{found.share:.3f} of the tests pass both times; expected {limits.least_share}"
    failure = "tests-fail" if {"passed", "failed"} & {*tests.values()} else "no-tests"
    return dataclasses.replace(found, failure=failure, detail=detail)


def _run(recipe: Recipe, bare: Path, root: Path, limits: BuildLimits) -> dict[str, Outcome]:
    workspace = LocalWorkspace(bare, base=root, limits=limits.test)
    try:
        run = suite_run(workspace, suite_of(recipe), timeout_s=limits.test_s)
    except SuiteFailed as error:
        failure = "no-tests" if error.ended else "timeout"
        raise _Failed(failure, f"{error.output[-_DETAIL_CHARACTERS:]}\n{error}") from error
    finally:
        workspace.close()
    return outcomes(run, recipe.format)


def _worse(one: Outcome | None, other: Outcome | None) -> Outcome:
    """A test that is missing from a run is no better than one that fails."""
    if None in (one, other) or "failed" in (one, other):
        return "failed"
    return "skipped" if "skipped" in (one, other) else "passed"
