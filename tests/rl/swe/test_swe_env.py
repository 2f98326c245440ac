"""Episodes: form, budgets, endings, rewards; repositories of git, and suites of tests."""

import dataclasses
import json
import os
import re
import time

import pytest
from swe_players import GOLD, OLD_TEST, Player, call, final, output

from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering, reward_of
from cwm_jax.rl.envs.swe.grading import Verdict
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.suite import parse_pytest, parse_unittest
from cwm_jax.rl.envs.swe.workspaces.local import LocalWorkspace
from cwm_jax.sandbox import SandboxError

LOOK = call("bash", "true")


def test_the_profiles_have_the_released_limits():
    released, evaluation = PROFILES["released"], PROFILES["eval"]
    assert (released.max_turns, released.context_tokens, released.action_tokens) == (
        128,
        131_072,
        65_536,
    )
    assert (released.prompt_tokens, released.tool_message_tokens) == (8_192, 32_768)
    assert (released.session_timeout_s, released.sandbox_s, released.test_timeout_s) == (
        120,
        2_400,
        300,
    )
    assert released.strict_format and released.similarity_threshold == 0.5
    assert (evaluation.sandbox_s, evaluation.test_timeout_s) == (7_200, 600)
    assert not evaluation.strict_format and evaluation.similarity_threshold is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        released.max_turns = 1


@pytest.mark.parametrize(
    ("passed", "similarity", "threshold", "scale", "reward"),
    [
        (True, 0.1, 0.5, 2.0, 1.0),
        (False, 0.5, 0.5, 2.0, 0.0),
        (False, 0.49, 0.5, 2.0, -1.0),
        (True, 0.1, 0.5, 1.0, 0.0),
        (False, 0.5, 0.5, 1.0, -0.5),
        (False, 0.9, None, 2.0, -1.0),
    ],
)
def test_rewards_are_those_of_the_report(passed, similarity, threshold, scale, reward):
    profile = dataclasses.replace(
        PROFILES["small"], similarity_threshold=threshold, reward_scale=scale
    )
    verdict = Verdict(passed=passed, reason="", similarity=similarity)
    assert reward_of(verdict, profile) == reward


def test_the_prompt_is_a_system_message_the_issue_and_an_open_turn(tasks, play, tokenizer):
    player = play(tasks[0])
    assert player.read.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n")
    assert tasks[0].data["issue"].strip() in player.read
    assert player.read.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n<think>\n")
    assert "/tmp/testbed" in player.read and "12 turns and 16384 tokens" in player.read
    plain = play(tasks[0], think=False)
    assert "<think>" not in plain.read
    assert plain.read.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert output(plain.say("<tool: bash>\necho hi\n</tool>")) == "hi\n"


def test_a_long_issue_loses_its_beginning(tasks, play, tokenizer):
    issue = "".join(f"word{n} " for n in range(5000))
    player = play(Task(name="long", data={**tasks[0].data, "issue": issue}), prompt_tokens=500)
    user = player.read.split("<|start_header_id|>user<|end_header_id|>")[1].split("<|eot_id|>")[0]
    assert user.startswith("\n\n[...]") and "word4999 \n</issue>" not in user
    assert user.endswith("## Checks") and "word4999" in user and "word100 " not in user
    assert len(tokenizer.encode(user)) <= 500


def test_the_budget_counts_every_token_and_turn(tasks, play, tokenizer):
    player = play(tasks[0])
    for turn in range(1, 4):
        shown = player.say(call("bash", f"seq {turn}"))
        assert output(shown) == "".join(f"{n}\n" for n in range(1, turn + 1))
        turns, tokens = map(int, re.findall(r"\* Remaining \w+: (\d+)", shown))
        assert turns == 12 - turn and player.info["turns"] == turn
        # Its own digits may be more or fewer tokens, so that no number is right.
        assert 16_384 - len(player.tokens) - tokens in (0, 1)
        assert player.room == min(2_048, tokens)


def test_long_output_loses_its_end_and_the_budget_stays(tasks, play, tokenizer):
    player = play(tasks[0])
    shown = player.say(call("bash", "seq 20000"))
    said = shown.split("<|eot_id|>")[0] + "<|eot_id|>"
    assert len(tokenizer.encode_with_special_tokens(said)) <= 2_048
    assert "1\n2\n3\n" in shown and "[...]\n</output>\n\n<budget>\n* Remaining turns: 11" in shown


