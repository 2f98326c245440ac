"""What pytest is configured with, and which of its options a run of single tests needs."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Sequence
from typing import Any

from cwm_jax.forager.images.declared.needs import names_of
from cwm_jax.forager.images.declared.project import Project, strings, table

# Options that decide which tests there are and how they are imported. All others go: coverage with
# its thresholds, distribution over processes and output in other forms change what is reported of a
# test, or end the run early. --doctest-modules goes as well: a source file cannot be both what is
# broken and the trusted copy of a test. By name, whether a value follows, and whose option it is.
_KEPT = {
    "-p": (True, ""),
    "-m": (True, ""),
    "-k": (True, ""),
    "-c": (True, ""),
    "-W": (True, ""),
    "-o": (True, ""),
    "--override-ini": (True, ""),
    "--pythonwarnings": (True, ""),
    "--import-mode": (True, ""),
    "--rootdir": (True, ""),
    "--confcutdir": (True, ""),
    "--noconftest": (False, ""),
    "--ignore": (True, ""),
    "--ignore-glob": (True, ""),
    "--deselect": (True, ""),
    "--asyncio-mode": (True, "pytest-asyncio"),
    "--ds": (True, "pytest-django"),
    "--dc": (True, "pytest-django"),
    "--nomigrations": (False, "pytest-django"),
    "--no-migrations": (False, "pytest-django"),
    "--reuse-db": (False, "pytest-django"),
    "--create-db": (False, "pytest-django"),
    "--benchmark-disable": (False, "pytest-benchmark"),
    "--benchmark-skip": (False, "pytest-benchmark"),
    "--forked": (False, "pytest-forked"),
}
# Of those that go, the ones whose value is the next word: it is no path of tests.
# fmt: off
_VALUES_GO = frozenset((
    "--cov", "--cov-report", "--cov-config", "--cov-fail-under", "-n", "--numprocesses",
    "--dist", "--maxprocesses", "--tx", "--durations", "--durations-min", "--maxfail", "--tb",
    "--junitxml", "--junit-xml", "--junit-prefix", "--basetemp", "--timeout",
    "--timeout-method", "-r", "--color", "--capture", "--html", "--log-level", "--log-format",
    "--log-cli-level", "--log-file", "--doctest-glob", "--reruns", "--reruns-delay",
    "--verbosity", "--hypothesis-profile", "--hypothesis-seed", "--hypothesis-show-statistics",
    "--code-highlight", "--alluredir", "--show-capture", "--random-order-seed",
    "--randomly-seed", "--ff", "--count",
))
# fmt: on
_SHORT = re.compile(r"-([pmkcWonr])(.+)")
_PLUGINS_GO = re.compile(r"(pytest[-_])?(cov|xdist|cacheprovider|randomly|sugar|pretty)(\..*)?")
# Plugins that shuffle tests or write their results in another form, whenever they are installed.
_CHANGING_PLUGINS = ("randomly", "sugar", "pretty")
# Settings that only a plugin knows: without it pytest warns, and warnings may be errors.
_PLUGIN_OF_SETTING = {
    "asyncio_mode": "pytest-asyncio",
    "asyncio_default_fixture_loop_scope": "pytest-asyncio",
    "DJANGO_SETTINGS_MODULE": "pytest-django",
    "django_find_project": "pytest-django",
    "timeout": "pytest-timeout",
    "env": "pytest-env",
    "env_files": "pytest-dotenv",
    "mock_use_standalone_module": "pytest-mock",
    "qt_api": "pytest-qt",
}
_MAX_WORDS = 200  # of a setting; assumed
_MAX_TEXT = 10_000  # characters of one; assumed


@dataclasses.dataclass(frozen=True, kw_only=True)
class PytestConfig:
    """Settings of pytest.

    Attributes:
        settings: all of them, by name.
        testpaths: where tests are, as patterns of paths.
        addopts: options that are always given.
        python_files: patterns of the names of test files.
        plugins: requirements without which the settings are not understood.
    """

    settings: frozenset[str]
    testpaths: tuple[str, ...]
    addopts: tuple[str, ...]
    python_files: tuple[str, ...]
    plugins: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PytestWords:
    """What words after ``pytest`` say.

    Attributes:
        options: those that are kept, in their order.
        paths: words that may be paths of tests.
        plugins: requirements that bring the kept options.
    """

    options: tuple[str, ...]
    paths: tuple[str, ...]
    plugins: tuple[str, ...]


def pytest_config(project: Project) -> PytestConfig:
    """The settings of the first file that has any, in pytest's order."""
    found = next((s for s in _settings(project) if s is not None), {})
    own = {_PLUGIN_OF_SETTING[name] for name in found if name in _PLUGIN_OF_SETTING}
    required = _words(found.get("required_plugins"))
    return PytestConfig(
        settings=frozenset(found),
        testpaths=_words(found.get("testpaths")),
        addopts=_words(found.get("addopts")),
        python_files=_words(found.get("python_files")) or ("test_*.py", "*_test.py"),
        plugins=tuple(sorted(own - names_of(required))) + required,
    )


