"""The command: what it counts and returns, and that a kill loses only what was in flight."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from evals.fake_server import fake_server

from cwm_jax.__main__ import main
from cwm_jax.data.trajectories import read_trajectories
from cwm_jax.rl.envs.swe.shipped.tasks import diff_of

ROOT = Path(__file__).parents[2]


def write_tasks(path: Path, num: int, *, num_gone: int = 0) -> Path:
    before, after = {"a.py": "def f():\n    return 1\n"}, {"a.py": "def f():\n    return 2\n"}
    rows = []
    for number in range(num + num_gone):
        gone = {"git": str(path.with_name("gone")), "commit": "0" * 40}
        data = {
            "issue": f"Number {number}: f() should give 2",
            "repository": {"files": before} if number < num else gone,
            "patch": diff_of(before, after),
            "tests": {"calls": [{"module": "a", "call": "f()", "expected": "2"}]},
        }
        rows.append({"name": f"task-{number}", "data": data})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments) -> int:
    return main(["forage", "run", *map(str, arguments)])


@contextlib.contextmanager
def started(*arguments):
    command = [sys.executable, "-P", "-m", "cwm_jax", "forage", "run", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(path: Path, num: int) -> None:
    end = time.monotonic() + 60
    while num_lines(path) < num:
        assert time.monotonic() < end, f"{path} has no {num} lines"
        time.sleep(0.01)


def test_failed_environments_are_counted_and_only_if_all_fail_it_returns_1(tmp_path, capsys):
    tasks, out = write_tasks(tmp_path / "some.jsonl", 1, num_gone=1), tmp_path / "some.out.jsonl"
    assert run("--tasks", tasks, "--out", out, "--workers", 1) == 0
    captured = capsys.readouterr()
    assert "2 in all, 1 solved, 1 whose environment failed" in captured.out
    assert "name another --out" in captured.err
    tasks, out = write_tasks(tmp_path / "all.jsonl", 0, num_gone=1), tmp_path / "all.out.jsonl"
    assert run("--tasks", tasks, "--out", out, "--workers", 1) == 1


def test_a_kill_of_processes_changes_no_byte_of_what_comes_out(tmp_path):
    tasks, whole, out = write_tasks(tmp_path / "t.jsonl", 6), tmp_path / "w.jsonl", tmp_path / "o"
    arguments = ("--tasks", tasks, "--policy", "explorer", "--workers", 1)
    assert run(*arguments, "--out", whole) == 0
    with started(*arguments, "--out", out) as process:
        wait_for_lines(out, 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 1 <= num_lines(out) < 6
    assert whole.read_bytes().startswith(out.read_bytes()[: out.read_bytes().rfind(b"\n") + 1])
    assert run(*arguments, "--out", out) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_kill_in_the_third_episode_loses_that_one_alone(tmp_path):
    tasks, whole, out = write_tasks(tmp_path / "t.jsonl", 4), tmp_path / "w.jsonl", tmp_path / "o"
    answer = 200, {"choices": [{"message": {"content": "No."}, "finish_reason": "stop"}]}, {}
    with fake_server() as fake:
        fake.refuse = lambda *_: answer
        arguments = ("--tasks", tasks, "--policy", "endpoint", "--url", fake.url, "--workers", 1)
        assert run(*arguments, "--out", whole) == 0
        fake.seen.clear()
        with started(*arguments, "--out", out) as process:

            def kill_in_the_third(number, path, body):
                if number == 3:
                    wait_for_lines(out, 2)
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                return answer

            fake.refuse = kill_in_the_third
            assert process.wait() == -signal.SIGKILL
        assert len(list(read_trajectories(out))) == 2
        assert run(*arguments, "--out", out) == 0
        assert len(fake.seen) == 3 + 2
    assert out.read_bytes() == whole.read_bytes()
