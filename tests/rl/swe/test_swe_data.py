"""Fault: tasks on repositories that cannot be used; law: calls of a commit's files."""

import json
import os
import subprocess

import pytest
from swe_players import FIXED, GOLD, MODULE, final

from cwm_jax.config import EnvironmentConfig
from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.kinds import load_tasks
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.workspaces import checkout
from cwm_jax.rl.envs.swe.workspaces.checkout import files_of

FILES = {"files": {"module.py": MODULE}}
GIT = {"git": "/somewhere", "commit": "0" * 40}
IMAGE = {"image": "it:1", "root": "/testbed"}
CALL = {"module": "module", "call": "double(3)", "expected": "6"}
CALLS = {"calls": [CALL]}
SUITE = {
    "command": "python -m unittest -v",
    "format": "unittest",
    "files": {},
    "fail_to_pass": ["tests.test_module.ModuleTest.test_double"],
    "pass_to_pass": [],
    "canary": "tests",
}
PYTEST = {**SUITE, "format": "pytest", "fail_to_pass": ["tests/a.py::test_x[1 2]"], "canary": "."}
DATA = {"issue": "double(3) is 5", "repository": FILES, "patch": GOLD, "tests": CALLS}


def of_call(**changes):
    return {"tests": {"calls": [CALL, {**CALL, **changes}]}}


def of_suite(**changes):
    return {"tests": {**SUITE, **changes}}


def without(record, key):
    return {name: value for name, value in record.items() if name != key}


@pytest.mark.parametrize("repository", [FILES, GIT, IMAGE], ids=["files", "git", "image"])
@pytest.mark.parametrize("tests", [CALLS, SUITE, PYTEST], ids=["calls", "unittest", "pytest"])
def test_the_documented_forms_are_taken_but_calls_in_an_image(tmp_path, repository, tests):
    data = {**DATA, "repository": repository, "tests": tests}
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"name": "x", "data": data}))
    config = EnvironmentConfig(name="mine", kind="swe", path=str(path))
    if (repository, tests) == (IMAGE, CALLS):
        with pytest.raises(ValueError, match=r"^rl environment 'mine' \(swe\): .*:1: swe task 'x'"):
            load_tasks(config)
    else:
        assert [task.data for task in load_tasks(config)] == [data]


