"""Tasks of images, of faults and of commits: each is sound, for any number of workers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cwm_jax.forager.agent.loop import repository_name
from cwm_jax.forager.decontamination import KnownTexts
from cwm_jax.forager.documents.pull_requests import read_issues
from cwm_jax.forager.images.store import Image, Store
from cwm_jax.forager.tasks.issue_fix import IssueFixSettings, issue_fix
from cwm_jax.forager.tasks.mutate_fix import MutateFixSettings, mutate_fix
from cwm_jax.forager.tasks.trials import Trial, table, write_tasks
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.rl.envs.swe.environment import workspace_maker
from cwm_jax.rl.envs.swe.grading import grade, is_of_tests
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.storage import StorageError
from cwm_jax.trace.corpus.engines import LocalEngine
from tests.forager.images_made import image_of, repository
from tests.forager.packages_made import FILES, PASSED

COUNT = 3
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def images(store, tmp_path_factory) -> list[Path]:
    """Two projects that differ in a name."""
    folder = tmp_path_factory.mktemp("projects")
    other = {path.replace("shapes", "forms"): text for path, text in FILES.items()}
    other = {path: text.replace("shapes", "forms") for path, text in other.items()}
    found = []
    for name, files in (("shapes", FILES), ("forms", other)):
        checkout = repository(folder / name, ("All", files))
        found.append(image_of(store, checkout, name=name).path)
    return sorted(found)


def made(images, folder, *, count=COUNT, workers=1, **settings) -> list[Trial]:
    chosen = MutateFixSettings(timeout_s=30.0, **settings)
    return mutate_fix(images, folder, chosen, count=count, engine=LocalEngine(workers))


@pytest.fixture(scope="module")
def one(images, tmp_path_factory) -> tuple[Path, list[Trial]]:
    folder = tmp_path_factory.mktemp("one")
    return folder, made(images, folder)


def tasks_of(folder: Path, trials: list[Trial]) -> list[Task]:
    write_tasks(folder, trials)
    return [Task(**json.loads(line)) for line in (folder / "tasks.jsonl").read_text().splitlines()]


def test_each_fault_is_noticed_by_tests_that_run_it_alone_and_mended_by_its_patch(one):
    tasks = tasks_of(*one)
    assert len(tasks) == COUNT == len({task.name for task in tasks})
    for task in tasks:
        data = read_data(task)
        path, _, function = task.data["fault"]["place"].partition(":")
        assert not is_of_tests(path) and repository_name(data) in ("shapes", "forms")
        failing = data.tests.fail_to_pass
        assert failing and {*failing} | {*data.tests.pass_to_pass} == {*PASSED}
        # What the fixture's tests run, by hand.
        runs = {"scaled": {"scaled"}, "total": {"total"}}.get(function, {"square", "total"})
        if function != "(module)":
            assert {name.rpartition("_")[2] for name in failing} <= runs, (function, failing)
        make = workspace_maker(data.repository, PROFILES["small"])
        assert grade(data, task.data["patch"], timeout_s=30, make_workspace=make).passed
        idle = grade(data, nothing_of(task), timeout_s=30, make_workspace=make)
        assert not idle.passed and f"{len(failing)} of {len(PASSED)} hidden" in idle.reason


def nothing_of(task: Task) -> str:
    """A patch that adds a file of no use."""
    head = "diff --git a/new b/new\nnew file mode 100644\n--- /dev/null\n+++ b/new\n"
    return head + "@@ -0,0 +1 @@\n+x\n"


def test_the_issue_tells_of_a_failing_test_and_no_line_of_the_fix(one):
    for task in tasks_of(*one):
        failing = task.data["tests"]["fail_to_pass"]
        assert failing[0] in task.data["issue"]
        added = [line[1:].strip() for line in task.data["patch"].splitlines() if line[:1] == "+"]
        assert not [line for line in added[1:] if len(line) > 5 and line in task.data["issue"]]


def test_the_rest_of_the_file_keeps_its_form(one, images):
    for task in tasks_of(*one):
        lines = task.data["patch"].splitlines()
        changed = [line for line in lines[3:] if line[:1] in "+-"]
        assert 0 < len(changed) <= 12, task.data["patch"]


def test_four_workers_give_the_same_bytes(one, images, tmp_path):
    made(images, tmp_path / "other", workers=4)
    same = (one[0] / "trials.jsonl").read_bytes() == (tmp_path / "other/trials.jsonl").read_bytes()
    assert same


def test_ray_gives_the_same_bytes(one, store, tmp_path):
    """In a process of its own, as Ray and jax fork in each other's way."""
    pytest.importorskip("ray")
    line = [*command(store, tmp_path / "other", count=1, workers=2), "--engine", "ray"]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    found = (tmp_path / "other/trials.jsonl").read_bytes()
    assert found and (one[0] / "trials.jsonl").read_bytes().startswith(found)


def command(store: Store, folder: Path, *, count: int, workers: int) -> list[str]:
    code = "import sys; from cwm_jax.__main__ import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, "forage", "tasks", "mutate-fix", "--timeout", "30"]
    line += ["--images", str(store.folder), "--out", str(folder)]
    return [*line, "--count", str(count), "--workers", str(workers)]


def test_another_seed_gives_other_tasks(one, images, tmp_path):
    other = made(images, tmp_path / "other", seed=1, count=2)
    assert [trial.what for trial in other] != [trial.what for trial in one[1][: len(other)]]


def test_a_run_goes_on_and_refuses_other_settings(one, images, tmp_path):
    folder = tmp_path / "run"
    made(images, folder, count=2)
    path = folder / "trials.jsonl"
    path.write_bytes(path.read_bytes() + b'{"number": 99')  # torn by a kill
    made(images, folder)
    assert path.read_bytes() == (one[0] / "trials.jsonl").read_bytes()
    with pytest.raises(StorageError, match="other settings"):
        made(images, folder, seed=3)


def test_killed_at_any_moment_it_loses_the_trials_in_flight_alone(one, images, store, tmp_path):
    folder = tmp_path / "run"
    line = command(store, folder, count=COUNT, workers=1)
    for wait_for in (1, 2):
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)
        path, deadline = folder / "trials.jsonl", time.monotonic() + 120
        while not path.exists() or path.read_bytes().count(b"\n") < wait_for:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = path.read_bytes()
        expected = (one[0] / "trials.jsonl").read_bytes()
        whole = kept[: kept.rfind(b"\n") + 1]
        assert expected.startswith(whole) and whole.count(b"\n") >= wait_for
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    assert (folder / "trials.jsonl").read_bytes() == expected
    assert len((folder / "tasks.jsonl").read_text().splitlines()) == COUNT


def test_statistics_count_what_there_is(one):
    folder, trials = one
    found = write_tasks(folder, trials)
    assert found["tasks"] == COUNT == sum(found["kinds"].values())
    assert found["trials"] == len(trials) == sum(found["outcomes"].values())
    assert f"| all | {len(trials)} | {COUNT} |" in table(found)


def test_a_task_near_a_known_text_is_none(one, images, tmp_path):
    first = next(trial for trial in one[1] if trial.task)
    known = KnownTexts({"theirs": first.task["data"]["issue"].upper()})
    chosen = MutateFixSettings(timeout_s=30.0)
    trials = mutate_fix(
        images, tmp_path / "run", chosen, count=1, engine=LocalEngine(1), known=known
    )
    assert trials[first.number].outcome == "near a known text" and not trials[first.number].task
    assert trials[-1].task and trials[-1].number > first.number


# A history with a mended fault, a change without tests, one of tests alone, and one that
# speaks of no fault.
BUG = FILES["shapes/area.py"]
WIDER = BUG.replace("return width - height", "return width - height  # the rest")
NEW_TEST = FILES["tests/test_area.py"].replace(
    "        self.assertEqual(1, 1)\n",
    "        self.assertEqual(1, 1)\n\n    def test_negative(self):\n"
    "        self.assertEqual(scaled(-5, -2), 2)\n",
)
MENDED = BUG.replace("    return height\n", "    return abs(height)\n")


@pytest.fixture(scope="module")
def history(store, tmp_path_factory) -> Image:
    checkout = repository(
        tmp_path_factory.mktemp("history") / "project",
        ("First", FILES),
        ("Mend #7: heights below zero", {"shapes/area.py": MENDED, "tests/test_area.py": NEW_TEST}),
        ("Fix a word", {"shapes/area.py": MENDED + "\n# End.\n"}),
        ("Fix the tests", {"tests/test_area.py": NEW_TEST + "\n# End.\n"}),
        ("Speak better", {"shapes/area.py": MENDED, "tests/test_area.py": NEW_TEST}),
        (
            "Fixed: nothing that a test shows",
            {"shapes/area.py": MENDED + "\n# Here.\n", "tests/test_area.py": NEW_TEST + "\n#\n"},
        ),
    )
    return image_of(store, checkout, name="history")


