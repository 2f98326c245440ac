"""Changes of repositories as documents: what is wanted, files before, the change.

The form is that of SWE-RL: the issue (or the commit's message), the files that the change touches
with some that it does not, and the patch. Source: Wei et al., SWE-RL (arXiv 2502.18449); CWM's
report, of the data of mid-training. One document of each commit of HEAD's history that passes.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from cwm_jax.config.schema import check_positive, check_types
from cwm_jax.forager.decontamination import Exclusions
from cwm_jax.forager.documents.collection import Document, Dropped
from cwm_jax.forager.documents.history import Change, Commit, History
from cwm_jax.forager.documents.rows import read_rows

_BOT = re.compile(
    r"\[bot\]|\b(dependabot|renovate|greenkeeper|pyup|snyk|pre-commit-ci|github-actions)\b", re.I
)
_GENERATED_PATH = re.compile(
    r"(^|/)(node_modules|vendor|third_party|dist|build|__pycache__)/"
    r"|(^|/)(package-lock\.json|[^/]*\.lock|go\.sum|_version\.py)$"
    r"|\.min\.(js|css)$|_pb2(_grpc)?\.pyi?$|\.(svg|ipynb|map|snap|po|pot)$"
)
_GENERATED_TEXT = re.compile(r"@generated|do not edit|auto-?generated|generated (by|from)\b", re.I)
_HEAD_CHARS = 500  # assumed: where a generated file says so
_CODE = re.compile(
    r"\.(py|pyx|pyi|c|h|cc|cpp|hpp|cu|rs|go|java|js|jsx|ts|tsx|rb|php|swift|kt|scala|cs|sh|lua|jl"
    r"|r|hs|ml|lean|sql)$",
    re.I,
)
_NUMBER = re.compile(r"(?<![\w&])#(\d+)\b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PullRequestOptions:
    """Which changes become documents; all limits are assumed.

    Attributes:
        max_files: that a change touches.
        max_lines: that it adds and removes.
        max_file_chars: of each file before the change.
        min_message_chars: of the message, with the issue's title and text.
        unchanged_files: beside the changed ones, drawn from the same folders.
        seed: of that draw.
        exclusions: repositories that are left out.
    """

    max_files: int = 10
    max_lines: int = 500
    max_file_chars: int = 50_000
    min_message_chars: int = 15
    unchanged_files: int = 1
    seed: int = 0
    exclusions: Exclusions = dataclasses.field(default_factory=Exclusions)

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "max_files", "max_lines", "max_file_chars")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Issue:
    """An issue of an export."""

    number: int
    title: str
    body: str


def read_issues(path: Path) -> dict[int, Issue]:
    """By number, from JSONL with ``number``, ``title`` and ``body`` (text or null) in each line.

    Raises:
        ValueError: a line that is no such object.
    """
    found = {}
    for row in read_rows(path):
        body = row.text("body", null="") if "body" in row.values else ""
        issue = Issue(number=row.whole("number"), title=row.text("title"), body=body)
        found[issue.number] = issue
    return found


def issue_of(message: str, issues: Mapping[int, Issue]) -> Issue | None:
    """The first of the issues that a message names, as ``#12``."""
    numbers = map(int, _NUMBER.findall(message))
    return next((issues[number] for number in numbers if number in issues), None)


def pull_requests(
    repository: Path,
    options: PullRequestOptions,
    *,
    name: str | None = None,
    issues: Mapping[int, Issue] | None = None,
) -> Iterator[Document | Dropped]:
    """A document of each commit, the oldest first, or why it is none.

    Args:
        repository: a git checkout or bare repository on this machine.
        options: the filters.
        name: ``OWNER/NAME``; by default of the URL it was cloned from, or its folder's.
        issues: by number; the first one that a message names gives the document's first part.

    Raises:
        ValueError: no git repository with a commit.
    """
    history = History(repository)
    commits = history.commits()
    origin = history.origin()
    name = name or (_owner_and_name(origin) if origin else repository.resolve().name)
    if any(options.exclusions.find(known) for known in (name, origin or name)):
        for _ in commits:
            yield Dropped("excluded repository")
        return
    maker = _Maker(history, options, name, issues or {})
    for commit in commits:
        yield maker.document(commit)


