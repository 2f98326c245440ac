"""Recipes of images: what small projects of each kind declare, and files that mean no good."""

import shlex
import sys

import pytest

from cwm_jax.forager.images.declared.project import (
    MAX_ALIASES,
    MAX_BYTES,
    MAX_TOML_BYTES,
    MAX_YAML_BYTES,
)
from cwm_jax.forager.images.recipe import MAX_RECIPES, recipes, unreadable_files
from cwm_jax.rl.envs.swe.suite import FORMATS

PY = f"py{sys.version_info[0]}{sys.version_info[1]}"
DOTTED = f"{sys.version_info[0]}.{sys.version_info[1]}"
TEST = "def test_a():\n    pass\n"
RUN = "python -m pytest -v --continue-on-collection-errors -p no:cacheprovider -o addopts="
BUILT = '[build-system]\nrequires = ["flit_core"]\n[project]\nname = "thing"\n'


def files(**texts):
    """Names have ``__`` for a slash, ``_DOT_`` for a dot."""
    return {
        name.replace("__", "/").replace("_DOT_", "."): text.encode() for name, text in texts.items()
    }


def project(pyproject="", **others):
    return files(pyproject_DOT_toml=BUILT + pyproject, tests__test_a_DOT_py=TEST, **others)


def named(found, name):
    return next(one for one in found if one.name == name)


def first(checkout):
    return recipes(checkout)[0]


# What is declared


@pytest.mark.parametrize(
    ("declared", "name", "install"),
    [
        (
            '[project.optional-dependencies]\ndev = ["pytest"]\ntest = ["pytest", "numpy"]\n',
            "pyproject extra test",
            ("pip install -e '.[test]'",),
        ),
        (
            '[dependency-groups]\nbase = ["numpy>=1"]\n'
            'Test = ["pytest", {include-group = "base"}, {include-group = "TEST"}]\n',
            "pyproject group test",
            ("pip install pytest 'numpy>=1'", "pip install -e ."),
        ),
        (
            '[tool.poetry.group.test.dependencies]\npytest = "^7.1"\nnumpy = "*"\n'
            'attrs = {version = "~22.1", extras = ["x"]}\nown = {path = "../own"}\n',
            "pyproject group test",
            (
                "pip install 'pytest>=7.1,<8' numpy 'attrs[x]>=22.1,<22.2'",
                "pip install -e .",
            ),
        ),
        (
            '[tool.poetry.dev-dependencies]\npytest = "0.0.3 || ^0.2.3"\npython = "^3.8"\n',
            "pyproject group dev",
            ("pip install 'pytest>=0.2.3,<0.3'", "pip install -e ."),
        ),
        (
            '[tool.pdm.dev-dependencies]\ntest = ["pytest", "-e file:///x", "numpy"]\n',
            "pyproject group test",
            ("pip install pytest numpy", "pip install -e ."),
        ),
        (
            '[tool.uv]\ndev-dependencies = ["pytest<9"]\n',
            "pyproject group dev",
            ("pip install 'pytest<9'", "pip install -e ."),
        ),
        (
            '[tool.hatch.envs.default]\ndependencies = ["pytest"]\nfeatures = ["fast"]\n'
            '[tool.hatch.envs.unit]\nextra-dependencies = ["numpy"]\n'
            'scripts.test = "pytest {args:tests} --cov"\n',
            "hatch unit",
            ("pip install pytest numpy", "pip install -e '.[fast]'"),
        ),
        (
            '[tool.setuptools.dynamic]\noptional-dependencies.test = {file = ["t.txt"]}\n',
            "pyproject extra test",
            ("pip install pytest", "pip install -e '.[test]'"),
        ),
    ],
)
def test_pyproject(declared, name, install):
    found = named(recipes(project(declared)), name)
    assert found.install == install
    assert found.command == f"{RUN} tests"
    assert (found.format, found.canary) == ("pytest", "tests")