@pytest.mark.parametrize(
    "expected",
    ["[1, 2]", "'a'", "nan", "-inf", "{1: (2.5, None)}", "datetime.date(2020, 1, 1)", r"'a\n'"],
)
def test_what_a_repr_may_be_is_taken(expected):
    assert read_data(Task(name="x", data=DATA | of_call(expected=expected)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"repository": None}, "repository is null; expected files, git or built with commit, o"),
        (
            {"repository": {"svn": "x"}},
            r"repository has ['svn']; expected files, git or built with co",
        ),
        ({"repository": FILES | GIT}, "repository has ['commit', 'files', 'git']; expected files,"),
        ({"repository": {"files": {}}}, "repository.files is empty; expected at least one file"),
        ({"repository": {"files": ["a"]}}, 'repository.files is ["a"]; expected an object of text'),
        ({"repository": {"files": {"a": 1}}}, "a file of repository.files is 1; expected text"),
        ({"repository": {"files": {"/a": ""}}}, 'a path of repository.files is "/a"; expected one'),
        ({"repository": {"files": {"b/../a": ""}}}, 'a path of repository.files is "b/../a"; expe'),
        ({"repository": {"files": {".git/config": ""}}}, "a path of repository.files is"),
        ({"repository": {"files": {'"a"': ""}}}, "a path of repository.files is"),
        ({"repository": {"files": {"a\nb": ""}}}, "a path of repository.files is"),
        (
            {"repository": {"files": {"a": "", "a/b/c": ""}}},
            "repository.files has 'a' as a file and as a folder; expected one",
        ),
        ({"repository": without(GIT, "commit")}, "repository has no 'commit'; expected git and co"),
        ({"repository": {**GIT, "commit": "main"}}, 'repository.commit is "main"; expected all 40'),
        ({"repository": {**GIT, "commit": "0" * 7}}, 'repository.commit is "0000000"; expected al'),
        ({"repository": {**GIT, "branch": "x"}}, "repository has the key 'branch'; expected git a"),
        ({"repository": without(IMAGE, "root")}, "repository has no 'root'; expected image and ro"),
        (
            {"repository": {**IMAGE, "root": "a"}},
            'repository.root is "a"; expected the checkout\'s',
        ),
        ({"repository": IMAGE}, "tests are calls and the repository is an image, whose files the "),
        ({"issue": None}, "issue is null; expected text"),
        ({"patch": 1}, "patch cannot be read: patch is 1; expected text"),
        ({"patch": "see above"}, 'patch is "see above", which changes no file; expected what `git'),
        (
            {"patch": GOLD + "@@ nonsense"},
            "patch cannot be read: line 8 of the patch: no header of a hunk; expect",
        ),
        (
            {"hints": "x"},
            "data has the key 'hints'; expected issue, repository, patch, tests and f",
        ),
        ({"tests": None}, "tests are null; expected calls, or command, format, files, fail_to_pas"),
        ({"tests": {}}, "tests are {}; expected calls, or command"),
        ({"tests": {"calls": []}}, "tests.calls is an empty list; expected at least one"),
        ({"tests": {"calls": "f()"}}, 'tests.calls is "f()"; expected a list'),
        ({"tests": {**CALLS, "files": {}}}, "tests has the key 'files'; expected calls alone"),
        (of_call(args=[3]), "tests.calls[1]: it has the key 'args'; expected module, call, expect"),
        ({"tests": {"calls": [without(CALL, "module")]}}, "tests.calls[0]: it has no 'module'; ex"),
        (of_call(module="a-b.c"), 'tests.calls[1]: a part of module is "a-b"; expected a name'),
        (of_call(call="f("), 'tests.calls[1]: call is "f("; expected an expression of Python'),
        (of_call(call="x = 1"), 'tests.calls[1]: call is "x = 1"; expected an expression of Pyth'),
        (
            of_call(expected=6),
            "tests.calls[1]: expected is 6; expected the repr of the value, as a",
        ),
        (of_call(expected="hello"), 'tests.calls[1]: expected is "hello"; expected the repr of th'),
        (of_call(expected="two words"), 'tests.calls[1]: expected is "two words"; expected the re'),
        (of_call(expected="<a.B object at 0x7f>"), "tests.calls[1]: expected is"),
        (of_call(expected="[" + "1, " * 7000 + "]"), "tests.calls[1]: expected has 21002 charac"),
        (
            of_call(expected=None),
            "tests.calls[1]: the call 'double(3)' has expected=None and raise",
        ),
        (of_call(raises="ValueError"), "tests.calls[1]: the call 'double(3)' has expected='6' and"),
        (of_call(raises="a b"), 'tests.calls[1]: raises is "a b"; expected a name'),
        ({"tests": without(SUITE, "canary")}, "tests has no 'canary'; expected command, format,"),
        (of_suite(timeout=1), "tests has the key 'timeout'; expected command, format, files"),
        (of_suite(command=["pytest"]), 'tests.command is ["pytest"]; expected text'),
        (of_suite(format="nose"), "tests.format is \"nose\"; expected 'unittest' or 'pytest'"),
        (of_suite(files=[]), "tests.files is []; expected an object of texts by path"),
        (of_suite(files={"../a.py": ""}), 'a path of tests.files is "../a.py"; expected one'),
        (of_suite(canary="/tests"), 'tests.canary is "/tests"; expected one inside'),
        (of_suite(fail_to_pass=[]), "tests.fail_to_pass is an empty list; expected at least one"),
        (of_suite(fail_to_pass="a.b"), 'tests.fail_to_pass is "a.b"; expected a list'),
        (
            of_suite(pass_to_pass=["tests/a.py::test_x"]),
            'tests.pass_to_pass[0]: it is "tests/a.py::test_x"; expected a name as unittest repo',
        ),
        (
            of_suite(format="pytest", fail_to_pass=["test_x"]),
            'tests.fail_to_pass[0]: it is "test_x"; expected a name as pytest reports it: tests/te',
        ),
    ],
)
def test_data_that_cannot_be_used_are_refused(changes, said):
    with pytest.raises(ValueError) as caught:
        read_data(Task(name="x", data={**DATA, **changes}))
    found = str(caught.value)
    assert found.startswith(f"swe task 'x': {said}") and found.endswith(": mend the task"), found


@pytest.mark.parametrize("key", DATA)
def test_no_key_of_the_data_may_be_missing(key):
    with pytest.raises(ValueError, match=f"swe task 'x': data has no {key!r}; expected issue, re"):
        read_data(Task(name="x", data=without(DATA, key)))


def test_an_episode_checks_its_task_as_the_loading_does(tokenizer):
    task = Task(name="x", data=DATA | of_call(expected="hello"))
    with pytest.raises(ValueError, match=r"swe task 'x': tests.calls\[1\]: expected is \"hello\""):
        SoftwareEngineering(task, tokenizer, PROFILES["small"])


def test_calls_are_made_on_the_files_of_a_commit(git_task, play):
    task = Task(name="calls", data={**git_task.data, "tests": CALLS})
    for patch, reward in ((GOLD, 1.0), (GOLD.replace("x * 2", "x + 4"), 0.0)):
        player = play(task)
        player.submit(patch)
        player.say(final())
        assert player.last.reward == reward, player.info


@pytest.fixture
def repository(tmp_path):
    """A commit with names and contents that are easily read wrongly."""
    (tmp_path / "folder").mkdir()
    contents = {"a b\tc.py": b"x\n", "folder/ä": b"\0\n\n", "empty": b"", "run": b"#!/bin/sh\n"}
    for path, content in contents.items():
        (tmp_path / path).write_bytes(content)
    (tmp_path / "run").chmod(0o755)
    os.symlink("/etc/passwd", tmp_path / "link")

    def git(*arguments):
        line = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "All")
    (tmp_path / "later").write_text(FIXED)
    git("add", ".")
    commit = git("rev-parse", "HEAD").strip()
    git("commit", "-qm", "More")
    return {"git": str(tmp_path), "commit": commit}, contents


def test_the_files_of_a_commit_are_read_without_links(repository, monkeypatch):
    source, contents = repository
    assert files_of(source) == contents
    monkeypatch.setattr(checkout, "_TREE_BYTES", 3)
    with pytest.raises(EnvironmentFailure, match="has 15 bytes of files; expected at most 3"):
        files_of(source)
