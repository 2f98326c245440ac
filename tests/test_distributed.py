"""Meetings of processes: what one tells, refuses or does not come to fails on all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from training.hosts_runs import environment, free_port, outputs

from cwm_jax.distributed import HostError, Hosts

ROOT = Path(__file__).parents[1]
WORKER = """
import sys, time
from cwm_jax.distributed import ClusterOptions, HostError, start

index, count, port, limit_s = map(int, sys.argv[1:5])
try:
    hosts = start(
        ClusterOptions(
            coordinator=f"localhost:{port}",
            num_processes=count,
            process_id=index,
            initialization_timeout_s=limit_s,
            heartbeat_timeout_s=30,
            meeting_timeout_s=30,
        )
    )
    exec(sys.argv[5])
except (HostError, ZeroDivisionError) as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    hosts.meet("all have spoken", timeout_s=30)
"""


def run(
    code: str, *, started: int = 2, count: int = 2, limit_s: int = 60, status: int | None = 0
) -> list[str]:
    """What ``started`` of ``count`` processes print that meet and then run ``code``."""
    port = str(free_port())
    command = [sys.executable, "-c", WORKER]
    processes = [
        subprocess.Popen(
            [*command, str(index), str(count), port, str(limit_s), code],
            env=environment(1) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(started)
    ]
    return outputs(processes, status)


def test_values_are_told():
    first, second = run(
        "print(hosts.meet('a', value=f'v{index}'), hosts.meet('a', value=f'w{index}'));"
        "print(hosts.first('b', lambda: index), hosts.is_first);"
        "print(hosts.decide('c', lambda: f'chosen by {index}'))"
    )
    assert "['v0', 'v1'] ['w0', 'w1']\n0 True\nchosen by 0" in first
    assert "['v0'] ['w0']\n1 False\nchosen by 0" in second


def test_bytes_of_all_reach_all():
    for said in run(
        "print([(len(x), x[:2]) for x in hosts.gather('a', lambda: b'ab' * (index * 70_000))]);"
        "print(hosts.gather('b', lambda: bytes([index])))"
    ):
        assert "[(0, b''), (140000, b'ab')]\n[b'\\x00', b'\\x01']" in said


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_on_one_is_gathered_by_none(failing):
    said = run(f"hosts.gather('groups', lambda: b'x' if index != {failing} else 1 / 0)")
    assert "ZeroDivisionError: division by zero" in said[failing]
    assert f"HostError: groups: process {failing} (" in said[1 - failing]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_problem_of_one_fails_all(failing):
    for said in run(f"hosts.meet('save', problem='disk full' if index == {failing} else '')"):
        assert f"HostError: save: process {failing} (" in said and "): disk full" in said


def test_what_fails_on_the_first_is_its_own_error_there():
    first, second = run("hosts.first('corpus', lambda: 1 / (index - 0))")
    assert "ZeroDivisionError: division by zero" in first
    assert "HostError: corpus: process 0 (" in second
    assert "ZeroDivisionError: division by zero" in second


def test_other_values_are_named_with_their_process():
    for said in run("hosts.check_same('start', {'seed': index, 'steps': 3})"):
        assert "process 1 (" in said and "has another start: seed 1 (process 0: 0)" in said
        assert "steps" not in said.split("has another")[1]


def test_who_does_not_come_is_named():
    first, second, third = run(
        "time.sleep(12 * (index == 2)); hosts.meet('save', timeout_s=3)", started=3, count=3
    )
    for said in (first, second, third):
        assert "HostError: save: waited 3 s at 'save' for process 2 (" in said


def test_who_does_not_start_is_named():
    for said in run("", started=2, count=3, limit_s=8, status=None):
        assert "timed out task names:\n2\n" in said


def test_one_process_alone_does_not_wait():
    hosts = Hosts()
    assert hosts.is_first and hosts.meet("a", value="x") == ["x"]
    assert hosts.first("b", lambda: 3) == 3
    hosts.check_same("start", {"seed": 1})
    with pytest.raises(HostError, match="no space"):
        hosts.meet("c", problem="no space")
