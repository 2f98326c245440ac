"""What ends an episode, what a workspace has room for, and what the tool view shows."""

import dataclasses

import pytest

from cwm_jax.data.chat import Message
from cwm_jax.data.trajectories import ENVIRONMENT, read_trajectories, trajectory_from_json
from cwm_jax.forager.agent import loop
from cwm_jax.forager.agent.forage import ForageSettings, forage
from cwm_jax.forager.agent.loop import EpisodeLimits, Turn, play
from cwm_jax.forager.agent.view import view
from cwm_jax.forager.trajectories.export import export
from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.swe.environment import workspace_maker
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.shipped.tasks import diff_of
from cwm_jax.rl.envs.swe.workspaces.local import LocalWorkspace
from cwm_jax.sandbox import SandboxError, ShellLimits

MIB = 1 << 20
FILES = {"a.py": "def f():\n    return 1\n", "b/c.txt": "c\n", "empty.txt": ""}
CHECK = "import unittest\n\nimport a\n\n\nclass ATest(unittest.TestCase):\n"
CHECK += "    def test_f(self):\n        self.assertEqual(a.f(), 2)\n"
SUITE = {
    "command": "python -m unittest discover -v -s tests -t . 2>&1",
    "format": "unittest",
    "files": {"tests/__init__.py": "", "tests/test_a.py": CHECK},
    "fail_to_pass": ["tests.test_a.ATest.test_f"],
    "pass_to_pass": [],
    "canary": "tests",
}


def task(name="t", **changes) -> Task:
    after = {**FILES, "a.py": FILES["a.py"].replace("1", "2")}
    data = {
        "issue": "f() should give 2",
        "repository": {"files": FILES},
        "patch": diff_of(FILES, after),
        "tests": {"calls": [{"module": "a", "call": "f()", "expected": "2"}]},
    }
    return Task(name=name, data={**data, **changes})


class Saying:
    """Calls bash with one command until it has been told so often."""

    def __init__(self, command: str, times: int = 100):
        self.command, self.times = command, times

    def turn(self, messages):
        self.times -= 1
        text = f"<tool: bash>\n{self.command}\n</tool>" if self.times >= 0 else "Done."
        return Turn(message=Message("assistant", text))


def ended(policy, of=None, **limits):
    return play("n", of or task(), policy, policy_name="p", limits=EpisodeLimits(**limits))


@pytest.mark.parametrize(
    ("word", "limits"),
    [
        ("turns", {"turns": 3}),
        ("characters", {"characters": 4_000}),
        ("seconds", {"seconds": 0.3}),
    ],
)
def test_each_limit_ends_an_episode_with_its_word(word, limits):
    command = "sleep 0.2; seq 200" if word == "seconds" else "seq 200"
    row = ended(Saying(command), **limits)
    assert row.outcome == word and row.messages[-1].is_assistant
    assert row.solved is False and row.reason == "the patch changes no file"
    if word == "turns":
        assert len(row.messages) == 2 + 2 * 3 - 1
    if word == "characters":
        size = sum(len(message.text) for message in row.messages)
        assert size <= 4_000 < size + len("\n".join(map(str, range(1, 201)))) + 1
    assert ended(Saying(command, times=1)).outcome == "finished"


def test_a_limit_judges_what_was_done_before_it():
    row = ended(Saying("sed -i s/1/2/ a.py"), turns=1)
    assert (row.outcome, row.solved) == ("turns", True)


def test_a_command_that_takes_too_long_and_a_long_output_are_told():
    row = ended(Saying("echo begun; sleep 60", times=1), command_s=0.5)
    assert "ran longer than 0.5 s" in row.messages[3].content
    row = ended(Saying("seq 2000", times=1), observation_characters=100)
    assert "characters ...\n" in row.messages[3].content
    assert len(row.messages[3].content) < 150


def test_a_workspace_has_its_own_limits_and_so_has_the_run_of_the_tests(monkeypatch):
    fill = "dd if=/dev/zero of=/tmp/big bs=1M count=100 2>/dev/null && echo whole; rm -f /tmp/big"
    assert "whole" in ended(Saying(fill, times=1)).messages[3].content
    small = dataclasses.replace(EpisodeLimits.workspace, scratch_bytes=64 * MIB)
    assert "whole" not in ended(Saying(fill, times=1), workspace=small).messages[3].content
    made = []

    class Counted(LocalWorkspace):
        def __init__(self, repository, **options):
            made.append(options["limits"])
            super().__init__(repository, **options)

    monkeypatch.setattr("cwm_jax.rl.envs.swe.environment.LocalWorkspace", Counted)
    mend = Saying("sed -i s/1/2/ a.py", times=1)
    assert ended(mend, task(tests=SUITE)).solved
    expected = ShellLimits(memory_bytes=2048 * MIB, scratch_bytes=512 * MIB, processes=128)
    assert made == [expected] * 2