def test_out_of_turns_is_a_failure_and_the_last_turn_can_be_the_final_answer(tasks, play):
    player = play(tasks[0], max_turns=3)
    assert player.say(LOOK) and player.say(LOOK)
    assert player.say(LOOK) == "" and player.last.reward == -1.0
    assert player.info["reason"].startswith("out of turns") and not player.info["pass"]
    player = play(tasks[0], max_turns=3)
    player.submit(tasks[0].data["patch"])
    player.say(final())
    assert player.last.reward == 1.0


def test_out_of_tokens_is_a_failure(tasks, play):
    player = play(tasks[0], context_tokens=1_900, tool_message_tokens=400)
    for _ in range(12):
        if player.say(call("bash", "seq 1000")) == "":
            break
        assert 16 <= player.room <= 1_900
    assert player.info["reason"] == "out of tokens: all of 1900 are used"
    assert player.last.reward == -1.0


def test_out_of_time_is_a_failure(tasks, play):
    player = play(tasks[0], sandbox_s=0.5)
    assert player.say(call("bash", "sleep 60")) == ""
    assert player.info["reason"].startswith("out of time") and player.last.reward == -1.0


WRONG = [
    ("no end of reasoning", "has 0 </think>"),
    ("</think>nothing is called", "no patch is submitted"),
    (call("python", "print(1)"), "There is no tool 'python'. The tools are bash, edit, create,"),
    ("</think><tool: bash>\nls\n</tool><tool: bash>\nls\n</tool>", "calls 2 tools"),
]


@pytest.mark.parametrize(("text", "complaint"), WRONG)
def test_under_a_strict_format_an_error_ends_the_episode(tasks, play, text, complaint):
    player = play(tasks[0])
    assert player.say(text) == "" and player.last.reward == -1.0
    assert player.info["reason"].startswith("format: ") and complaint in player.info["reason"]
    assert player.info == {**player.info, "pass": False, "submitted": False, "format_errors": 1}


@pytest.mark.parametrize(("text", "complaint"), WRONG)
def test_else_the_policy_is_told_as_by_the_user(tasks, play, text, complaint):
    player = play(tasks[0], strict_format=False)
    shown = player.say(text)
    assert shown.startswith("<|start_header_id|>user<|end_header_id|>\n\n") and complaint in shown
    assert "* Remaining turns: 11" in shown and "<output>" not in shown
    player.submit(tasks[0].data["patch"])
    player.say(final("done"))  # a report in markdown is not asked for either
    assert player.last.reward == 1.0 and player.info["format_errors"] == 1


def test_edit_and_create_can_be_left_out(tasks, play):
    player = play(tasks[0], tools=("bash", "submit"), strict_format=False)
    assert "* bash: " in player.read and "* submit: " in player.read
    assert "* edit: " not in player.read and "* create: " not in player.read
    shown = player.say(call("edit", "a.py"))
    assert "There is no tool 'edit'. The tools are bash, submit; use one of them." in shown
    assert player.environment._workspace is None  # nothing was started for it


def test_a_turn_that_was_cut_gets_the_end_that_it_lacks(tasks, play):
    player = play(tasks[0], strict_format=False)
    shown = player.say("I think and think", ended=False)
    assert shown.startswith("<|eot_id|><|start_header_id|>user") and "Your turn was cut" in shown
    other = play(tasks[0])
    stop = other.environment._tokenizer.special_tokens["<|eom_id|>"]  # ends it as well
    step = other.environment.step([*other.tokenizer.encode(LOOK), stop])
    assert other.tokenizer.decode(step.observation.tokens).startswith(
        "<|eot_id|><|start_header_id|"
    )
    strict = play(tasks[0])
    assert strict.say(final(), ended=False) == ""
    assert "Your turn was cut" in strict.info["reason"]


@pytest.mark.parametrize("text", [text for text, _ in WRONG if "nothing" not in text])
def test_after_a_submission_a_malformed_call_is_not_a_final_answer(tasks, play, text):
    player = play(tasks[0], strict_format=False)
    player.submit(tasks[0].data["patch"])
    assert player.say(text) != ""
    player.say(final())
    assert player.last.reward == 1.0
    strict = play(tasks[0])
    strict.submit(tasks[0].data["patch"])
    assert strict.say(text) == "" and strict.last.reward == -1.0


