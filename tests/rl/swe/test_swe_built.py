"""Tasks in an image that `forage images` makes: its environment is there, its future is not."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.rl.envs.swe.environment import workspace_maker
from cwm_jax.rl.envs.swe.grading import grade
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.workspaces.checkout import bare_repository, files_of

ROOT = Path(__file__).parents[3]
RIGHT = "def double(x):\n    return x * 2\n"
FAULTY = "def double(x):\n    return x\n"
TEST = """import unittest

from module import double


class ModuleTest(unittest.TestCase):
    def test_double(self):
        self.assertEqual(double(3), 6)

    def test_zero(self):
        self.assertEqual(double(0), 0)
"""


def patch(before: str, after: str) -> str:
    """Of the second lines of both."""
    old, new = before.splitlines()[1], after.splitlines()[1]
    head = "diff --git a/module.py b/module.py\n--- a/module.py\n+++ b/module.py\n"
    return f"{head}@@ -1,2 +1,2 @@\n def double(x):\n-{old}\n+{new}\n"


FAULT, GOLD = patch(RIGHT, FAULTY), patch(FAULTY, RIGHT)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> dict[str, str]:
    """``built`` and the ``commits`` of an image: first, faulty, right."""
    folder = tmp_path_factory.mktemp("images") / "project-1"
    (folder / "root/venv/bin").mkdir(parents=True)
    (folder / "root/testbed").mkdir()
    write_manifest(folder, platform.python_version())
    (folder / "root/venv/bin/tool").write_text("#!/bin/sh\necho a tool of the image\n")
    (folder / "root/testbed/made by [installing]").write_text("old\n")
    work = tmp_path_factory.mktemp("work")

    def git(*arguments: str) -> str:
        line = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(line, cwd=work, capture_output=True, text=True, check=True).stdout

    git("init", "-q", "-b", "main")
    found = {"built": str(folder)}
    for name, text in (("first", FAULTY + "# \n"), ("faulty", FAULTY), ("right", RIGHT)):
        (work / "module.py").write_text(text)
        (work / "test_module.py").write_text(TEST)
        (work / "run").write_bytes(b"\0#!\n")
        (work / "run").chmod(0o755)
        git("add", ".")
        git("commit", "-qm", f"This is {name}")
        found[name] = git("rev-parse", "HEAD").strip()
    git("clone", "-q", "--bare", ".", str(folder / "repository.git"))
    for path in [folder / "root", *(folder / "root").rglob("*")]:
        path.chmod(0o777)
    return found


def write_manifest(folder: Path, python: str) -> None:
    (folder / "manifest.json").write_text(json.dumps({"python": python}))


def task(image: dict[str, str], *, changed: bool, **more) -> Task:
    repository = {"built": image["built"], "commit": image["right" if changed else "faulty"]}
    tests = {
        "command": "python -m unittest -v",
        "format": "unittest",
        "files": {"test_module.py": TEST},
        "fail_to_pass": ["test_module.ModuleTest.test_double"],
        "pass_to_pass": ["test_module.ModuleTest.test_zero"],
        "canary": ".",
    }
    data = {"issue": "double does not", "patch": GOLD, "tests": tests}
    data["repository"] = repository | ({"change": FAULT} if changed else {}) | more
    return Task(name="x", data=data)


@pytest.fixture(params=[True, False], ids=["changed", "past"])
def data(request, image):
    return read_data(task(image, changed=request.param))


def test_the_environment_is_there_and_is_no_part_of_the_repository(data):
    workspace = workspace_maker(data.repository, PROFILES["small"])()
    try:
        assert workspace.root == "/tmp/testbed"
        assert workspace.run("tool; echo $VIRTUAL_ENV; pwd", 20).output == (
            "a tool of the image\n/tmp/venv\n/tmp/testbed\n"
        )
        assert workspace.run("exit", 20).outcome == "exit"
        assert workspace.run("tool", 20).exit_code == 0  # in the next session, too
        found = workspace.run("ls; git status --porcelain; git ls-files; stat -c %A run", 20).output
        files = "module.py\nrun\ntest_module.py\n"
        assert found == f"made by [installing]\n{files}{files}-rwxr-xr-x\n"
        assert workspace.read("/tmp/testbed/module.py", 100) == FAULTY.encode()
    finally:
        workspace.close()


def test_a_changed_commit_has_no_past_and_no_commit_has_a_future(data, image):
    workspace = workspace_maker(data.repository, PROFILES["small"])()
    objects = "git cat-file --batch-all-objects --batch-check | cut -d' ' -f1"
    try:
        log = workspace.run("git log --all --format=%s; git remote; git reflog", 20).output
        found = workspace.run(objects, 20).output.split()
    finally:
        workspace.close()
    if "change" in data.repository:
        assert log == "The project as it is\n"
        assert not {image["first"], image["faulty"], image["right"]} & {*found}
    else:
        assert log == "This is faulty\nThis is first\n"
        assert image["first"] in found and image["right"] not in found
    names = subprocess.run(
        ["git", "hash-object", "--stdin"], input=RIGHT.encode(), capture_output=True, check=True
    ).stdout.decode()
    assert names.strip() not in found  # the right file is nowhere


def test_the_gold_patch_passes_and_another_does_not(data):
    make = workspace_maker(data.repository, PROFILES["small"])
    assert grade(data, GOLD, timeout_s=20, make_workspace=make).reason == ""
    wrong = grade(data, GOLD.replace("x * 2", "x * 3"), timeout_s=20, make_workspace=make)
    assert "1 of 2 hidden tests fail" in wrong.reason


def test_the_changed_files_are_those_that_calls_get(image):
    data = read_data(task(image, changed=True))
    assert files_of(data.repository)["module.py"] == FAULTY.encode()
    other = bare_repository({**data.repository, "commit": image["right"]})
    assert other == bare_repository(data.repository)  # made once


def test_what_cannot_be_is_refused(image, tmp_path):
    with pytest.raises(ValueError, match=r"repository.change is .* which changes no file"):
        read_data(task(image, changed=True, change="nothing"))
    with pytest.raises(ValueError, match="has the key 'branch'; expected built, commit"):
        read_data(task(image, changed=False, branch="x"))
    gone = read_data(task(image | {"built": str(tmp_path)}, changed=False))
    with pytest.raises(EnvironmentFailure, match="git fetch on this host"):
        workspace_maker(gone.repository, PROFILES["small"])()
    subprocess.run(["cp", "-r", f"{image['built']}/repository.git", str(tmp_path)], check=True)
    with pytest.raises(EnvironmentFailure, match="is no image on this machine"):
        workspace_maker(gone.repository, PROFILES["small"])()
    (tmp_path / "root").mkdir()
    for python, said in (("2.7.18", "is of Python 2.7.18"), (None, "no manifest that can be")):
        write_manifest(tmp_path, python) if python else (tmp_path / "manifest.json").unlink()
        with pytest.raises(EnvironmentFailure, match=said):
            workspace_maker(gone.repository, PROFILES["small"])()
    twice = read_data(task(image, changed=True, change=FAULT.replace("x * 2", "x * 9")))
    with pytest.raises(EnvironmentFailure, match="git apply on this host"):
        workspace_maker(twice.repository, PROFILES["small"])()


def test_the_image_stays_as_it_is(data):
    root = Path(data.repository["built"], "root")
    before = sorted(os.walk(root))
    workspace = workspace_maker(data.repository, PROFILES["small"])()
    try:
        assert workspace.run("rm -rf /tmp/venv; echo > new; rm made*", 20).exit_code == 0
    finally:
        workspace.close()
    assert sorted(os.walk(root)) == before


def test_what_a_killed_process_has_left_is_removed(tmp_path):
    code = """
import os, signal, sys
from cwm_jax.rl.envs.swe.workspaces.checkout import bare_repository
print(bare_repository({"files": {"a": "x"}}).parent, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""
    made = {"cwd": ROOT, "env": {**os.environ, "TMPDIR": str(tmp_path)}, "text": True}
    made |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    folders, running = [], []
    for how in ("killed", "alive", "alive"):
        process = subprocess.Popen([sys.executable, "-c", code, how], **made)
        folders.append(Path(process.stdout.readline().strip()))
        running.append(process)
        if how == "killed":
            process.wait()
            assert folders[0].exists()
    assert [folder.exists() for folder in folders] == [False, True, True]
    for process in running:
        process.communicate()
    assert not [*tmp_path.glob("repositories-*")]