def test_extras_of_setup_cfg_and_literals_of_setup_py():
    setup = (
        "import os\nfrom setuptools import setup\nos.abort()\nTESTS = ['pytest<99', f'{1}']\n"
        "ALL = TESTS + ['numpy']\n"
        "setup(name='x', tests_require=ALL, extras_require={'testing': ALL, **{}})\n"
    )
    cfg = "[options.extras_require]\ntests =\n  pytest\n  attrs\n"
    found = recipes(files(setup_DOT_py=setup, setup_DOT_cfg=cfg, tests__test_a_DOT_py=TEST))
    assert [one.name for one in found[:3]] == [
        "setup.cfg extra tests",
        "setup.py extra testing",
        "setup.py tests_require",
    ]
    assert [one.install for one in found[:3]] == [
        ("pip install -e '.[tests]'",),
        ("pip install -e '.[testing]'",),
        ("pip install 'pytest<99' numpy", "pip install -e ."),
    ]


TOX = f"""\
[tox]
envlist = lint, py{{36,37}}-{{a,b}}, {PY}, docs
[base]
deps = attrs  # with a reason
[testenv]
deps =
    pytest>=5
    {{[base]deps}}
    py27: futures
    {PY},py27: numpy
    {PY}-!old: scipy
    -rreq/test.txt
    git+https://example.org/x.git
    far @ git+https://example.org/far.git
extras = fast
setenv =
    MODE = on
    COVERAGE_FILE = x
    PYTEST_ADDOPTS = -n 4
    HERE = {{toxinidir}}
commands =
    - python -c "print(1)"
    pytest {{envsitepackagesdir}}/thing --cov tests -n auto -m "not slow" \\
        {{posargs:{{toxinidir}}/checks}} --import-mode=importlib
[testenv:lint]
deps = ruff
commands = ruff check
"""


def test_tox_ini_as_of_this_python():
    found = named(
        recipes(
            project(tox_DOT_ini=TOX, checks__test_b_DOT_py=TEST, req__test_DOT_txt="pytest-mock\n")
        ),
        f"tox {PY}",
    )
    assert found.install == (
        "pip install -r req/test.txt",
        "pip install 'pytest>=5' attrs numpy scipy",
        "pip install -e '.[fast]'",
    )
    assert found.command == (f"HERE=. MODE=on {RUN} -m 'not slow' --import-mode=importlib checks")
    assert found.canary == "checks"


def test_tox_in_toml():
    declared = """
[dependency-groups]
checks = ["pytest", "numpy"]
[tool.tox]
env_list = ["style", "pypy3.11", "py3.10-x"]
[tool.tox.env_run_base]
dependency_groups = ["checks"]
deps = [{replace = "ref", of = ["tool", "x"]}, "attrs"]
commands = [["python", "-m", "pytest", "--tb", "short", {replace = "posargs", default = ["tests"]}]]
"""
    found = named(recipes(project(declared)), f"tox {PY}-x")
    assert found.install == ("pip install attrs pytest numpy", "pip install -e .")
    assert found.command == f"{RUN} tests"


def test_nox_sessions():
    nox = (
        "import nox\ndef helper(s):\n    s.run('pytest')\n"
        "DEPS = ['pytest', 'numpy']\n@nox.session\ndef lint(session):\n"
        "    session.install('ruff')\n    session.run('ruff')\n"
        "@nox.session(python=['3.11'])\ndef checks(s):\n"
        "    s.install('-e', '.[fast]', *DEPS, '-c', 'c.txt')\n"
        "    s.run(f'python{s.python}', '-m', 'pytest', *s.posargs, 'tests')\n"
    )
    found = first(project(noxfile_DOT_py=nox, c_DOT_txt=""))
    assert found.name == "nox checks"
    assert found.install == (
        "pip install -c c.txt pytest numpy",
        "pip install -c c.txt -e '.[fast]'",
    )


def test_requirement_files_by_their_names():
    found = recipes(
        project(
            requirements_DOT_txt="numpy",
            docs__requirements_DOT_txt="sphinx",
            requirements__dev_DOT_txt="pytest",
            tests__requirements_DOT_txt="scipy",
            requirements_DOT_in="",
        )
    )
    assert [one.name for one in found] == [
        "requirements tests/requirements.txt",
        "requirements requirements/dev.txt",
        "guess of imports",
    ]
    assert found[0].install == (
        "pip install -r requirements.txt -r tests/requirements.txt",
        "pip install pytest",
        "pip install -e .",
    )
    assert found[1].install[:-1] == ("pip install -r requirements.txt -r requirements/dev.txt",)


