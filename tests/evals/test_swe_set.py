"""The sets of software engineering: their files, their attempts, and when two patches are one."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rl.swe.fake_engine import IMAGE, FakeEngine

from benchmarks.swe_episode import small_tokenizer
from benchmarks.test_time_scaling import patch_of, patch_turns, test_of, test_turns
from cwm_jax.evals.problem import Answer, Prompt, SetOptions, Verdict
from cwm_jax.evals.sets.swe import ENTRIES
from cwm_jax.evals.swe.attempt import action_of, patch_answer
from cwm_jax.evals.swe.forms import form_of
from cwm_jax.evals.swe.rows import load_tasks, task_of_row
from cwm_jax.rl.envs.swe.data import read_data
from cwm_jax.rl.envs.swe.environment import workspace_maker
from cwm_jax.rl.envs.swe.grading import grade
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.prompts import OTHER, REPRODUCED, RESOLVED
from cwm_jax.rl.envs.swe.shipped.tasks import diff_of, shipped_tasks
from cwm_jax.rl.envs.swe.suite import parse_django, parse_swebench_pytest, parse_sympy
from cwm_jax.rl.envs.swe.workspaces import container
from cwm_jax.rl.envs.swe.workspaces.engine import Engine
from cwm_jax.tokenizer import END_OF_TURN

for _script in (test_of, test_turns):
    _script.__test__ = False  # they are no tests of pytest's

MODULE = "def double(x):\n    return x + 2\n"
OLD_TEST = "from module import double\n\n\ndef test_two():\n    assert double(2) == 4\n"
GOLD = """\
diff --git a/module.py b/module.py
--- a/module.py
+++ b/module.py
@@ -1,2 +1,2 @@
 def double(x):
-    return x + 2
+    return x * 2
"""
SCRIPT = """\
#!/bin/bash
set -uxo pipefail
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
cd {root}
git apply -v - <<'EOF_1'
diff --git a/tests/test_module.py b/tests/test_module.py
--- a/tests/test_module.py
+++ b/tests/test_module.py
@@ -4,2 +4,7 @@
 def test_two():
     assert double(2) == 4