def test_a_strict_final_answer_is_a_report_in_markdown(tasks, play):
    player = play(tasks[0])
    player.submit(tasks[0].data["patch"])
    player.say(final("done"))
    assert player.last.reward == -1.0 and "no heading" in player.info["reason"]


def test_the_last_submission_counts(tasks, play):
    task = tasks[0]
    player = play(task)
    player.submit("diff --git a/x b/x\nnew file mode 100644\n")
    player.say(call("bash", "rm /tmp/changes.diff"))
    player.submit(task.data["patch"])
    player.say(final())
    assert player.last.reward == 1.0


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        ("diff but none", "no names of files"),
        ("diff --git a/../x b/../x\n--- a/../x\n+++ b/../x\n", "is no file of the repository"),
        ("diff --git a/no b/no\n--- a/no\n+++ b/no\n@@ -1 +1 @@\n-a\n+b\n", "that is not there"),
    ],
)
def test_a_patch_that_does_not_apply_fails_with_the_reason(tasks, play, patch, reason):
    player = play(tasks[0])
    player.submit(patch)
    player.say(final())
    assert player.last.reward == -1.0 and reason in player.info["reason"]


def test_the_info_of_every_step_is_json(tasks, play):
    player = play(tasks[0])
    player.say(LOOK)
    assert json.loads(json.dumps(player.info)) == player.info


# Failures of the environment.


def test_a_failing_sandbox_is_never_a_reward(tasks, play, monkeypatch):
    def no_sandbox(*args, **kwargs):
        raise SandboxError("no bwrap here")

    player = play(tasks[0])
    player.submit(tasks[0].data["patch"])
    monkeypatch.setattr("cwm_jax.rl.envs.swe.calls._pool", no_sandbox)
    with pytest.raises(EnvironmentFailure, match="the sandbox failed: no bwrap here"):
        player.say(final())
    monkeypatch.setattr("cwm_jax.rl.envs.swe.workspaces.local.Shell", no_sandbox)
    with pytest.raises(EnvironmentFailure, match="the sandbox failed: no bwrap here"):
        play(tasks[0]).say(LOOK)


def test_a_sandbox_that_is_lost_in_the_middle_is_never_a_reward(tasks, play):
    player = play(tasks[0])
    player.say(LOOK)
    os.kill(player.environment._workspace._shell._supervisor.process.pid, 9)
    with pytest.raises(EnvironmentFailure, match="the sandbox failed"):
        for _ in range(10):  # that it has ended is noticed a little later
            player.say(LOOK)
            time.sleep(0.2)


def test_a_repository_that_is_not_there_is_a_failure_of_the_environment(tasks, play, tmp_path):
    source = {"git": str(tmp_path / "none"), "commit": "0" * 40}
    player = play(Task(name="x", data={**tasks[0].data, "repository": source}))
    with pytest.raises(EnvironmentFailure, match="git fetch on this host"):
        player.say(LOOK)


def test_a_repository_of_no_known_kind_is_refused(tasks, tokenizer):
    task = Task(name="x", data={**tasks[0].data, "repository": {"svn": "x"}})
    with pytest.raises(ValueError, match=r"has \['svn'\]; expected files, git or built with"):
        SoftwareEngineering(task, tokenizer, PROFILES["small"])


def test_a_closed_episode_has_no_process_left(tasks, play):
    player = play(tasks[0])
    player.say(LOOK)
    pid = player.environment._workspace._shell._supervisor.process.pid
    player.environment.close()
    player.environment.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# A repository of git with a history, and tests that are its own.


def played(play, task, patch) -> Player:
    player = play(task)
    player.submit(patch)
    player.say(final())
    return player


def test_of_a_repository_nothing_after_its_commit_can_be_found(git_task, play):
    player = play(git_task, max_turns=99)

    def say(command):
        return output(player.say(call("bash", command)))

    assert say("git log --all --format=%s; git reflog; git tag; git remote; git stash list") == (
        "Base\nFirst\n"
    )
    assert say("git for-each-ref --format='%(refname)'") == "refs/heads/main\n"
    objects = say("git cat-file --batch-all-objects --batch-check='%(objectname) %(objecttype)'")
    assert objects.count(" commit") == 2 and objects.count(" blob") == 4
    assert say("git fsck --unreachable --no-progress; git status --short") == ""
    everything = "for o in $(git cat-file --batch-all-objects --batch-check='%(objectname)')"
    assert "x * 2" not in say(f"{everything}; do git cat-file -p $o; done")
    assert say("cat $(cat .git/objects/info/alternates)/../config").count("[") == 1
    assert "Read-only" in say("touch $(cat .git/objects/info/alternates)/x")