WORKFLOW = """\
on: push
jobs:
  lint:
    steps: [{run: pip install ruff}]
  unit:
    strategy: {matrix: {numpy: ["1", "2"]}}
    env: {CI: 1, SETTING: fast}
    steps:
      - uses: actions/checkout@v4
      - run: |
          sudo apt-get install libfoo
          python -m pip install --upgrade pip && pip install --user -e .[all] 'pytest<9' # why
          pip install numpy==${{ matrix.numpy }}
          pip install scipy -f $WHERE
          echo pip install echoed
          pip uninstall -y attrs
          pip install \\
             attrs > log 2>&1
      - run: cd docs && pytest
        working-directory: sub
      - run: python -m coverage run -m pytest "$X" --cov=thing --cov-fail-under 90 -k 'not slow'
"""


def test_workflows():
    found = first(files(setup_DOT_py="", tests__test_a_DOT_py=TEST) | workflow(WORKFLOW))
    assert found.name == "workflow ci.yml unit"
    assert found.install == ("pip install 'pytest<9' attrs", "pip install -e '.[all]'")
    assert found.command == f"SETTING=fast {RUN} -k 'not slow' tests"


def workflow(text):
    return {".github/workflows/ci.yml": text.encode()}


def test_uv_in_a_workflow_installs_groups():
    steps = "jobs: {a: {steps: [{run: uv sync --group checks --extra fast}, {run: uv run pytest}]}}"
    groups = '[dependency-groups]\ndev = ["ruff"]\nchecks = ["pytest", "numpy"]\n'
    found = named(recipes(project(groups) | workflow(steps)), "workflow ci.yml a")
    assert found.install == ("pip install ruff pytest numpy", "pip install -e '.[fast]'")


# The test command


@pytest.mark.parametrize(
    ("addopts", "kept"),
    [
        ("--cov=thing --cov-report term -n auto --dist loadfile -x -q --strict-config", ""),
        ("--cov tests --maxfail 1 --doctest-modules --color=yes", ""),
        ("--import-mode importlib -p thing.plugin", "--import-mode=importlib -p thing.plugin "),
        ("-pno:warnings -p xdist -p pytest_cov", "-p no:warnings "),
        ("-m 'not slow and not network'", "-m 'not slow and not network' "),
        ("-m unit -k 'a or b' -m '((('", ""),
        ("--ignore=tests/x --deselect tests/a.py::b", "--ignore=tests/x --deselect=tests/a.py::b "),
        ("-o addopts=-x -o xfail_strict=true", "-o xfail_strict=true "),
    ],
)
def test_only_options_that_matter_to_single_tests_are_kept(addopts, kept):
    found = first(files(tests__test_a_DOT_py=TEST, pytest_DOT_ini=f"[pytest]\naddopts = {addopts}"))
    assert found.command == f"{RUN} {kept}tests"


def test_plugins_come_with_their_options_and_settings():
    ini = '[tool.pytest.ini_options]\naddopts = ["--ds=x"]\nasyncio_mode = "auto"\n'
    ini += 'required_plugins = ["pytest-mock>=3"]\n'
    extra = '[project.optional-dependencies]\ntest = ["pytest_asyncio"]\n'
    assert first(project(ini + extra)).install == (
        "pip install pytest 'pytest-mock>=3' pytest-django",
        "pip install -e '.[test]'",
    )


def test_plugins_that_change_the_output_or_the_order_are_off():
    found = first(project('[dependency-groups]\ntest = ["pytest", "pytest-randomly"]\n'))
    assert "-p no:cacheprovider -p no:randomly -o addopts= tests" in found.command


def test_a_setting_of_the_cache_would_be_unknown_without_it():
    found = first(project('[tool.pytest.ini_options]\ncache_dir = "x"\n'))
    assert found.command == "python -m pytest -v --continue-on-collection-errors -o addopts= tests"


