"""tox: its environments, of tox.ini and in TOML."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from cwm_jax.forager.images.declared.command_lines import CommandLines
from cwm_jax.forager.images.declared.needs import RANKS, Declared, rank_of_name
from cwm_jax.forager.images.declared.project import Project, read_ini, strings, table

_PYTHON = f"py{sys.version_info[0]}{sys.version_info[1]}"
_DOTTED = f"py{sys.version_info[0]}.{sys.version_info[1]}"
_MAX_NAMES = 300  # assumed: of a list of environments
_MAX_TEXT = 20_000  # characters of a value; assumed
_MAX_ENVIRONMENTS = 3  # assumed: of a project; more are but variants
_CONDITION = re.compile(r"^([\w.!,-]*[\w.{}!,-]+):\s+(\S.*)$")
_OTHER_PYTHON = re.compile(r"(py|pypy|jython|graalpy)(\d[\d.]*t?|py\d+)|\d\.\d+t?|pypy")
_REFERENCE = re.compile(r"\{\[([^\[\]{}]+)\]([\w.]+)\}")
_INNERMOST = re.compile(r"(?<!\\)\{([^{}]*)\}")


def declared(project: Project) -> Iterator[Declared]:
    """Environments for this Python that run tests, and those named after tests."""
    for found in (_of_ini(project), _of_toml(project)):
        yield from found


def _of_ini(project: Project) -> Iterator[Declared]:
    sections = project.ini("tox.ini")
    legacy = table(project.toml("pyproject.toml"), "tool", "tox").get("legacy_tox_ini")
    if not sections and isinstance(legacy, str):
        try:
            sections = read_ini(legacy)
        except Exception:  # its file is read well otherwise
            return
    named: dict[str, dict[str, str]] = {}
    headers = [name for name in sections if name.startswith("testenv:")]
    for header in headers[:_MAX_NAMES]:
        for name in _generated(header.removeprefix("testenv:")):
            named.setdefault(name, sections[header])
    if not named and "testenv" not in sections:
        return
    core = sections.get("tox", {})
    listed = _generated(core.get("envlist", "") or core.get("env_list", ""))
    for name in _chosen([*listed, *named]):
        own = named.get(name, {})
        environment = {**sections.get("testenv", {}), **own}
        read = CommandLines(
            project, _Values(sections, name).text(environment, "change_dir", "changedir")
        )
        _read_ini_environment(environment, _Values(sections, name), read)
        yield from _result(read, name)


def _result(read: CommandLines, name: str) -> Iterator[Declared]:
    if read.runs_tests or read.installs_pytest():
        yield read.declared(f"tox {name}", RANKS["runner"])


def _read_ini_environment(
    environment: Mapping[str, str], values: _Values, read: CommandLines
) -> None:
    for line in values.lines(environment, "deps"):
        read.line(line)
    for extra in values.words(environment, "extras"):
        read.extra(extra)
    for group in values.words(environment, "dependency_groups"):
        read.group(group)
    pairs = [line.partition("=") for line in values.lines(environment, "set_env", "setenv")]
    read.variables({name.strip(): value.strip() for name, _, value in pairs})
    for key in ("commands_pre", "commands"):
        for line in values.lines(environment, key):
            read.read_shell(line.lstrip("-! "))


class _Values:
    """Values as they are in one environment: conditions and substitutions are done."""

    def __init__(self, sections: Mapping[str, Mapping[str, str]], name: str) -> None:
        self._sections, self._factors = sections, set(re.split(r"[-]", name))
        if _PYTHON in self._factors or _DOTTED in self._factors:
            self._factors |= {_PYTHON, _DOTTED, "py", "py3"}

    def text(self, environment: Mapping[str, str], *keys: str) -> str:
        """The first line of a value; empty if there is none."""
        return next(iter(self.lines(environment, *keys)), "")

    def words(self, environment: Mapping[str, str], key: str) -> list[str]:
        """Of a value that is split at blanks and commas."""
        return " ".join(self.lines(environment, key)).replace(",", " ").split()

    def lines(self, environment: Mapping[str, str], *keys: str) -> list[str]:
        """Lines of the first key that is there, those for other environments left out."""
        value = next((environment[key] for key in keys if key in environment), "")
        value = self._referred(value)
        value = self._substituted(value.replace("\\\n", " "))
        lines = []
        for line in value.splitlines():
            match = _CONDITION.match(line.strip())
            if match and not self._holds(match[1]):
                continue
            lines.append(match[2] if match else line.strip())
        return [line for line in lines if line and not line.startswith("#")]

    def _referred(self, value: str) -> str:
        """``{[testenv]deps}`` is what is there, and so on."""

        def there(match: re.Match[str]) -> str:
            return self._sections.get(match[1], {}).get(match[2], "")[:_MAX_TEXT]

        for _ in range(5):
            changed = _REFERENCE.sub(there, value[:_MAX_TEXT])
            if changed == value:
                break
            value = changed
        return value[:_MAX_TEXT]

    def _substituted(self, value: str) -> str:
        """From the inside; what only tox knows stays as a word that readers leave out."""
        for _ in range(5):
            changed = _INNERMOST.sub(_substitute, value)[:_MAX_TEXT]
            if changed == value:
                break
            value = changed
        return value.replace("\0", "{x}")

    def _holds(self, condition: str) -> bool:
        """Of ``py311,py312-!old``: commas are alternatives, hyphens all have to be."""
        return any(
            all(
                (part[1:] not in self._factors) if part.startswith("!") else part in self._factors
                for part in one.split("-")
            )
            for one in _generated(condition)
        )


def _substitute(match: re.Match[str]) -> str:
    text = match[1]
    name, colon, default = text.partition(":")
    if name.strip() in ("toxinidir", "tox_root"):
        return "."
    if name.strip() == "posargs":
        return default
    if name.strip() == "env" and colon:
        return default.partition(":")[2]
    if name.strip() in ("envpython", "env_python"):
        return "python"
    return text if text == "/" else "\0"


def _of_toml(project: Project) -> Iterator[Declared]:
    document = project.toml("tox.toml") or table(project.toml("pyproject.toml"), "tool", "tox")
    base, named = table(document, "env_run_base"), table(document, "env")
    if not base and not named:
        return
    for name in _chosen([*strings(document.get("env_list"))[:_MAX_NAMES], *named]):
        environment = {**base, **table(named, name)}
        folder = environment.get("change_dir")
        read = CommandLines(project, _root(folder) if isinstance(folder, str) else "")
        for line in _flat(document, environment.get("deps")):
            read.line(_root(line))
        for extra in _flat(document, environment.get("extras")):
            read.extra(extra)
        for group in _flat(document, environment.get("dependency_groups")):
            read.group(group)
        variables = table(environment, "set_env")
        read.variables({name: value for name, value in variables.items() if isinstance(value, str)})
        for key in ("commands_pre", "commands"):
            commands = environment.get(key)
            for command in commands if isinstance(commands, list) else []:
                read.read([_root(word) for word in _flat(document, command)])
        yield from _result(read, name)


def _flat(document: Any, value: Any, *, depth: int = 4) -> list[str]:
    """Texts of a list in which others may stand, by reference or for arguments."""
    if isinstance(value, str):
        return [value]
    found: list[str] = []
    for item in value[:_MAX_NAMES] if isinstance(value, list) and depth else []:
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, dict) and item.get("replace") == "posargs":
            found += strings(item.get("default"))
        elif isinstance(item, dict) and item.get("replace") == "ref":
            path = strings(item.get("of"))
            inner = table(document, *path[:-1]).get(path[-1]) if path else None
            found += _flat(document, inner, depth=depth - 1)
    return found[:_MAX_NAMES]


def _root(word: str) -> str:
    return re.sub(r"\{(toxinidir|tox_root)\}", ".", word)


def _chosen(names: list[str]) -> list[str]:
    """Which environments to try: for this Python, with few factors, or named after tests.

    Names of other Pythons are taken as if they were of this one: tox makes an environment of any.
    """
    found: dict[str, None] = {}
    for name in names:
        factors = name.split("-")
        pythons = [part for part in factors if _OTHER_PYTHON.fullmatch(part)]
        if any(part.startswith(("pypy", "jython", "graalpy")) for part in pythons):
            continue
        others = [part for part in factors if part not in pythons and part not in ("py", "py3")]
        known = all(rank_of_name(part) == RANKS["test"] for part in others)
        if pythons or known or factors[0] in ("py", "py3"):
            found["-".join([_PYTHON, *others]) if _pythonic(factors[0]) else name] = None
    if not found and not any(rank_of_name(name) is not None for name in names):
        found[_PYTHON] = None
    return sorted(found, key=lambda name: name.count("-"))[:_MAX_ENVIRONMENTS]


def _pythonic(factor: str) -> bool:
    return factor in ("py", "py3") or bool(_OTHER_PYTHON.fullmatch(factor))


def _generated(text: str) -> list[str]:
    """Names of ``py{310,311}-{a,b}, docs``: braces are alternatives, as are ranges of numbers."""
    found: list[str] = []
    parts = re.findall(r"(?:[^\s,{}]|\{[^{}]*\})+", text[:_MAX_TEXT])
    for part in parts[:_MAX_NAMES]:
        names = [""]
        for plain, braces in re.findall(r"([^{}]+)|\{([^{}]*)\}", part):
            choices = [plain] if plain else _alternatives(braces)
            names = [name + choice for name in names for choice in choices][:_MAX_NAMES]
        found += [name.strip("-") for name in names]
    return list(dict.fromkeys(found))[:_MAX_NAMES]


def _alternatives(text: str) -> list[str]:
    found = []
    for one in (part.strip() for part in text.split(",")):
        ends = re.fullmatch(r"(\d{1,4})-(\d{1,4})", one)
        if ends and int(ends[1]) <= int(ends[2]):
            found += [str(n) for n in range(int(ends[1]), int(ends[2]) + 1)][:_MAX_NAMES]
        else:
            found.append(one)
    return found