def test_a_suite_passes_with_the_fix_and_fails_without(git_task, play):
    player = played(play, git_task, GOLD)
    assert player.last.reward == 1.0, player.info
    player = played(play, git_task, GOLD.replace("x * 2", "x + 4"))
    assert player.last.reward == 0.0 and player.info["similarity"] > 0.9
    name = "tests.test_module.ModuleTest.test_double"
    assert player.info["reason"] == f"1 of 2 hidden tests fail: {name}"


def test_changes_of_tests_are_left_out(git_task, play):
    lines = "".join(f"+{line}\n" for line in OLD_TEST.splitlines())
    weaker = f"--- /dev/null\n+++ b/tests/test_other.py\n@@ -0,0 +1,8 @@\n{lines}"
    gone = "".join(f"-{line}\n" for line in OLD_TEST.splitlines())
    gone = f"--- a/tests/test_module.py\n+++ /dev/null\n@@ -1,8 +0,0 @@\n{gone}"
    assert played(play, git_task, GOLD + weaker + gone).last.reward == 1.0
    assert not played(play, git_task, "diff\n" + gone).info["pass"]


def test_a_file_can_be_removed_and_renamed_by_a_patch(git_task, play):
    moved = "diff --git a/module.py b/other.py\nrename from module.py\nrename to other.py\n"
    bridge = "diff --git a/module/__init__.py b/module/__init__.py\nnew file mode 100644\n"
    bridge += "--- /dev/null\n+++ b/module/__init__.py\n@@ -0,0 +1,5 @@\n+from other import same\n"
    bridge += "+\n+\n+def double(x):\n+    return x * 2\n"
    assert played(play, git_task, moved + bridge).last.reward == 1.0


def test_a_suite_that_does_not_end_fails(git_task, play):
    player = play(git_task, test_timeout_s=1.0)
    player.submit(GOLD.replace("return x * 2", "while True: pass"))
    player.say(final())
    assert player.last.reward != 1.0 and "did not come to an end (timeout)" in player.info["reason"]


def test_the_output_of_unittest_is_read():
    text = """\
test_a (m.T.test_a) ... ok
test_b (m.T.test_b)
What it is for. ... FAIL
test_c (m.T) ... ok
test_d (m.T.test_d) ... skipped 'why'
test_e (m.T.test_e) ... noise
ok
test_a (n.T.test_a) ... ok
test_a (n.T.test_a) ... ERROR
"""
    assert parse_unittest(text) == {
        "m.T.test_a": True,
        "m.T.test_b": False,
        "m.T.test_c": True,
        "m.T.test_d": False,
        "m.T.test_e": False,
        "n.T.test_a": False,
    }


def test_the_output_of_pytest_is_read():
    text = """\
tests/a.py::test_x[1 2] PASSED                  [ 33%]
tests/a.py::T::test_y FAILED                    [ 66%]
PASSED tests/a.py::test_z
SKIPPED [1] tests/a.py:3: why
ERROR tests/a.py::test_w - boom
PASSED tests/a.py::test_w
"""
    assert parse_pytest(text) == {
        "tests/a.py::test_x[1 2]": True,
        "tests/a.py::T::test_y": False,
        "tests/a.py::test_z": True,
        "tests/a.py::test_w": False,
    }


def test_without_bubblewrap_it_works_in_a_folder_of_this_machine(tasks, tokenizer):
    player = Player(
        SoftwareEngineering(tasks[0], tokenizer, PROFILES["small"], unsafe=True), tokenizer
    )
    try:
        prompt = player.start()
        root = player.environment._workspace.root
        assert isinstance(player.environment._workspace, LocalWorkspace) and root in prompt
        assert output(player.say(call("bash", "pwd"))) == f"{root}\n"
        player.submit(tasks[0].data["patch"])
    finally:
        player.environment.close()