@pytest.mark.parametrize(
    ("paths", "ini", "where", "canary"),
    [
        (["test_a.py", "thing/b.py", "setup.py"], "", "test_a.py {canary}", "."),
        (["test_a.py", "tests/test_b.py"], "", "tests", "tests"),
        (["tests/unit/test_a.py", "tests/unit/deep/a_test.py"], "", "tests", "tests"),
        (["src/thing/tests/test_a.py"], "", "src/thing/tests", "src/thing/tests"),
        (["thing/test_a.py", "examples/test_b.py"], "", "thing", "thing"),
        (["thing/tests/test_a.py", "thing/x.py"], "testpaths = thing", "thing", "thing/tests"),
        (["a/test_a.py", "b/test_b.py"], "testpaths =\n  b\n  gone", "b", "b"),
        (["p1/t/test_a.py", "p2/t/test_b.py"], "testpaths = */t", "p1/t p2/t", "p1/t"),
        (["a/test_a.py", "a/b/test_b.py"], "testpaths = a/b a a/b/test_b.py", "a", "a"),
        (["tests/test_a.py"], "testpaths = gone", "tests", "tests"),
        (["thing/tests.py"], "", "thing/tests.py {canary}", "thing"),
        (["my tests/test_a.py"], "", "'my tests'", "my tests"),
    ],
)
def test_where_tests_are(paths, ini, where, canary):
    checkout = {path: TEST.encode() for path in paths}
    found = first(checkout | files(setup_DOT_py="", pytest_DOT_ini=f"[pytest]\n{ini}\n"))
    assert (found.command, found.canary) == (f"{RUN} {where}", canary)


def test_a_canary_is_collected_where_tests_have_names_of_another_form():
    ini = "[pytest]\npython_files = check_*.py\n"
    checkout = files(pytest_DOT_ini=ini, checks__check_a_DOT_py=TEST, tests__test_b_DOT_py=TEST)
    assert first(checkout).command == f"{RUN} -o 'python_files=check_*.py test_*.py' checks"


def test_a_project_without_tests_has_no_recipe():
    assert recipes(project() | {"tests/test_a.py": b""})
    assert recipes(files(setup_DOT_py="", thing_DOT_py="", docs__test_a_DOT_py=TEST)) == []
    assert recipes({}) == []


# Installing


@pytest.mark.parametrize(
    ("builder", "more", "variable"),
    [
        ("setuptools-scm[toml]>=8", {}, "SETUPTOOLS_SCM_PRETEND_VERSION=1.2.3 "),
        ("hatch-vcs", {}, "SETUPTOOLS_SCM_PRETEND_VERSION=1.2.3 "),
        ("pbr", {}, "PBR_VERSION=1.2.3 "),
        ("hatchling", {}, ""),
        (
            "hatch_vcs",
            {"PKG-INFO": b"", ".git_archival.txt": b"describe-name: v2.0-3-gabc1\r\n"},
            "SETUPTOOLS_SCM_PRETEND_VERSION=2.0 ",
        ),
        ("hatch_vcs", {"PKG-INFO": b"Version: $(x)\n"}, "SETUPTOOLS_SCM_PRETEND_VERSION=0.1.dev1 "),
        ("x", {"setup.py": b"setup(use_scm_version=1)"}, "SETUPTOOLS_SCM_PRETEND_VERSION=1.2.3 "),
    ],
)
def test_versions_of_git_are_told(builder, more, variable):
    checkout = files(
        pyproject_DOT_toml=f"[build-system]\nrequires = ['{builder}']\n",
        tests__test_a_DOT_py=TEST,
    )
    info = {"PKG-INFO": b"Metadata-Version: 2.1\r\nVersion: 1.2.3\r\n\r\nVersion: 9\r\n"}
    found = first(checkout | info | more)
    assert found.install == ("pip install pytest", f"{variable}pip install -e .")


def test_a_program_that_cannot_be_installed_gets_its_requirements():
    checkout = files(
        tests__test_a_DOT_py="import thing\n", src__thing_DOT_py="", requirements_DOT_txt="numpy"
    )
    found = first(checkout)
    assert found.install == ("pip install -r requirements.txt", "pip install pytest")
    assert found.command == f"PYTHONPATH=src {RUN} tests"


