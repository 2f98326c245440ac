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
except HostError as error:
    print(f"HostError: {error}", flush=True)
    raise
for code in sys.argv[5:]:
    try:
        exec(code)
    except (HostError, ZeroDivisionError) as error:
        print(f"{type(error).__name__}: {error}")
    print("END", flush=True)
    hosts.meet("all have spoken", timeout_s=30)
"""
SCENES = {
    "told": "print(hosts.meet('a', value=f'v{index}'), hosts.meet('a', value=f'w{index}'));"
    "print(hosts.first('b', lambda: index), hosts.is_first);"
    "print(hosts.decide('c', lambda: f'chosen by {index}'))",
    "bytes": "many = hosts.gather('a', lambda: b'ab' * (index * 70_000));"
    "print([(len(x), x[:2]) for x in many]);"
    "print(hosts.gather('b', lambda: bytes([index])))",
    "nothing from 0": "hosts.gather('groups', lambda: b'x' if index else 1 / 0)",
    "nothing from 1": "hosts.gather('groups', lambda: 1 / 0 if index else b'x')",
    "problem of 0": "hosts.meet('save', problem='' if index else 'disk full')",
    "problem of 1": "hosts.meet('save', problem='disk full' if index else '')",
    "first fails": "hosts.first('corpus', lambda: 1 / (index - 0))",
    "other values": "hosts.check_same('start', {'seed': index, 'steps': 3})",
}


def run(
    *code: str, started: int = 2, count: int = 2, limit_s: int = 60, status: int | None = 0
) -> list[str]:
    """What ``started`` of ``count`` processes print that meet and then run each ``code``."""
    port = str(free_port())
    command = [sys.executable, "-c", WORKER]
    processes = [
        subprocess.Popen(
            [*command, str(index), str(count), port, str(limit_s), *code],
            env=environment(1) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(started)
    ]
    return outputs(processes, status)


@pytest.fixture(scope="module")
def scenes() -> dict[str, tuple[str, ...]]:
    """What either of two processes prints, of one meeting after the other, by its name."""
    parts = [said.split("END\n")[: len(SCENES)] for said in run(*SCENES.values())]
    return dict(zip(SCENES, zip(*parts, strict=True), strict=True))


def test_values_are_told(scenes):
    first, second = scenes["told"]
    assert "['v0', 'v1'] ['w0', 'w1']\n0 True\nchosen by 0" in first
    assert "['v0'] ['w0']\n1 False\nchosen by 0" in second


def test_bytes_of_all_reach_all(scenes):
    for said in scenes["bytes"]:
        assert "[(0, b''), (140000, b'ab')]\n[b'\\x00', b'\\x01']" in said


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_on_one_is_gathered_by_none(scenes, failing):
    said = scenes[f"nothing from {failing}"]
    assert "ZeroDivisionError: division by zero" in said[failing]
    assert f"HostError: groups: process {failing} (" in said[1 - failing]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_problem_of_one_fails_all(scenes, failing):
    for said in scenes[f"problem of {failing}"]:
        assert f"HostError: save: process {failing} (" in said and "): disk full" in said


def test_what_fails_on_the_first_is_its_own_error_there(scenes):
    first, second = scenes["first fails"]
    assert "ZeroDivisionError: division by zero" in first
    assert "HostError: corpus: process 0 (" in second
    assert "ZeroDivisionError: division by zero" in second


def test_other_values_are_named_with_their_process(scenes):
    for said in scenes["other values"]:
        assert "process 1 (" in said and "has another start: seed 1 (process 0: 0)" in said
        assert "steps" not in said.split("has another")[1]


def test_who_does_not_come_is_named():
    first, second, third = run(
        "time.sleep(6 * (index == 2)); hosts.meet('save', timeout_s=2)", started=3, count=3
    )
    for said in (first, second, third):
        assert "HostError: save: waited 2 s at 'save' for process 2 (" in said


def test_who_does_not_start_is_named():
    for said in run(started=2, count=3, limit_s=8, status=None):
        assert "timed out task names:\n2\n" in said


def test_one_process_alone_does_not_wait():
    hosts = Hosts()
    assert hosts.is_first and hosts.meet("a", value="x") == ["x"]
    assert hosts.first("b", lambda: 3) == 3
    hosts.check_same("start", {"seed": 1})
    with pytest.raises(HostError, match="no space"):
        hosts.meet("c", problem="no space")