def _owner_and_name(url: str) -> str:
    parts = [part for part in re.split(r"[/:]", url.removesuffix("/").removesuffix(".git")) if part]
    return "/".join(parts[-2:])


class _Maker:
    """Makes the documents of one repository."""

    def __init__(
        self,
        history: History,
        options: PullRequestOptions,
        name: str,
        issues: Mapping[int, Issue],
    ) -> None:
        self._history, self._options = history, options
        self._name, self._issues = name, issues

    def document(self, commit: Commit) -> Document | Dropped:
        issue = issue_of(commit.message, self._issues)
        changes: Sequence[Change] = ()
        reason = self._reason_of_commit(commit, issue)
        if reason is None:
            changes = self._history.changes(commit)
            reason = self._reason_of_changes(changes)
        if reason is not None:
            return Dropped(reason)
        try:
            files = self._files(commit, changes)
            diff = self._history.diff(commit).decode()
        except UnicodeDecodeError:
            return Dropped("not UTF-8")
        changed = [files[change.path] for change in changes if change.path in files]
        if any(_GENERATED_TEXT.search(text[:_HEAD_CHARS]) for text in changed):
            return Dropped("generated file")
        if any(len(text) > self._options.max_file_chars for text in files.values()):
            return Dropped("too long a file")
        return self._made(commit, issue, files, diff)

    def _made(
        self, commit: Commit, issue: Issue | None, files: Mapping[str, str], diff: str
    ) -> Document:
        parts = [f"Repository: {self._name}"]
        if issue is not None:
            parts.append(f"Issue #{issue.number}: {issue.title}\n\n{issue.body}".rstrip())
        parts.append(f"Pull request: {commit.message}")
        parts += [f"File before the change: {path}\n{text}" for path, text in files.items()]
        parts.append(f"Change:\n{diff}")
        origin = {"repository": self._name, "commit": commit.sha}
        if issue is not None:
            origin["issue"] = str(issue.number)
        return Document(f"{self._name}@{commit.sha}", "\n\n".join(parts), origin)

    def _reason_of_commit(self, commit: Commit, issue: Issue | None) -> str | None:
        said = commit.message + ("" if issue is None else issue.title + issue.body)
        if len(commit.parents) > 1:
            return "merge"
        if not commit.parents:
            return "first commit"
        if _BOT.search(commit.author):
            return "bot"
        return "short message" if len(said) < self._options.min_message_chars else None

    def _reason_of_changes(self, changes: Sequence[Change]) -> str | None:
        lines = [change.lines for change in changes]
        if None in lines:
            return "binary file"
        if any(_GENERATED_PATH.search(change.path) for change in changes):
            return "generated file"
        if not any(_CODE.search(change.path) for change in changes):
            return "no code"
        if len(changes) > self._options.max_files:
            return "too many files"
        many = sum(count or 0 for count in lines) > self._options.max_lines
        return "too many lines" if many else None

    def _files(self, commit: Commit, changes: Sequence[Change]) -> dict[str, str]:
        """Text before the change by path, sorted; raises UnicodeDecodeError."""
        parent = commit.parents[0]
        changed = [change.path for change in changes]
        before = self._history.contents(parent, changed)
        texts = {path: content.decode() for path, content in before.items()}
        if self._options.unchanged_files:
            for path, content in self._unchanged(commit, changed).items():
                try:
                    text = content.decode()
                except UnicodeDecodeError:
                    continue  # it is not part of the change
                if len(text) <= self._options.max_file_chars and "\0" not in text:
                    texts[path] = text
        return dict(sorted(texts.items()))

    def _unchanged(self, commit: Commit, changed: Sequence[str]) -> dict[str, bytes]:
        """Files of the changed ones' folders and suffixes."""
        kinds = {(p.parent, p.suffix) for p in map(PurePosixPath, changed) if _CODE.search(p.name)}
        beside = [
            path
            for path in self._history.files(commit.parents[0])
            if path not in changed
            and not _GENERATED_PATH.search(path)
            and (PurePosixPath(path).parent, PurePosixPath(path).suffix) in kinds
        ]
        draw = random.Random(f"{self._options.seed} {commit.sha}")
        count = min(self._options.unchanged_files, len(beside))
        return self._history.contents(commit.parents[0], draw.sample(beside, count))