def test_imports_of_tests_are_guessed_last():
    test = (
        "import os, git, yaml, numpy.random as r, thing, other, distutils\nfrom . import x\n"
        "from freezegun import freeze_time\nfrom tests.shapes import y\nimport data_of_tests\n"
        "try:\n    import pandas\nexcept ImportError:\n    pass\n"
        "def test_a(mocker, benchmark):\n    import scipy\n"
        "@pytest.mark.asyncio\nasync def test_b(): pass\ndef benchmark(): pass\n"
    )
    found = recipes(
        project(
            'dependencies = ["numpy"]\n',
            src__thing__a_DOT_py="",
            other_DOT_py="",
            git_DOT_py="",
            tests__test_b_DOT_py=test,
            tests__data_of_tests_DOT_py="",
            tests__conftest_DOT_py="import requests\n",
        )
    )
    assert [one.name for one in found] == ["guess of imports"]
    assert found[0].install == (
        "pip install PyYAML freezegun pytest-asyncio pytest-mock requests pytest",
        "pip install -e .",
    )


def test_what_brings_the_imports_comes_before_what_is_named_better():
    declared = '[dependency-groups]\ntest = ["pytest"]\ndev = ["pytest", "hypothesis"]\n'
    checkout = project(declared, tests__test_b_DOT_py="import hypothesis\n")
    assert [one.name for one in recipes(checkout)][:2] == [
        "pyproject group dev",
        "pyproject group test",
    ]
    assert first(project(declared)).name == "pyproject group test"


def test_unittest_is_the_last_candidate():
    packages = {"src/thing/__init__.py": b"", "src/thing/tests/__init__.py": b""}
    test = {"setup.py": b"", "src/thing/tests/test_a.py": b"import unittest\n"}
    found = recipes(packages | test)
    assert [one.format for one in found] == ["pytest", "unittest"]
    assert found[1].command == "python -W ignore -m unittest discover -v -s src/thing/tests -t src"
    with_pytest = files(tests__test_a_DOT_py="import unittest\nimport pytest\n")
    assert [one.format for one in recipes(with_pytest)] == ["pytest"]


# Laws


def crowded():
    groups = "[dependency-groups]\n" + "".join(
        f'test-{n} = ["pytest", "numpy>{n}"]\n' for n in range(20)
    )
    return project(
        groups + '[project.optional-dependencies]\ntest = ["pytest"]\n',
        tox_DOT_ini=TOX,
        tests__test_b_DOT_py="import unittest\n",
    ) | workflow(WORKFLOW)


def test_at_most_six_and_the_guesses_stay():
    found = recipes(crowded())
    assert len(found) == MAX_RECIPES == 6
    assert [one.name for one in found[-2:]] == ["guess of imports", "guess of imports, by unittest"]


def test_no_two_have_the_same_commands():
    declared = '[dependency-groups]\ntest = ["pytest", "attrs"]\ntests = ["attrs", "pytest"]\n'
    found = recipes(project(declared + 'dev = ["pytest"]\n'))
    assert [one.name for one in found] == ["pyproject group test", "pyproject group dev"]


def test_the_order_of_the_files_plays_no_part():
    checkout = crowded()
    turned = dict(reversed(checkout.items()))
    assert list(turned) != list(checkout)
    assert recipes(turned) == recipes(checkout)


def test_commands_are_ones_of_a_shell_and_end_in_the_tests():
    for one in recipes(crowded()):
        assert one.format in FORMATS
        assert one.install[-1].endswith(("-e .", "-e '.[test]'", "-e '.[fast]'", "-e '.[all]'"))
        if one.format == "pytest":
            assert shlex.split(one.command)[-1] in ("tests", "checks", "sub")
        for command in (*one.install, one.command):
            assert not {"--user", "uninstall", "apt-get", "sudo"} & set(shlex.split(command))
            assert "$" not in command


# Hostile files


