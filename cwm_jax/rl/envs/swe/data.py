"""What a task of software engineering says: an issue, a repository, a gold patch, hidden tests.

``repository``, where the agent works, is one of

* ``{"files": {path: text}}``: one commit is made of them;
* ``{"git": path, "commit": 40 hexadecimal digits}``: of this machine;
* ``{"built": path, "commit": 40 hexadecimal digits}``: of an image that ``forage images`` has made,
  with its environment; with ``change``, a patch, the commit is changed by it and has no past;
* ``{"image": reference, "root": path}``: a container.

``tests`` are ``{"calls": [{"module", "call", "expected" or "raises"}]}`` (see `calls`; not in a
container, whose files the host does not have), or a suite (see `suite.Suite`).
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.fields import each, fields, identifier, listed, short, task_of, text
from cwm_jax.rl.envs.swe.called import MAX_REPR
from cwm_jax.rl.envs.swe.calls import Call
from cwm_jax.rl.envs.swe.patches import FilePatch, parse_patch
from cwm_jax.rl.envs.swe.suite import FORMATS, Suite

_REPOSITORIES = {
    "files": ("files",),
    "git": ("git", "commit"),
    "built": ("built", "commit"),
    "image": ("image", "root"),
}
_FORMS = "files, git or built with commit, or image with root"
_OPTIONAL = {"built": ("change",)}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUITE = ("command", "format", "files", "fail_to_pass", "pass_to_pass", "canary")
# Most values are one of these; nothing else has to be parsed.
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?|'[^'\\\n]*'|None|True|False")
_BARE_WORDS = {"nan", "inf", "Ellipsis", "NotImplemented"}  # that are a repr


@dataclasses.dataclass(frozen=True, kw_only=True)
class SWEData:
    """What a task says; ``repository`` is of a known form."""

    issue: str
    repository: Mapping[str, Any]
    gold: list[FilePatch]
    tests: tuple[Call, ...] | Suite


def read_data(task: Task) -> SWEData:
    """What a task's data say.

    Raises:
        ValueError: a key is missing or unknown, a type is another, the patch is none, a call or
            its result is no Python, the repository or the tests have no known form.
    """
    return task_of("swe", task, _read)


def _read(data: Mapping[str, Any]) -> SWEData:
    fields(data, "data", ("issue", "repository", "patch", "tests"), ("fault",))
    repository = _repository(data["repository"])
    tests = _tests(data["tests"])
    if "image" in repository and not isinstance(tests, Suite):
        raise ValueError(
            "tests are calls and the repository is an image, whose files the host does not have; "
            "expected a suite's command, or a repository of files or git"
        )
    return SWEData(
        issue=text(data["issue"], "issue"),
        repository=repository,
        gold=_patch(data["patch"], "patch"),
        tests=tests,
    )


def _repository(value: Any) -> Mapping[str, Any]:
    forms = [form for form in _REPOSITORIES if isinstance(value, Mapping) and form in value]
    if len(forms) != 1:
        found = f"has {sorted(value)}" if isinstance(value, Mapping) else f"is {short(value)}"
        raise ValueError(f"repository {found}; expected {_FORMS}")
    fields(value, "repository", _REPOSITORIES[forms[0]], _OPTIONAL.get(forms[0], ()))
    if forms == ["files"]:
        _files(value["files"], "repository.files")
        if not value["files"]:
            raise ValueError("repository.files is empty; expected at least one file")
    elif "commit" in value:
        text(value[forms[0]], f"repository.{forms[0]}")
        if not _COMMIT.fullmatch(text(value["commit"], "repository.commit")):
            raise ValueError(
                f"repository.commit is {short(value['commit'])}; expected all 40 hexadecimal "
                "digits, as `git rev-parse` gives them: names move, and short hashes are not found"
            )
        if "change" in value:
            _patch(value["change"], "repository.change")
    else:
        text(value["image"], "repository.image")
        if not text(value["root"], "repository.root").startswith("/"):
            raise ValueError(
                f"repository.root is {short(value['root'])}; expected the checkout's absolute path "
                "in the image"
            )
    return value


def _patch(value: Any, what: str) -> list[FilePatch]:
    try:
        found = parse_patch(text(value, what))
    except ValueError as error:
        raise ValueError(f"{what} cannot be read: {error}") from None
    if not found:
        raise ValueError(
            f"{what} is {short(value)}, which changes no file; expected what `git diff` writes"
        )
    return found


def _tests(value: Any) -> tuple[Call, ...] | Suite:
    if isinstance(value, Mapping) and "calls" in value:
        fields(value, "tests", ("calls",))
        return tuple(each(value["calls"], "tests.calls", _call))
    if not isinstance(value, Mapping) or not ({*_SUITE} & {*value}):
        raise ValueError(f"tests are {short(value)}; expected calls, or {listed(_SUITE)}")
    return _suite(fields(value, "tests", _SUITE))


def _call(value: Any) -> Call:
    fields(value, "it", ("module", "call"), ("expected", "raises"))
    for name in text(value["module"], "module").split("."):
        identifier(name, "a part of module")
    expression = text(value["call"], "call")
    if _parsed(expression) is None:
        raise ValueError(f"call is {short(expression)}; expected an expression of Python")
    if value.get("expected") is not None:
        _check_repr(value["expected"])
    if value.get("raises") is not None:
        identifier(value["raises"], "raises")
    return Call(**value)


def _check_repr(value: Any) -> None:
    """A repr that is no expression cannot be told from a text without its quotes."""
    wanted = "expected the repr of the value, as a text"
    if not isinstance(value, str):
        raise ValueError(f"expected is {short(value)}; {wanted}: {short(repr(value))}")
    if len(value) >= MAX_REPR:
        raise ValueError(
            f"expected has {len(value)} characters; expected fewer than {MAX_REPR}, which is all "
            "that is compared: call something smaller"
        )
    if _PLAIN.fullmatch(value):
        return
    parsed = _parsed(value)
    if parsed is None or (isinstance(parsed, ast.Name) and parsed.id not in _BARE_WORDS):
        raise ValueError(
            f"expected is {short(value)}; {wanted}, which is an expression of Python: "
            f"{short(repr(value))} if the value is this text; else call something whose value is "
            "a literal"
        )


def _parsed(expression: str) -> ast.expr | None:
    try:
        return ast.parse(expression.lstrip(" \t"), mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _suite(value: Mapping[str, Any]) -> Suite:
    style = value["format"]
    if not isinstance(style, str) or style not in FORMATS:
        raise ValueError(
            f"tests.format is {short(style)}; expected {' or '.join(map(repr, FORMATS))}"
        )
    _files(value["files"], "tests.files")
    canary = text(value["canary"], "tests.canary")
    if canary != ".":
        _check_path(canary, "tests.canary")
    return Suite(
        command=text(value["command"], "tests.command"),
        format=style,
        files=value["files"],
        fail_to_pass=_names(value["fail_to_pass"], "tests.fail_to_pass", style),
        pass_to_pass=_names(value["pass_to_pass"], "tests.pass_to_pass", style, may_be_empty=True),
        canary=canary,
    )


def _names(value: Any, what: str, style: str, *, may_be_empty: bool = False) -> list[str]:
    form = FORMATS[style]

    def read(name: Any) -> str:
        if not form.name.fullmatch(text(name, "it")):
            raise ValueError(
                f"it is {short(name)}; expected a name as {style} reports it: {form.example}"
            )
        return name

    return each(value, what, read, may_be_empty=may_be_empty)


def _files(value: Any, what: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {short(value)}; expected an object of texts by path")
    folders: set[str] = set()
    for path, content in value.items():
        _check_path(path, f"a path of {what}")
        text(content, f"a file of {what}", may_be_empty=True)
        while "/" in path:
            path = path.rpartition("/")[0]
            folders.add(path)
    if both := folders & value.keys():
        raise ValueError(f"{what} has {min(both)!r} as a file and as a folder; expected one")


def _check_path(path: str, what: str) -> None:
    """Nothing outside of the repository, and nothing that ``git fast-import`` reads otherwise."""
    parts = text(path, what).split("/")
    if "" in parts or {".", "..", ".git"} & {*parts} or '"' in path or not path.isprintable():
        raise ValueError(
            f"{what} is {short(path)}; expected one inside of the repository, as 'folder/name.py'"
        )
