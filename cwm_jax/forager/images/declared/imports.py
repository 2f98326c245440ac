"""What tests need by what they import: a heuristic, for projects that declare nothing of it.

A name counts if a test file or conftest.py imports it at its top level, outside of ``if`` and
``try``, and it is neither the standard library's, nor the project's, nor of a folder of tests. It
is taken for the name of a distribution, but for those of a table. A fixture that a plugin is known
for counts as well. So a name may be wrong, or belong to another distribution: what is installed by
it is to be run in a sandbox only, and a recipe made of it is tried last.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from packaging.utils import canonicalize_name

from cwm_jax.forager.images.declared.needs import MAX_REQUIREMENTS
from cwm_jax.forager.images.declared.project import Project, parents

_MAX_FILES = 300  # assumed: of tests; the first ones by path
# Import names that are not their distributions'. Source: the distributions' own documentation.
_DISTRIBUTIONS = {
    "_pytest": "pytest",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "django": "Django",
    "dotenv": "python-dotenv",
    "git": "GitPython",
    "jose": "python-jose",
    "jwt": "PyJWT",
    "magic": "python-magic",
    "multipart": "python-multipart",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyOpenSSL",
    "PIL": "Pillow",
    "pkg_resources": "setuptools<81",  # later ones have none
    "psycopg2": "psycopg2-binary",
    "rest_framework": "djangorestframework",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "socks": "PySocks",
    "xdist": "pytest-xdist",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}
_FIXTURES = {
    "aiohttp_client": "pytest-aiohttp",
    "benchmark": "pytest-benchmark",
    "data_regression": "pytest-regressions",
    "datadir": "pytest-datadir",
    "faker": "Faker",
    "freezer": "pytest-freezer",
    "fs": "pyfakefs",
    "httpserver": "pytest-httpserver",
    "httpx_mock": "pytest-httpx",
    "mocker": "pytest-mock",
    "requests_mock": "requests-mock",
    "snapshot": "syrupy",
    "subtests": "pytest-subtests",
}
_UNITTEST_OR_PYTEST = re.compile(r"^[ \t]*(?:import|from)[ \t]+_?(unittest|pytest)\b", re.M)
_MARKS = {"asyncio": "pytest-asyncio", "django_db": "pytest-django", "timeout": "pytest-timeout"}
# No distribution brings them on every Python: they were the standard library's, or are another
# system's.
# fmt: off
_NOWHERE = frozenset((
    "distutils", "imp", "asyncore", "asynchat", "smtpd", "cgi", "crypt", "pipes", "telnetlib",
    "nntplib", "test", "lib2to3", "__main__", "__builtin__", "StringIO", "cPickle", "urllib2",
    "urlparse", "ConfigParser", "Queue", "httplib", "win32api", "java", "org", "System",
    "google",
))
# fmt: on


def guessed_requirements(project: Project, tests: Sequence[str]) -> tuple[str, ...]:
    """Distributions that those test files seem to need, sorted.

    Args:
        project: whose own modules are not among them.
        tests: paths of test files; of very many only the first are read.
    """
    own = _own_names(project, tests)
    beside = sorted({parent for path in tests for parent in ("", *parents(path))})
    conftests = [posixpath.join(folder, "conftest.py") for folder in beside]
    found: set[str] = set()
    for path in [*(c for c in conftests if c in project), *tests][:_MAX_FILES]:
        tree = project.python(path)
        for name in _top_imports(tree.body):
            if name not in own and not name.startswith("__"):
                found.add(_DISTRIBUTIONS.get(name, name))
        found |= set(_plugins(tree))
    known = {canonicalize_name(name) for name in own}
    return tuple(sorted(one for one in found if canonicalize_name(one) not in known))[
        :MAX_REQUIREMENTS
    ]


def uses_unittest_alone(project: Project, tests: Sequence[str]) -> bool:
    """Whether a test file imports unittest and none imports pytest."""
    names = {
        name
        for path in tests[:_MAX_FILES]
        for name in _UNITTEST_OR_PYTEST.findall(project.text(path) or "")
    }
    return "unittest" in names and "pytest" not in names


def _own_names(project: Project, tests: Sequence[str]) -> set[str]:
    """Modules and packages that can be imported where the tests run."""
    homes = {"", "src", "lib", "python"}
    homes |= {folder for path in tests for folder in parents(path)}
    names = set(sys.stdlib_module_names) | _NOWHERE
    for path in project.paths:
        if path.endswith((".py", ".pyx", ".c", ".so", ".pyi")):
            for one in (path, *parents(path)):
                if posixpath.dirname(one) in homes:
                    names.add(posixpath.basename(one).split(".")[0])
    return names


def _top_imports(body: Iterable[ast.stmt]) -> Iterator[str]:
    for node in body:
        yield from _names(node)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        return [node.module.split(".")[0]]
    return []


def _plugins(tree: ast.Module) -> Iterator[str]:
    """Of fixtures that tests take and do not define, and of marks."""
    functions = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append(node)
        elif (  # pytest.mark.asyncio
            isinstance(node, ast.Attribute)
            and node.attr in _MARKS
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "mark"
        ):
            yield _MARKS[node.attr]
    own = {function.name for function in functions}
    for function in functions:
        if function.name.startswith("test"):
            for argument in function.args.args:
                if argument.arg in _FIXTURES and argument.arg not in own:
                    yield _FIXTURES[argument.arg]