def nested_merges():
    levels = [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    return "\n".join(["l0: &l0 {a: 1}", *levels, "jobs: *l11"])


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("pyproject.toml", "a = [", "no TOML"),
        ("pyproject.toml", "a = " + "[" * 100_000, "no TOML: RecursionError"),
        ("pyproject.toml", "a." * 100_000 + "a = 1", "dots"),
        ("pyproject.toml", "#" * (MAX_TOML_BYTES + 1), f"at most {MAX_TOML_BYTES}"),
        ("tox.ini", "no section", "no INI"),
        ("setup.cfg", "[a]\n" * MAX_BYTES, f"at most {MAX_BYTES}"),
        ("setup.py", "setup(", "no Python"),
        ("setup.py", "x = " + "-" * 100_000 + "1", "no Python"),
        ("setup.py", "\0", "no Python"),
        ("noxfile.py", "x = " + "1 + " * 20_000 + "1", "no Python: RecursionError"),
        (".github/workflows/a.yml", "a: [", "no YAML"),
        (".github/workflows/a.yml", "[" * 700, "no YAML: RecursionError"),
        (".github/workflows/a.yml", "a: 2001-99-99", "no YAML"),
        (".github/workflows/a.yml", "a: !!python/object/apply:os.abort []", "no YAML"),
        (".github/workflows/a.yml", nested_merges(), f"more than {MAX_ALIASES} aliases"),
        (".github/workflows/a.yml", "#" * (MAX_YAML_BYTES + 1), f"at most {MAX_YAML_BYTES}"),
    ],
)
def test_files_that_do_not_parse_are_told_and_others_remain(path, content, reason):
    checkout = files(tests__test_a_DOT_py=TEST, requirements_test_DOT_txt="")
    checkout = {**checkout, path: content.encode()}
    assert recipes(checkout)[0].name == "requirements requirements_test.txt"
    assert list(unreadable_files(checkout)) == [path]
    assert reason in unreadable_files(checkout)[path]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("tox.ini", "[testenv]\ncommands = pytest\ndeps = " + "{[testenv]deps}" * 1000),
        ("tox.ini", "[tox]\nenvlist = " + "{a,b,c,d}" * 500 + "\n[testenv]\ncommands = pytest"),
        ("tox.ini", "[testenv]\ncommands = pytest\ndeps = " + "{" * 50_000),
        ("setup.py", "a = ['x']\n" + "a = a + a\n" * 200 + "setup(tests_require=a)"),
        ("requirements-test.txt", "-r requirements-test.txt\n" * 1000),
        ("pyproject.toml", "[dependency-groups]\n" + "test = [{include-group = 'test'}]"),
        ("pyproject.toml", "tool = 1\nproject = []\nbuild-system = 'x'\ndependency-groups = 2"),
        ("pyproject.toml", "[tool]\ntox = [1]\npoetry.group.test = 3\nhatch.envs.a.scripts = [1]"),
        (".github/workflows/a.yml", "jobs: [1, {steps: 2}]"),
        (".github/workflows/a.yml", "jobs: {1: {steps: [1, {run: 2}, {run: 'pytest'}], env: 3}}"),
        ("pytest.ini", "[pytest]\naddopts = -m '" + "not " * 100_000 + "a'"),
        ("pytest.ini", "[pytest]\naddopts = -p\npython_files = " + "*a" * 1000),
        ("tests/test_\n'$(x)`.py", ""),
        ("../test_x.py", ""),
        ("", ""),
    ],
)
def test_strange_files_raise_nothing(path, content):
    checkout = {"tests/test_a.py": TEST.encode(), path: content.encode()}
    for one in recipes(checkout):
        assert shlex.split(one.command)[:3] == ["python", "-m", "pytest"]


def test_names_of_files_stay_single_words():
    checkout = {"a$(x)/test_a;b.py": TEST.encode(), "setup.py": b""}
    assert shlex.split(first(checkout).command)[-1] == "a$(x)"
    assert "'a$(x)'" in first(checkout).command


def test_dotted_names_are_this_pythons_too():
    tox = f"[tox]\nenvlist = {DOTTED}\n[testenv]\ndeps = pytest\ncommands = pytest\n"
    assert first(project(tox_DOT_ini=tox)).name == f"tox {PY}"