def read_words(words: Sequence[str]) -> PytestWords:
    """Sorts words into options that are kept, possible paths, and what is left out."""
    options: list[str] = []
    paths: list[str] = []
    plugins: dict[str, None] = {}
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if short := _SHORT.fullmatch(word):
            name, value = f"-{short[1]}", short[2].removeprefix("=")
        if name in _KEPT:
            takes, plugin = _KEPT[name]
            if takes and not value and not equals:
                value = next(left, "")
            if _is_kept(name, value, takes):
                options += _written(name, value, takes)
                plugins |= {plugin: None} if plugin else {}
        elif name in _VALUES_GO:
            if not value and not equals:
                next(left, "")
        elif not word.startswith("-"):
            paths.append(word)
    return PytestWords(options=tuple(options), paths=tuple(paths), plugins=tuple(plugins))


def fixed_options(config: PytestConfig, declarations: str) -> list[str]:
    """Options of every run.

    ``-v`` has a line for each test, and ``-o addopts=`` takes away what the configuration adds;
    what of it matters is given again. No cache is written into the checkout, unless the settings
    say where: nobody would understand that setting.

    Args:
        config: of the project.
        declarations: texts that may name plugins.
    """
    cache = [] if "cache_dir" in config.settings else ["-p", "no:cacheprovider"]
    changing = [name for name in _CHANGING_PLUGINS if f"pytest-{name}" in declarations]
    without = [word for name in changing for word in ("-p", f"no:{name}")]
    return ["-v", *cache, *without, "-o", "addopts="]


def _settings(project: Project) -> list[dict[str, Any] | None]:
    """By file, None if it has none; a pytest.ini counts even if it is empty."""
    native = [table(project.toml(name), "pytest") for name in ("pytest.toml", ".pytest.toml")]
    own = [project.ini(name).get("pytest", {}) for name in ("pytest.ini", ".pytest.ini")]
    exist = [name in project for name in ("pytest.ini", ".pytest.ini")]
    tool = table(project.toml("pyproject.toml"), "tool", "pytest")
    return [
        *(found or None for found in native),
        *(found if there else None for found, there in zip(own, exist, strict=True)),
        table(tool, "ini_options") or tool or None,
        project.ini("tox.ini").get("pytest"),
        project.ini("setup.cfg").get("tool:pytest"),
    ]


def _words(value: Any) -> tuple[str, ...]:
    """Of a list, or of a text as a shell splits it; comments of INI files go."""
    if isinstance(value, list):
        return tuple(strings(value))[:_MAX_WORDS]
    if not isinstance(value, str):
        return ()
    lines = value[:_MAX_TEXT].splitlines()
    text = " ".join(line for line in lines if not line.strip().startswith("#"))
    try:
        return tuple(shlex.split(text))[:_MAX_WORDS]
    except ValueError:
        return tuple(text.split())[:_MAX_WORDS]


def _is_kept(name: str, value: str, takes: bool) -> bool:
    if takes and (not value or len(value) > 500 or re.search(r"[{}$`\n]", value)):
        return False
    if name == "-p":
        return not _PLUGINS_GO.fullmatch(value.removeprefix("no:"))
    if name in ("-o", "--override-ini"):
        return not value.startswith(("addopts", "log", "cache_dir", "junit"))
    return name not in ("-m", "-k") or _admits_others(value)


def _admits_others(expression: str) -> bool:
    """Whether ``-m`` or ``-k`` lets a test pass that none of its names fits: the canary is one."""
    try:
        return _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _value(node: ast.expr) -> bool:
    if isinstance(node, ast.BoolOp):
        values = [_value(part) for part in node.values]
        return all(values) if isinstance(node.op, ast.And) else any(values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _value(node.operand)
    return False


def _written(name: str, value: str, takes: bool) -> list[str]:
    if not takes:
        return [name]
    return [f"{name}={value}"] if name.startswith("--") else [name, value]
