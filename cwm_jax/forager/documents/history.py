"""What a git repository's history holds: commits, their changes, files before them.

Only objects are read. Nothing is fetched, and no program that the repository's own settings name
(external diffs, conversions to text, hooks) is run.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

_FIELDS = "%H%x00%P%x00%an%x00%ae%x00%B%x00"
_DIFF = ("diff-tree", "-r", "--no-renames", "--full-index", "--no-ext-diff", "--no-textconv")
_TIMEOUT_S = 600.0  # assumed: of one command on a large repository


@dataclasses.dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit of a history; ``author`` is name and address."""

    sha: str
    parents: tuple[str, ...]
    author: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """What a commit does to a file; ``lines`` added and removed, None of a binary file."""

    path: str
    lines: int | None


class History:
    """The history of HEAD.

    Args:
        repository: a checkout or a bare repository.

    Raises:
        ValueError: there is no git repository, or no commit in it.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        if not repository.is_dir():
            raise ValueError(f"{repository}: no such folder; expected a git repository: name one")

    def commits(self) -> list[Commit]:
        """The oldest first."""
        output = self._git("log", "--reverse", "--topo-order", f"--format={_FIELDS}", "HEAD")
        fields = output.decode("utf-8", "replace").split("\0")[:-1]
        return [
            Commit(
                sha=sha.lstrip("\n"),
                parents=tuple(parents.split()),
                author=f"{name} <{address}>",
                message=message.strip(),
            )
            for sha, parents, name, address, message in zip(
                *(fields[at::5] for at in range(5)), strict=True
            )
        ]

    def changes(self, commit: Commit) -> list[Change]:
        """Of a commit with a parent, against the first."""
        output = self._git(*_DIFF, "--numstat", "-z", commit.parents[0], commit.sha)
        found = []
        for entry in output.decode("utf-8", "surrogateescape").split("\0")[:-1]:
            added, removed, path = entry.split("\t", 2)
            lines = None if added == "-" else int(added) + int(removed)
            found.append(Change(path=path, lines=lines))
        return found

    def diff(self, commit: Commit, paths: Sequence[str] = ()) -> bytes:
        """Unified, against the first parent; of some paths alone if any are given."""
        asked = [f":(literal){path}" for path in paths]
        return self._git(*_DIFF, "-p", "--unified=3", commit.parents[0], commit.sha, "--", *asked)

    def files(self, sha: str) -> list[str]:
        """Paths of the regular files of a commit, sorted as git does."""
        output = self._git("ls-tree", "-r", "-z", sha).decode("utf-8", "surrogateescape")
        entries = [entry.split("\t", 1) for entry in output.split("\0")[:-1]]
        return [path for kind, path in entries if kind.startswith("100")]

    def contents(self, sha: str, paths: Sequence[str]) -> dict[str, bytes]:
        """Of those of the files that the commit has; a path with a line break is none."""
        asked = [path for path in paths if "\n" not in path]
        lines = "".join(f"{sha}:{path}\n" for path in asked)
        output = self._git("cat-file", "--batch", given=lines.encode("utf-8", "surrogateescape"))
        found, at = {}, 0
        for path in asked:
            end = output.index(b"\n", at)
            header, at = output[at:end], end + 1
            if header.endswith(b" missing"):
                continue
            kind, size = header.split(b" ")[-2:]
            if kind == b"blob":
                found[path] = output[at : at + int(size)]
            at += int(size) + 1
        return found

    def origin(self) -> str | None:
        """The URL that it was cloned from."""
        try:
            return self._git("config", "--get", "remote.origin.url").decode().strip()
        except ValueError:
            return None

    def _git(self, *arguments: str, given: bytes = b"") -> bytes:
        settings = ("safe.directory=*", "protocol.allow=never", "core.fsmonitor=false")
        line = ["git", *(part for value in settings for part in ("-c", value)), *arguments]
        variables = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        variables |= {
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }
        done = subprocess.run(
            line,
            input=given,
            capture_output=True,
            cwd=self._repository,
            env=variables,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise ValueError(
                f"{self._repository}: git {arguments[0]} fails ({said}); expected a git "
                "repository with a commit: name another, or mend it"
            )
        return done.stdout