@pytest.fixture(scope="module")
def workspace():
    made = workspace_maker({"files": FILES}, PROFILES["small"])()
    made.run("printf 'a\\0b' > raw.bin; seq 30 > n.txt; printf '\\351\\n' > latin.txt", 10)
    yield made
    made.close()


def test_view_shows_a_file_or_some_of_its_lines(workspace):
    shown = view("a.py", workspace)
    assert shown.worked and shown.text == "     1\tdef f():\n     2\t    return 1"
    assert view(f"{workspace.root}/a.py", workspace) == shown
    assert view("n.txt 9 11", workspace).text == "     9\t9\n    10\t10\n    11\t11"
    assert view("n.txt 29 400", workspace).text == "    29\t29\n    30\t30"
    assert view("n.txt 0 1", workspace).text == "     1\t1"
    for beyond in ("n.txt 31 40", "n.txt 5 4"):
        assert view(beyond, workspace).text == "The file has 30 lines."
    assert view("empty.txt", workspace).text == "The file has 0 lines."
    assert view("latin.txt", workspace).text == "     1\t\ufffd"


def test_view_lists_a_folder(workspace):
    assert view("b", workspace).text == "c.txt"
    listed = view(".", workspace)
    assert listed.worked and {"a.py", "b/", ".git/"} <= {*listed.text.split("\n")}


def test_view_says_what_it_cannot_show(workspace):
    for asked, why in (
        ("gone.py", "Cannot view gone.py: no such file or directory"),
        ("raw.bin", "Cannot view raw.bin: it is no text, but 3 bytes"),
        ("a.py 1", "view takes a path"),
        ("a.py one 2", "view takes a path"),
        ("a.py -1 2", "view takes a path"),
        ("a.py/b", "Cannot view a.py/b: not a directory"),
    ):
        reply = view(asked, workspace)
        assert not reply.worked and reply.text.startswith(why), reply.text


class Failing:
    """A policy in whose first turns the sandbox fails."""

    def __init__(self, error):
        self.error = error

    def turn(self, messages):
        if len(messages) > 3:
            raise self.error
        return Turn(message=Message("assistant", "<tool: bash>\ntrue\n</tool>"))


@pytest.mark.parametrize("kind", [EnvironmentFailure, SandboxError])
def test_a_failing_environment_is_a_result_without_a_verdict(kind):
    row = ended(Failing(kind("the sandbox of /tmp/repositories-ab12cd34 is 0x7f00deadbeef")))
    assert (row.outcome, row.solved) == (ENVIRONMENT, None)
    assert row.reason == "the sandbox of /tmp/repositories-xxxxxxxx is 0x000000000000"
    assert [message.role for message in row.messages] == ["system", "user", "assistant"]
    assert trajectory_from_json(row.to_json()) == row


class Engine:
    """Plays in this process; the process of the episode called dead dies."""

    def map_chunks(self, function, chunks, died):
        for (item,) in chunks:
            yield died(item) if item.name == "dead" else function([item])


def test_rows_of_failed_environments_do_not_stop_a_run_and_are_not_exported(tmp_path):
    gone = task("gone", repository={"git": str(tmp_path / "gone"), "commit": "0" * 40})
    tasks, out = (task("a"), gone, task("dead"), task("b")), tmp_path / "rows.jsonl"
    settings = ForageSettings(policy="oracle")
    assert forage(tasks, out, settings, engine=Engine()) == 4
    rows = list(read_trajectories(out))
    assert [row.solved for row in rows] == [True, None, None, True]
    assert [row.outcome for row in rows] == ["finished", ENVIRONMENT, ENVIRONMENT, "finished"]
    assert "git fetch on this host" in rows[1].reason and rows[1].messages == []
    assert "ended its process twice" in rows[2].reason
    content = out.read_bytes()
    assert forage(tasks, out, settings, engine=Engine()) == 0 and out.read_bytes() == content
    manifest = export([out], tmp_path / "chat.jsonl")
    assert [manifest[k] for k in ("read", "kept", "duplicates", "unusable")] == [4, 1, 1, 2]


def test_what_fails_once_is_tried_again(tmp_path, monkeypatch):
    failures = [EnvironmentFailure("busy")]

    def maker(*arguments, **options):
        if failures:
            raise failures.pop()
        return workspace_maker(*arguments, **options)

    monkeypatch.setattr(loop, "workspace_maker", maker)
    out = tmp_path / "rows.jsonl"
    forage([task()], out, ForageSettings(policy="oracle"), engine=Engine())
    (row,) = read_trajectories(out)
    assert row.solved and not failures
