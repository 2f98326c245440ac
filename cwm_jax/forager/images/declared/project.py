"""The files of a checkout, parsed within bounds: whatever they hold, they parse or are left out."""

from __future__ import annotations

import ast
import configparser
import posixpath
import tomllib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import yaml

MAX_BYTES = 1 << 20  # assumed: no declaration and no test that matters is larger
MAX_YAML_BYTES = 1 << 16  # assumed; PyYAML takes two seconds for as much
MAX_TOML_BYTES = 1 << 18  # assumed
# What tomllib does for a key grows with the square of its parts (5000 of them: 4 s, measured).
MAX_TOML_DOTS = 10_000
MAX_TOML_DOTS_OF_LINE = 150
MAX_PYTHON_BYTES = 2 << 20  # assumed, of all files together: seconds
# Of a workflow, assumed: nested merges grow by the product of their aliases, here 1458 at most.
MAX_ALIASES = 20

_Parsed = TypeVar("_Parsed")


class Project:
    """Files by relative path, with parsers that never raise.

    Attributes:
        paths: of all files, sorted, with ``/``.
        folders: that hold a file at any depth, without the root.
        unreadable: why a file that was asked for could not be read, by its path.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self.paths = tuple(sorted(files))
        self.folders = frozenset(parent for path in self.paths for parent in parents(path))
        self.unreadable: dict[str, str] = {}
        self._known: dict[tuple[str, str], Any] = {}
        self._python_bytes_left = MAX_PYTHON_BYTES

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def text(self, path: str) -> str | None:
        """The file's text, broken characters replaced; None if there is none or it is too large."""
        return self._parsed(path, "text", lambda text: text, None)

    def toml(self, path: str) -> dict[str, Any]:
        """The file's tables; empty if it does not parse."""
        return self._parsed(path, "TOML", _read_toml, {}, most=MAX_TOML_BYTES)

    def ini(self, path: str) -> dict[str, dict[str, str]]:
        """The file's values by section and key; empty if it does not parse."""
        return self._parsed(path, "INI", read_ini, {})

    def yaml(self, path: str) -> Any:
        """The file's value; None if it does not parse."""
        return self._parsed(path, "YAML", _read_yaml, None, most=MAX_YAML_BYTES)

    def python(self, path: str) -> ast.Module:
        """The file's syntax tree; empty if it does not parse."""
        return self._parsed(path, "Python", self._read_python, ast.Module([], []))

    def once(self, name: str, make: Callable[[Project], _Parsed]) -> _Parsed:
        """What ``make`` gives of the project, made once under that name."""
        if ("", name) not in self._known:
            self._known["", name] = make(self)
        return self._known["", name]

    def _parsed(
        self,
        path: str,
        form: str,
        parse: Callable[[str], _Parsed],
        otherwise: _Parsed,
        *,
        most: int = MAX_BYTES,
    ) -> _Parsed:
        if path not in self._files:
            return otherwise
        if (path, form) not in self._known:
            content = self._files[path]
            value = otherwise
            if len(content) > most:
                self.unreadable[path] = f"{len(content)} bytes; at most {most} are read as {form}"
            else:
                try:
                    text = content.decode("utf-8-sig", errors="replace")
                    value = parse(text.replace("\r\n", "\n"))
                except Exception as error:  # hostile files make parsers raise nearly anything
                    told = " ".join(str(error).split())[:200]
                    self.unreadable[path] = f"no {form}: {type(error).__name__}: {told}"
            self._known[path, form] = value
        return self._known[path, form]

    def _read_python(self, text: str) -> ast.Module:
        self._python_bytes_left -= len(text)
        if self._python_bytes_left < 0:
            raise ValueError(f"more than {MAX_PYTHON_BYTES} characters of Python in all")
        with warnings.catch_warnings():  # of escapes that are none
            warnings.simplefilter("ignore")
            return ast.parse(text)


def parents(path: str) -> list[str]:
    """``a/b/c.py`` lies in ``a/b`` and ``a``."""
    found = []
    while path := posixpath.dirname(path):
        if found and path == found[-1]:
            break
        found.append(path)
    return found


def table(value: Any, *keys: str) -> dict[str, Any]:
    """The table below those keys; empty if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def strings(value: Any) -> list[str]:
    """The strings of a list, or of the one that stands for a list; nothing else."""
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def read_ini(text: str) -> dict[str, dict[str, str]]:
    """Values by section and key; of keys and sections that are there twice the last counts.

    Raises:
        configparser.Error: no sections.
    """
    parser = configparser.ConfigParser(
        interpolation=None, strict=False, allow_no_value=True, default_section="\0none"
    )
    parser.optionxform = str  # type: ignore[assignment]  # environment variables keep their case
    parser.read_string(text)
    return {
        name: {key: value or "" for key, value in section.items()}
        for name, section in parser.items()
    }


class _Loader(yaml.SafeLoader):
    """Aliases are limited: merges of merges would grow without a bound."""

    num_aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.num_aliases += 1
            if self.num_aliases > MAX_ALIASES:
                raise ValueError(f"more than {MAX_ALIASES} aliases")
        return super().compose_node(parent, index)


def _read_toml(text: str) -> dict[str, Any]:
    in_a_line = max((line.count(".") for line in text.splitlines()), default=0)
    if text.count(".") > MAX_TOML_DOTS or in_a_line > MAX_TOML_DOTS_OF_LINE:
        raise ValueError(
            f"{text.count('.')} dots, {in_a_line} in a line; at most {MAX_TOML_DOTS} and "
            f"{MAX_TOML_DOTS_OF_LINE} are read"
        )
    return tomllib.loads(text)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader
