"""Command lines of shells, tox and nox: what pip is to install, and how pytest is called."""

from __future__ import annotations

import itertools
import posixpath
import re
import shlex
from collections.abc import Iterable, Sequence

from packaging.utils import canonicalize_name

from cwm_jax.forager.images.declared.groups import default_groups, groups
from cwm_jax.forager.images.declared.needs import (
    MAX_REQUIREMENTS,
    Declared,
    index_requirements,
    kept_environment,
    names_of,
    parsed_requirement,
)
from cwm_jax.forager.images.declared.project import Project

_MAX_LINE = 4000  # characters, assumed
_ENDS = re.compile(r"[;&|()]+")
_PIP = re.compile(r"pip(3(\.\d+)?)?")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
# Of pip, those whose value is the next word; requirement and constraint files are read apart.
# fmt: off
_PIP_VALUES = frozenset((
    "-i", "--index-url", "--extra-index-url", "-f", "--find-links", "-t", "--target",
    "--prefix", "--root", "--python", "-p", "--timeout", "--retries", "--cache-dir",
    "--progress-bar", "--only-binary", "--no-binary", "--platform", "--config-settings", "-C",
    "--log", "--proxy", "--trusted-host", "--upgrade-strategy", "--resolution", "--src",
))
# fmt: on
# Before the word pytest they make it a name rather than a command.
# fmt: off
_NAMES_FOLLOW = frozenset((
    "--with", "-w", "--group", "-G", "--extra", "-E", "--only", "--package", "--cov",
    "--source",
))
# fmt: on
# fmt: off
_OTHER_COMMANDS = frozenset((
    "echo", "printf", "which", "conda", "mamba", "apt", "apt-get", "sudo", "git", "cat", "ls",
    "find", "sed", "grep", "docker", "brew",
))
# fmt: on
# fmt: off
_NO_RUNS = frozenset((
    "install", "add", "show", "remove", "uninstall", "--version", "--help", "freeze", "list",
))
# fmt: on


