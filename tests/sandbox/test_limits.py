"""Whatever a program uses up, the outcome names it; the next call works, as `call` asserts."""

import pytest

from cwm_jax.sandbox import Limits, Outcome

CASES = {
    "an endless loop": ("while True: pass", dict(cpu_s=0.2), Outcome.CPU),
    "an endless loop that ignores signals": (
        "import signal\n"
        "for n in range(1, 32):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except OSError: pass\n"
        "while True: pass",
        dict(cpu_s=0.2),
        Outcome.CPU,
    ),
    "loops in several processes": (
        "import os\nos.fork(); os.fork()\nwhile True: pass",
        dict(cpu_s=0.3),
        Outcome.CPU,
    ),
    "processor time of children that have ended": (
        "import os\nwhile True:\n"
        "    if not os.fork():\n"
        "        for _ in range(100000): pass\n"
        "        os._exit(0)\n"
        "    os.wait()",
        dict(cpu_s=0.3),
        Outcome.CPU,
    ),
    "sleep": ("import time\ntime.sleep(60)", dict(wall_s=0.3), Outcome.WALL),
    "a stopped process": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        dict(wall_s=0.3),
        Outcome.WALL,
    ),
    "waiting for a parent's pipe": (
        "import sys\nimport os\nr, w = os.pipe()\nos.read(r, 1)",
        dict(wall_s=0.3),
        Outcome.WALL,
    ),
    "memory of one process": ("x = bytearray(1 << 30)", {}, Outcome.MEMORY),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 20))", {}, Outcome.MEMORY),
    "memory of several processes": (
        "import os, time\n"
        "for _ in range(3): os.fork()\n"
        "x = bytearray(60 << 20)\n"
        "for i in range(0, len(x), 4096): x[i] = 1\n"
        "time.sleep(60)",
        {},
        Outcome.MEMORY,
    ),
    "output": ("while True: print('x' * 1000)", {}, Outcome.OUTPUT),
    "output on stderr": (
        "import os\nwhile True: os.write(2, b'x' * 1000)",
        {},
        Outcome.OUTPUT,
    ),
    "output of a grandchild": (
        "import os, time\n"
        "if not os.fork():\n"
        "    while True: os.write(1, b'x' * 1000)\n"
        "time.sleep(60)",
        {},
        Outcome.OUTPUT,
    ),
    "a long reply": ("out = 'x' * 200000", {}, Outcome.OUTPUT),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_used_up_is_named(call, name):
    code, limits, outcome = CASES[name]
    reply = call(code, **limits)
    assert (reply.outcome, reply.value) == (outcome, None), reply
    assert reply.detail


def test_memory_beyond_the_limit_is_refused_to_a_process(call):
    code = "try: bytearray(200 << 20)\nexcept MemoryError: out = len(bytearray(80 << 20))"
    assert call(code).value == b"83886080"


def test_output_up_to_its_bound_is_kept(call):
    assert call("print('x' * 9_999)").stdout == b"x" * 9_999 + b"\n"
    reply = call("import os\nos.write(2, b'y' * 20_000)")
    assert (reply.stderr, reply.detail) == (b"y" * 10_000, "stderr: more than 10000 bytes")


def test_files_end_at_the_scratch_limit(call):
    reply = call(
        "out = 0\n"
        "try:\n"
        "    with open('a', 'wb', buffering=0) as f:\n"
        "        while True: out += f.write(bytes(1 << 16))\n"
        "except OSError as e: out = out, e.strerror"
    )
    assert reply.value == b"(4194304, 'File too large')" or b"No space left" in reply.value, reply
    reply = call(
        "out = []\n"
        "for i in range(9):\n"
        "    try: open(f'{i}', 'wb').write(bytes(1 << 20))\n"
        "    except OSError as e: out.append(e.strerror)"
    )
    assert reply.value.count(b"No space left on device") >= 5, reply


@pytest.mark.parametrize("folder", ["/", "/dev", "/dev/shm", "/sandbox", "/lib", "/etc"])
def test_nothing_can_be_written_but_scratch(call, folder):
    reply = call(
        f"import os\nout = []\n"
        f"for f in (lambda: open('{folder}/x', 'w'), lambda: os.mkdir('{folder}/x'),\n"
        f"          lambda: os.chmod('{folder}', 0o777)):\n"
        f"    try: out.append(f())\n"
        f"    except OSError: pass"
    )
    assert reply.value == b"[]", reply


def test_open_files_end_at_their_limit(call):
    reply = call("x = []\nwhile True: x.append(open('/dev/null'))")
    assert reply.outcome is Outcome.ERROR and "Too many open files" in reply.detail
    assert (
        call("import os\nout = len(os.listdir('/proc/self/fd'))").value == b"5"
    )  # and the listing's


def test_processes_end_at_their_limit(own_call):
    reply = own_call(
        "import os, time\nout = 0\n"
        "try:\n"
        "    while True:\n"
        "        if not os.fork(): time.sleep(60)\n"
        "        out += 1\n"
        "except BlockingIOError: pass"
    )
    assert reply.value == b"7", reply  # of 8, one is the caller


def test_a_fork_bomb_ends(own_call):
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    reply = own_call(code, cpu_s=0.5)
    assert reply.outcome is Outcome.CPU, reply


def test_threads_count_as_processes(own_call):
    reply = own_call(
        "import threading, time\n"
        "for _ in range(20): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    assert reply.outcome is Outcome.ERROR and "can't start new thread" in reply.detail


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpu_s", 0),
        ("cpu_s", -1.0),
        ("wall_s", float("inf")),
        ("wall_s", float("nan")),
        ("memory_bytes", 1 << 20),
        ("processes", 0),
        ("processes", 1.5),
        ("open_files", True),
        ("reply_bytes", "1"),
    ],
)
def test_limits_that_bound_nothing_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"Limits.{field} is .*; it is .*: give another"):
        Limits(**{field: value})