def test_a_commit_that_mends_a_fault_is_a_task(history, tmp_path):
    trials = issue_fix(
        [history.path], tmp_path, IssueFixSettings(), count=None, engine=LocalEngine(1)
    )
    assert [(trial.what.partition(": ")[2], trial.outcome) for trial in trials] == [
        ("Fixed: nothing that a test shows", "no test is mended"),
        ("Fix the tests", "no code is changed"),
        ("Fix a word", "no test is changed"),
        ("Mend #7: heights below zero", "task"),
    ]
    (task,) = tasks_of(tmp_path, trials)
    data = read_data(task)
    assert data.issue == "Mend #7: heights below zero"
    assert data.tests.fail_to_pass == ["tests.test_area.AreaTest.test_negative"]
    assert {*data.tests.pass_to_pass} == {*PASSED} and "tests/" not in task.data["patch"]
    make = workspace_maker(data.repository, PROFILES["small"])
    assert grade(data, task.data["patch"], timeout_s=30, make_workspace=make).passed
    assert not grade(data, nothing_of(task), timeout_s=30, make_workspace=make).passed
    workspace = make()
    try:
        seen = workspace.run("git log --format=%s; cat tests/test_area.py shapes/area.py", 20)
    finally:
        workspace.close()
    assert seen.output.startswith("First\n") and "abs" not in seen.output
    assert "test_negative" not in seen.output


def numbered(mended: int) -> dict[str, str]:
    """A module of ten functions, so many of them right and tested."""
    lines = ["import unittest", "", "import ten", "", "", "class TenTest(unittest.TestCase):"]
    lines += ["    def test_all(self):", "        self.assertEqual(len(vars(ten)) > 10, True)"]
    for n in range(mended):
        lines += ["", f"    def test_{n}(self):", f"        self.assertEqual(ten.f{n}(5), {5 + n})"]
    wrong = ("x" if n < mended else "2" for n in range(10))
    code = "\n\n".join(f"def f{n}(x):\n    return {word} + {n}" for n, word in enumerate(wrong))
    return {"ten.py": code + "\n", "tests/test_ten.py": "\n".join(lines) + "\n"}


def test_ten_commits_of_a_history_are_ten_tasks(store, tmp_path):
    commits = [(f"Fix f{n - 1}", numbered(n)) for n in range(1, 11)]
    first = ("Begin", {**numbered(0), "tests/__init__.py": ""})
    image = image_of(store, repository(tmp_path / "ten", first, *commits), name="ten")
    trials = issue_fix(
        [image.path], tmp_path / "run", IssueFixSettings(), count=None, engine=LocalEngine(2)
    )
    tasks = tasks_of(tmp_path / "run", trials)
    assert [task.data["issue"] for task in tasks] == [f"Fix f{n}" for n in range(9, -1, -1)]
    for task in (tasks[0], tasks[-1]):
        data = read_data(task)
        make = workspace_maker(data.repository, PROFILES["small"])
        assert grade(data, task.data["patch"], timeout_s=30, make_workspace=make).passed
        assert not grade(data, nothing_of(task), timeout_s=30, make_workspace=make).passed


def test_the_issue_is_the_one_that_the_message_names(history, tmp_path):
    path = tmp_path / "issues.jsonl"
    path.write_text('{"number": 7, "title": "Depths", "body": "scaled(-5, -2) is -2"}\n')
    settings = IssueFixSettings(issues=read_issues(path))
    trials = issue_fix([history.path], tmp_path / "run", settings, count=1, engine=LocalEngine(1))
    (task,) = tasks_of(tmp_path / "run", trials)
    assert task.data["issue"] == "# Depths\n\nscaled(-5, -2) is -2"


def test_images_without_a_history_or_a_function_are_refused(images, tmp_path):
    with pytest.raises(ValueError, match="has a history with a commit that speaks of a fault"):
        issue_fix(images, tmp_path, IssueFixSettings(), count=1, engine=LocalEngine(1))