class CommandLines:
    """Collects what commands of one environment install and run.

    Attributes:
        words: after the first ``pytest`` that is run; None if there is none, or unittest instead.
        runs_tests: by pytest or unittest.
    """

    def __init__(self, project: Project, folder: str = "") -> None:
        self._project, self._folder = project, folder
        self._requirements: list[str] = []
        self._extras: dict[str, None] = {}
        self._files: dict[str, None] = {}
        self._constraints: dict[str, None] = {}
        self._environment: dict[str, str] = {}
        self.words: tuple[str, ...] | None = None
        self.runs_tests = False

    def read_shell(self, text: str) -> None:
        """Reads lines of a shell."""
        for words in simple_commands(text):
            self.read(words)

    def read(self, words: Sequence[str]) -> None:
        """Reads one command."""
        words = [word for word in words if word]
        assigned = []
        while words and (match := _ASSIGNMENT.fullmatch(words[0])):
            assigned.append((match[1], match[2]))
            words = words[1:]
        if not words or words[0] in _OTHER_COMMANDS:
            return
        if words[0] == "cd" and len(words) > 1:
            self._folder = posixpath.normpath(posixpath.join(self._folder, words[1]))
        elif (start := _after_pip_install(words)) is not None:
            self.install(words[start:])
        else:
            self._read_manager(words)
            self._read_run(words, assigned)

    def install(self, words: Sequence[str]) -> None:
        """Reads what follows ``pip install``.

        A command with variables of a shell is left out as a whole: what they are is not known.
        """
        if any("$" in word or "`" in word or "{" in word for word in words):
            return
        left = iter(words)
        for word in left:
            option, _, value = word.partition("=") if word.startswith("--") else (word, "", "")
            if option in ("-r", "--requirement"):
                self._file(self._files, value or next(left, ""))
            elif option in ("-c", "--constraint"):
                self._file(self._constraints, value or next(left, ""))
            elif option in ("-e", "--editable"):
                self._project_or_requirement(value or next(left, ""))
            elif option in ("-g", "--group"):
                self.group(value or next(left, ""))
            elif re.match(r"-[rc][^-]", word):
                self._file(self._files if word[1] == "r" else self._constraints, word[2:].strip())
            elif option in _PIP_VALUES:
                next(left, "") if not value else None
            elif not word.startswith("-"):
                self._project_or_requirement(word)

    def line(self, text: str) -> None:
        """Reads a line of requirements, as of ``deps`` in tox.ini."""
        text = re.split(r"\s#", text)[0].strip()
        if text.startswith("-"):
            option, _, value = text.partition(" ")
            self.install([option, value.strip()] if value else [option])
        elif text:
            self._project_or_requirement(text)

    def extra(self, name: str) -> None:
        """Takes an extra of the project."""
        if re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", name):
            self._extras[name] = None

    def group(self, name: str) -> None:
        """Takes a group of pyproject.toml."""
        self._requirements += groups(self._project).get(canonicalize_name(name), ())

    def variables(self, found: dict[str, str]) -> None:
        """Takes variables of the command's environment."""
        self._environment |= found

    def installs_pytest(self) -> bool:
        """Whether its own requirements name pytest."""
        return "pytest" in names_of(self._requirements)

    def declared(self, name: str, rank: int) -> Declared:
        """All that was read."""
        return Declared(
            name=name,
            rank=rank,
            requirements=index_requirements(self._requirements),
            extras=tuple(self._extras),
            files=tuple(self._files),
            constraints=tuple(self._constraints),
            words=self.words,
            folder=self._folder,
            environment=kept_environment(self._environment),
        )

    def _read_manager(self, words: Sequence[str]) -> None:
        """Groups and extras that uv, poetry, pdm and hatch are told to install."""
        manager = posixpath.basename(words[0])
        if manager not in ("uv", "uvx", "poetry", "pdm", "hatch") or len(words) < 2:
            return
        if manager == "uv" and words[1] in ("sync", "run"):
            for name in default_groups(self._project):
                self.group(name)
        for option, value in itertools.pairwise(words[1:]):
            if option in ("--group", "-G", "--only") or (option, manager) == ("--with", "poetry"):
                for name in value.split(","):
                    self.group(name)
            elif option in ("--extra", "--extras", "-E"):
                for name in value.replace(",", " ").split():
                    self.extra(name)
            elif option in ("--with", "-w") and manager in ("uv", "uvx"):
                self._project_or_requirement(value)

    def _read_run(self, words: Sequence[str], assigned: Iterable[tuple[str, str]]) -> None:
        if self.runs_tests or _NO_RUNS & set(words):
            return
        for index, word in enumerate(words):
            before = words[index - 1] if index else ""
            if posixpath.basename(word) in ("pytest", "py.test") and before not in _NAMES_FOLLOW:
                self.words = tuple(words[index + 1 :])
            elif not (word == "unittest" and before.startswith("-")):
                continue
            self.runs_tests = True
            self._environment |= dict(assigned)
            return

    def _file(self, into: dict[str, None], path: str) -> None:
        """Relative to the folder or the root; one that is not there is left out."""
        for start in (self._folder, ""):
            whole = posixpath.normpath(posixpath.join(start, path))
            if whole in self._project:
                into[whole] = None
                return

    def _project_or_requirement(self, text: str) -> None:
        local = re.fullmatch(r"(\.{0,2}[\w./*-]*?)(?:\[([^\]]*)\])?", text)
        whole = posixpath.normpath(posixpath.join(self._folder, local[1])) if local else ""
        built = bool(local) and local[1].startswith("dist/")  # wheels of the project
        here = bool(local) and local[1].startswith(".") and whole == "."
        found = parsed_requirement(text)
        if here or built:
            for name in (local[2] or "").split(",") if local else ():
                self.extra(name.strip())
        elif found and found.url and found.url.lstrip("./") == "":  # "name[extra] @ ."
            for name in sorted(found.extras):
                self.extra(name)
        elif len(self._requirements) < 5 * MAX_REQUIREMENTS:
            self._requirements.append(text)


def simple_commands(text: str) -> list[list[str]]:
    """Words of each command of shell lines; what a line is joined from, and redirections, go."""
    found: list[list[str]] = []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        lexer = shlex.shlex(line[:_MAX_LINE], posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        current: list[str] = []
        redirected = False
        try:
            for word in lexer:
                if word.startswith("#"):
                    break
                if _ENDS.fullmatch(word):
                    found.append(current)
                    current = []
                elif re.fullmatch(r"[<>&]+\d?", word):
                    redirected = True
                    if current and current[-1] in ("0", "1", "2"):  # of 2>&1
                        current.pop()
                    continue
                elif not redirected and word not in ("then", "do", "else", "!", "-", "if"):
                    current.append(word)
                redirected = False
        except ValueError:  # a quotation without an end, as of documents within the script
            continue
        found.append(current)
    return [words for words in found if words]


def _after_pip_install(words: Sequence[str]) -> int | None:
    """Where the words that follow ``pip install`` begin."""
    for index, word in enumerate(words):
        if _PIP.fullmatch(posixpath.basename(word)):
            for offset, later in enumerate(words[index + 1 : index + 4]):
                if later == "install":
                    return index + offset + 2
    return None