+
+
+# as pytest tests/test_module.py runs it
+def test_three():
+    assert double(3) == 6
EOF_1
: '>>>>> Start Test Output'
{python} -m pytest -rA -p no:cacheprovider tests/test_module.py
: '>>>>> End Test Output'
git checkout HEAD tests/test_module.py
"""


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def tasks():
    return shipped_tasks(0, 2)


def row(**changes):
    return {
        "instance_id": "django__django-1",
        "repo": "django/django",
        "problem_statement": "It is wrong",
        "patch": GOLD,
        "eval_script": "cd /testbed\n./tests/runtests.py --verbosity 2 --parallel 1 a.tests b.b2\n",
        "FAIL_TO_PASS": '["test_x (b.b2.BTest)", "What it does"]',
        "PASS_TO_PASS": [],
        **changes,
    }


def played(problem, turns, tokenizer):
    """The verdict, and the prompts, of an attempt that is given these turns."""
    attempt = problem.attempt()
    end = tokenizer.special_tokens[END_OF_TURN]
    try:
        prompts = [attempt.start()]
        for text in turns:
            ids = [*tokenizer.encode(text), end]
            said = attempt.step(Answer(text=text, finish_reason="stop", token_ids=ids))
            if isinstance(said, Verdict):
                return said, prompts
            prompts.append(said)
    finally:
        attempt.close()
        attempt.close()
    raise AssertionError("no verdict")


def test_an_attempt_is_an_episode_and_its_verdict_keeps_the_patch(tasks, tokenizer, tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"name": tasks[0].name, "data": tasks[0].data}) + "\n")
    options = SetOptions(mode="small", tokenizer=tokenizer, max_tokens=900)
    loaded = ENTRIES["swe"].load(path, options)
    (problem,) = loaded.problems
    assert (loaded.name, problem.name) == ("swe/small", tasks[0].name)
    assert (loaded.temperature, loaded.top_p, loaded.published) == (1.0, 0.95, {})
    assert problem.text == tasks[0].data["issue"] and problem.labels == {"fault": "functions"}
    turns = patch_turns(tasks[0], "right")
    verdict, prompts = played(problem, turns, tokenizer)
    assert verdict.passed and verdict.info["patch"].strip() == tasks[0].data["patch"].strip()
    assert verdict.answer == patch_answer(tasks[0].data["repository"], tasks[0].data["patch"])
    assert verdict.info["turns"] == 3 and verdict.scores["submitted"] == 1.0
    assert verdict.info["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in turns)
    assert all(isinstance(p, Prompt) and p.max_tokens == 900 for p in prompts)
    for before, after, text in zip(prompts, prompts[1:], turns, strict=False):
        assert after.tokens[: len(before.tokens)] == before.tokens
        assert tokenizer.decode(after.tokens[len(before.tokens) :]).startswith(text)


def test_without_a_tokenizer_or_with_another_mode_it_says_so(tasks):
    with pytest.raises(ValueError, match="in the model's tokens, and no tokenizer is given"):
        ENTRIES["swe_shipped"].load(None, SetOptions(mode="small", values={"count": "2"}))
    with pytest.raises(ValueError, match="option count is 'two'; expected a whole number"):
        ENTRIES["swe_shipped"].load(None, SetOptions(mode="small", values={"count": "two"}))
    with pytest.raises(ValueError, match="mode is 'big'; expected eval or small"):
        ENTRIES["swe_shipped"].load(None, SetOptions(mode="big", values={"count": "2"}))


def test_text_without_tokens_is_the_same_action(tokenizer):
    end = tokenizer.special_tokens[END_OF_TURN]
    ids = [*tokenizer.encode("a\n</think>\nb"), end]
    assert action_of(Answer(text="x", finish_reason="stop", token_ids=ids), tokenizer) == ids
    assert action_of(Answer(text="a\n</think>\nb", finish_reason="stop"), tokenizer) == ids
    apart = Answer(text="\nb", reasoning="a\n", finish_reason="stop")
    assert tokenizer.decode(action_of(apart, tokenizer)[:-1]) == "a\n</think>\nb"
    assert end not in action_of(Answer(text="a", finish_reason="length"), tokenizer)


def test_a_test_passes_if_it_reproduces_the_issue_and_says_nothing_else(tasks, tokenizer):
    options = SetOptions(mode="small", tokenizer=tokenizer, values={"count": "1"})
    (problem,) = ENTRIES["swe_shipped_tests"].load(None, options).problems
    verdict, prompts = played(problem, test_turns(tasks[0], "weak"), tokenizer)
    assert verdict.passed and verdict.info["test"].strip() == test_of(tasks[0], "weak").strip()
    opening = tokenizer.decode(prompts[0].tokens)
    assert all(opening.count(f"* {phrase}\n") == 1 for phrase in (REPRODUCED, RESOLVED, OTHER))
    assert "changes as a git diff" not in opening
    submitted = tokenizer.decode(prompts[2].tokens)
    assert "This test is submitted:\n\nimport importlib" in submitted
    verdict, _ = played(problem, test_turns(tasks[0], "always"), tokenizer)
    assert (
        not verdict.passed
        and verdict.reason == f"it prints {RESOLVED!r} on the original repository"
    )


def test_patches_that_make_the_same_code_are_one(tasks):
    repository = tasks[0].data["repository"]
    keys = {
        kind: patch_answer(repository, patch_of(tasks[0], kind))
        for kind in ("right", "commented", "half")
    }
    assert keys["right"] == keys["commented"] != keys["half"]
    assert keys["right"] == patch_answer(repository, "words\n" + patch_of(tasks[0], "right"))


@pytest.mark.parametrize(
    ("after", "same"),
    [
        ("def f(a):\n    # why\n    return (a+1)\n", True),
        ('def f(a):\n    "What it does."\n    return a + 1\n', True),
        ("def f(b):\n    return b + 1\n", False),
        ("def f(a):\n    return 1 + a\n", False),
        ("def f(a):\n    return a + 1  # \\d\n    )\n", False),
    ],
)
def test_comments_docstrings_and_spaces_do_not_count(after, same):
    before = {"m.py": "def f(a):\n    return a\n"}

    def key(text):
        form = form_of(diff_of(before, {"m.py": text}), lambda path: before[path].encode())
        return form.key

    assert (key(after) == key("def f(a):\n    return a + 1\n")) is same


def test_what_changes_nothing_that_counts_is_no_patch():
    files = {"m.py": "a = 1\n", "tests/test_m.py": "assert 1\n", "README.md": "x\n"}

    def form(changes):
        diff = diff_of(files, {**files, **changes})
        return form_of(diff, lambda path: files[path].encode())

    assert form({"m.py": "a = 1  # one\n"}) is None
    assert form({"tests/test_m.py": "assert 2\n"}) is None
    assert form({"README.md": "y\n"}) is not None
    both = form({"tests/test_m.py": "assert 2\n", "m.py": "a = 2\n"})
    assert [patch.path for patch in both.patches] == ["m.py"]
    assert form_of("no patch", lambda path: None) is None
    assert form_of(GOLD, lambda path: None) is None  # there is no such file


@pytest.mark.parametrize(
    ("line", "form", "canary", "end"),
    [
        (
            "./tests/runtests.py --parallel 1 a.tests b.b2",
            "django",
            "tests/b",
            "b.b2 {canary_module}",
        ),
        ("pytest -rA lib/tests/test_a.py", "swebench_pytest", "lib/tests", "test_a.py {canary}"),
        ("pytest -rA testing/test_a.py::test_b", "swebench_pytest", "testing", "test_b {canary}"),
        ("pytest -rA test_a.py", "swebench_pytest", ".", "test_a.py {canary}"),
        ("tox --current-env -epy39 -v -- tests/test_a.py", "swebench_pytest", "tests", "{canary}"),
        (
            "bin/test -C --verbose sympy/core/tests/test_a.py",
            "sympy",
            "sympy/core/tests",
            "{canary}",
        ),
    ],
)
def test_the_line_that_runs_tests_gets_the_canary(line, form, canary, end):
    names = '["a/b.py::test_x[1 2]"]' if form == "swebench_pytest" else '["test_x"]'
    task = task_of_row(
        row(eval_script=f"cd x\n{line}\ngit checkout 1 {line}\n", FAIL_TO_PASS=names)
    )
    tests = read_data(task).tests
    assert (tests.format, tests.canary) == (form, canary)
    script = shlex.split(tests.command)[2]
    assert script.split("\n")[1].endswith(end) and script.split("\n")[2] == f"git checkout 1 {line}"
    assert tests.fail_to_pass == (["a/b.py::test_x[1"] if form == "swebench_pytest" else ["test_x"])


def test_a_row_is_a_task_in_the_official_image(tmp_path, tokenizer):
    task = task_of_row(row())
    image = "docker.io/swebench/sweb.eval.x86_64.django_1776_django-1:latest"
    assert task.data["repository"] == {"image": image, "root": "/testbed"}
    assert task.data["tests"]["fail_to_pass"] == ["b.b2.BTest.test_x", "What it does"]
    given = row(docker_url="x/y:1", repo_root_path="/r", issue="As told", instance_id="b")
    other = task_of_row(given)
    assert other.data["repository"] == {"image": "x/y:1", "root": "/r"}
    assert other.data["issue"] == "As told"
    lines, array = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_text(json.dumps(row()) + "\n\n" + json.dumps(given) + "\n")
    array.write_text(json.dumps([row(), given], indent=1))
    assert load_tasks(lines) == load_tasks(array) == ([task, other], "rows")
    loaded = ENTRIES["swe"].load(lines, SetOptions(mode="eval", tokenizer=tokenizer))
    assert (
        loaded.published["CWM"] == 53.9
        and loaded.problems[0].labels["repository"] == "django/django"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_script": None}, "the row has no 'eval_script'"),
        ({"eval_script": "make test\n"}, "eval_script has no line that ends with the tests"),
        ({"eval_script": "pytest -rA\n"}, "eval_script has no line that ends with the tests"),
        ({"FAIL_TO_PASS": "test_x"}, 'FAIL_TO_PASS is "test_x"'),
        ({"FAIL_TO_PASS": []}, "tests.fail_to_pass is an empty list"),
        ({"patch": "nothing"}, 'patch is "nothing", which changes no file'),
        ({"instance_id": 3}, "instance_id is 3; expected text"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_place(tmp_path, changes, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row(instance_id="a")) + "\n" + json.dumps(row(**changes)) + "\n")
    with pytest.raises(ValueError) as error:
        load_tasks(path)
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)


def test_a_row_is_judged_by_its_script_in_a_container(tmp_path, monkeypatch):
    image, root = tmp_path / "image", tmp_path / "testbed"
    (image / "tests").mkdir(parents=True)
    (image / "module.py").write_text(MODULE)
    (image / "tests/test_module.py").write_text(OLD_TEST)
    (image / "conftest.py").write_text("")  # makes pytest import from here
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for line in (["init", "-q"], ["add", "."], ["commit", "-qm", "Base"]):
        subprocess.run([*git, *line], cwd=image, check=True)
    script = SCRIPT.format(root=root, python=sys.executable)
    task = task_of_row(
        row(
            eval_script=script,
            docker_url=IMAGE,
            repo_root_path=str(root),
            FAIL_TO_PASS=["tests/test_module.py::test_three"],
            PASS_TO_PASS=["tests/test_module.py::test_two"],
        )
    )
    fake = FakeEngine(tmp_path / "engine.sock", image, root)
    try:
        monkeypatch.setattr(container, "find_engine", lambda: Engine(tmp_path / "engine.sock"))
        data, profile = read_data(task), PROFILES["small"]
        make = workspace_maker(data.repository, profile)
        reasons = [
            grade(data, patch, timeout_s=30, make_workspace=make).reason
            for patch in (GOLD, GOLD.replace("x * 2", "2 + x"))
        ]
    finally:
        fake.stop()
    assert reasons == ["", "1 of 2 hidden tests fail: tests/test_module.py::test_three"]


def test_what_the_runners_of_swe_bench_write_is_read():
    assert parse_swebench_pytest(
        "PASSED t.py::a[1 2]\nFAILED t.py::a[1 3] - x\nPASSED t.py::b\n"
    ) == {
        "t.py::a[1": False,
        "t.py::b": True,
    }
    django = (
        "test_a (m.T) ... ok\ntest_b (m.T)\nWhat it does ... FAIL\ntest_c (m.T.test_c) ... ok\n"
    )
    assert parse_django(django) == {
        "m.T.test_a": True,
        "m.T.test_b": False,
        "m.T.test_c": True,
        "What it does": False,
    }
    sympy = "sympy/a.py[3] \ntest_a ok\ntest_b F\ntest_c E\ntest_d f                    [FAIL]\n"
    assert parse_sympy(sympy) == {"test_a": True, "test_b": False, "test_c": False, "test_d": False}


def test_sets_and_choices_load_without_jax():
    code = (
        "import sys, cwm_jax.evals.sets.swe, cwm_jax.evals.test_time.scaling; print(*sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert not {"jax", "flax", "optax"} & {name.split(".")[0] for name in done.stdout.split()}
