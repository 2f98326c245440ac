"""Calls of one worker do not know of each other, and no call takes the worker with it."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process_tree import descendants, has_ended, wait_until

from cwm_jax.sandbox import Limits, Outcome, SandboxError, Worker

ROOT = Path(__file__).parents[2]
ENDINGS = {
    "os._exit": ("import os\nos._exit(3)", Outcome.EXIT, "exited with status 3"),
    "os._exit with 0": ("import os\nos._exit(0)", Outcome.EXIT, "status 0 without a reply"),
    "sys.exit": ("import sys\nsys.exit(4)", Outcome.EXIT, "exited with status 4"),
    "sys.exit with a text": ("import sys\nsys.exit('no')", Outcome.EXIT, "exited with status 1"),
    "SIGKILL to itself": ("import os\nos.kill(os.getpid(), 9)", Outcome.SIGNAL, "SIGKILL"),
    "SIGKILL to all": ("import os\nif os.fork(): os.kill(-1, 9)\nout = 1", Outcome.OK, ""),
    "a forked copy that returns too": (
        "import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nout = 1",
        Outcome.OK,
        "",
    ),
    "abort": ("import os\nos.abort()", Outcome.SIGNAL, "SIGABRT"),
    "a segmentation fault": ("import ctypes\nctypes.string_at(0)", Outcome.SIGNAL, "SIGSEGV"),
    "all descriptors closed": ("import os\nos.closerange(0, 64)", Outcome.EXIT, "without a reply"),
    "an exception": ("raise OSError('gone')", Outcome.ERROR, "OSError: gone"),
    "an exception without text": (
        "class E(Exception):\n    def __str__(self): raise E\nraise E",
        Outcome.ERROR,
        "exception str() failed",
    ),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", Outcome.ERROR, "KeyboardInterrupt"),
    "endless recursion": ("def f(): f()\nf()", Outcome.ERROR, "RecursionError"),
    "a forged reply": (
        "import os, struct\nos.write(3, struct.pack('<cQ', b'v', 6) + b'forged')",
        Outcome.EXIT,
        "malformed",
    ),
    "half a reply": (
        "import os, struct\nos.write(3, struct.pack('<cQ', b'v', 1 << 60))\nos._exit(0)",
        Outcome.EXIT,
        "malformed",
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_every_ending_has_its_outcome(call, name):
    code, outcome, detail = ENDINGS[name]
    reply = call(code)
    assert reply.outcome is outcome and detail in reply.detail, reply
    assert (reply.value is None) == (outcome is not Outcome.OK)


def test_reports_forged_on_any_descriptor_do_not_reach_the_host(call):
    reply = call(
        "import os, struct\n"
        "frame = struct.pack('<16s??xxidd4Q', b'ok', 0, 1, 0, 0, 0, 6, 0, 0, 0) + b'forged'\n"
        "for fd in range(4, 4096):\n"
        "    try: os.write(fd, frame)\n"
        "    except OSError: pass\n"
        "out = 'true'"
    )
    assert reply.value == b"'true'"


@pytest.mark.parametrize("number", range(1, signal.SIGRTMIN))
def test_no_signal_reaches_the_first_process(own_call, number):
    own_call(f"import os\nos.kill(1, {number})")


def test_stdin_arrives_or_is_empty(call):
    assert call("import sys\nout = sys.stdin.read()").value == b"''"
    text = bytes(range(128)) * 10_000  # more than a pipe holds
    code = "import sys\nout = len(sys.stdin.buffer.read())"
    assert call(code, stdin=text).value == b"1280000"
    assert call("out = input(), input()", stdin=b"a\nb\n").value == b"('a', 'b')"
    assert call("out = 'not read'", stdin=text).value == b"'not read'"


def test_stdout_and_stderr_are_apart(call):
    reply = call("import sys\nprint('a')\nprint('b', file=sys.stderr)")
    assert (reply.stdout, reply.stderr) == (b"a\n", b"b\n")


def test_calls_start_from_the_same_state(call):
    code = (
        "import os, sys, builtins\n"
        "out = [hash('a'), len(sys.modules), hasattr(builtins, 'left'), os.listdir('.'),\n"
        "       os.getcwd(), len(os.listdir('/proc/self/fd')), sys.flags.hash_randomization]\n"
        "builtins.left = 1\n"
        "import decimal, random\n"
        "os.makedirs('a/b/c'); open('a/b/c/d', 'w'); os.chmod('a/b', 0); os.symlink('/', 'link')\n"
        "os.chdir('/'); os.umask(0o777)\n"
    )
    first, second = call(code), call(code)
    assert first.value == second.value, second
    assert eval(first.value)[2:5] == [False, [], "/tmp"]


def test_a_very_deep_folder_is_emptied(call):
    reply = call("import os\nfor i in range(3000):\n    os.mkdir('d' * 50); os.chdir('d' * 50)")
    assert reply.outcome is Outcome.OK


def test_more_files_than_can_be_removed_soon_cost_the_sandbox(program):
    with Worker(program) as worker:
        code = b"for i in range(%d): open(f'{i}', 'w').close()"
        assert worker.call(code % 10_050).outcome is Outcome.OK
        reply = worker.call(code % 10**9, limits=Limits(memory_bytes=40 << 20))
        assert reply.outcome is Outcome.MEMORY  # each is some of the kernel's
        assert worker.call(b"import os\nout = os.listdir()").value == b"[]"


def test_threads_that_never_end_do_not_hold_the_call(call):
    reply = call(
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\nout = 1"
    )
    assert (reply.outcome, reply.value) == (Outcome.OK, b"1")


def test_a_daemon_ends_with_the_call(call):
    reply = call(
        "import os, time\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
        "    while True:\n"
        "        open('/tmp/alive', 'w'); time.sleep(0.01)\n"
        "out = 1"
    )
    assert reply.value == b"1"  # that nothing is left, the fixture asserts


def test_the_reply_says_how_long_it_took(call):
    reply = call("import time\nt = time.process_time()\nwhile time.process_time() - t < 0.2: pass")
    assert 0.2 <= reply.cpu_s <= reply.wall_s * 1.1


def test_what_was_printed_at_import_is_not_printed_again(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("print('imported')\ndef handle(request): return request[::-1]")
    with Worker(program) as worker:
        reply = worker.call(b"abc")
        assert (reply.value, reply.stdout) == (b"cba", b"")


def test_modules_are_preloaded(program):
    with Worker(program, preload=["fractions"]) as worker:
        assert worker.call(b"import sys\nout = 'fractions' in sys.modules").value == b"True"


def test_a_program_that_does_not_import_is_refused(tmp_path):
    program = tmp_path / "program.py"
    for source, complaint in (
        ("1 / 0", "ZeroDivisionError"),
        ("x = 1", "has no attribute 'handle'"),
    ):
        program.write_text(source)
        with pytest.raises(ValueError, match=complaint):
            Worker(program)


def test_a_handler_returns_bytes(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("def handle(request): return 'text'")
    with Worker(program) as worker:
        reply = worker.call(b"")
        assert reply.outcome is Outcome.ERROR and "handle returned str, not bytes" in reply.detail


def test_a_sandbox_killed_between_calls_is_started_again(program):
    with Worker(program) as worker:
        worker.call(b"")
        os.kill(worker._supervisor.process.pid, signal.SIGKILL)
        wait_until(lambda: not worker._supervisor.alive())
        assert worker.call(b"out = 1").value == b"1"


def test_a_sandbox_killed_in_a_call_costs_that_call_only(program):
    with Worker(program) as worker:
        worker.call(b"")
        kill = threading.Timer(0.2, os.kill, (worker._supervisor.process.pid, signal.SIGKILL))
        kill.start()
        reply = worker.call(b"import time\ntime.sleep(60)")
        assert reply.outcome is Outcome.EXIT and "the sandbox was lost" in reply.detail
        kill.join()
        assert worker.call(b"out = 1").value == b"1"


def test_a_sandbox_that_hangs_costs_that_call_only(program, monkeypatch):
    monkeypatch.setattr("cwm_jax.sandbox.supervisor._GRACE_S", 0.3)
    with Worker(program, limits=Limits(wall_s=0.3)) as worker:
        (zygote,) = descendants(worker._supervisor.process.pid)[-1:]
        os.kill(zygote, signal.SIGSTOP)
        reply = worker.call(b"out = 1")
        assert reply.outcome is Outcome.WALL and "does not answer" in reply.detail
        assert has_ended(zygote)
        assert worker.call(b"out = 1").value == b"1"


@pytest.mark.parametrize("unsafe", [False, True])
def test_the_sandbox_ends_with_a_host_that_is_killed_in_a_call(program, unsafe):
    code = (
        "import os, signal, sys, threading; from pathlib import Path\n"
        "from cwm_jax.sandbox import Worker\n"
        f"worker = Worker(Path(sys.argv[1]), unsafe={unsafe})\n"
        "print(worker._supervisor.process.pid, flush=True)\n"
        "worker.call(b'import os, time\\nos.fork()\\ntime.sleep(60)')\n"
    )
    line = [sys.executable, "-c", code, str(program)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as host:
        first = int(host.stdout.readline())
        processes = 3 if unsafe else 4  # bubblewrap, the zygote and two of the call
        wait_until(lambda: len(descendants(first)) == processes - 1)
        inside = [first, *descendants(first)]
        host.kill()
    wait_until(lambda: all(map(has_ended, inside)))


def test_ctrl_c_is_for_the_host_alone(program):
    with Worker(program) as worker:
        assert os.getsid(worker._supervisor.process.pid) != os.getsid(0)


def test_threads_may_share_a_worker(program):
    with Worker(program) as worker, ThreadPoolExecutor(4) as pool:
        replies = pool.map(lambda n: worker.call(b"out = %d" % n).value, range(40))
        assert list(replies) == [b"%d" % n for n in range(40)]


def test_closing_leaves_no_processes(program):
    worker = Worker(program)
    worker.call(b"")
    processes = [worker._supervisor.process.pid, *descendants(worker._supervisor.process.pid)]
    assert len(processes) >= 2
    worker.close()
    assert all(map(has_ended, processes))


def test_a_sandbox_outlives_the_thread_that_made_it(program):
    made = []
    thread = threading.Thread(target=lambda: made.append(Worker(program)))
    thread.start()
    thread.join()
    with made[0] as worker:
        time.sleep(0.1)
        assert worker._supervisor.alive()
        assert worker.call(b"out = 1").value == b"1"


def test_a_call_cannot_have_more_scratch_space_than_its_worker(program):
    with Worker(program) as worker, pytest.raises(ValueError, match="give the worker the largest"):
        worker.call(b"", limits=Limits(scratch_bytes=1 << 40))


def test_without_bubblewrap_it_refuses_and_says_what_to_install(program, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match=r"apt-get install bubblewrap.*unsafe=True / --unsafe"):
        Worker(program)


def test_a_bubblewrap_that_does_not_start_is_an_error(program, monkeypatch, tmp_path):
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho no permissions to create a new namespace >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"no permissions to create.*unsafe=True"):
        Worker(program)


def test_a_report_longer_than_its_bound_is_not_read(program, monkeypatch, tmp_path):
    zygote = tmp_path / "zygote.py"
    zygote.write_text(
        "import os, struct\n"
        "os.write(1, struct.pack('<16s??xxidd4Q', b'ok', 0, 1, 0, 0, 0, 1 << 60, 0, 0, 0))\n"
        "os.read(0, 1 << 20); os.read(0, 1)\n"
    )
    monkeypatch.setattr("cwm_jax.sandbox.supervisor._ZYGOTE", zygote)
    with pytest.raises(SandboxError, match="announced 1152921504606846976 bytes where at most"):
        Worker(program, unsafe=True)


def test_unsafe_works_without_bubblewrap_and_keeps_the_limits(program, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("SECRET", "of the host")
    with Worker(program, unsafe=True, limits=Limits(memory_bytes=128 << 20)) as worker:
        reply = worker.call(b"import os\nout = os.getcwd(), os.environ.get('SECRET'), os.getppid()")
        scratch, secret, zygote = eval(reply.value)
        assert secret is None and Path(scratch).exists()
        for code, limits, outcome in (
            (b"open('left', 'w')\nwhile True: pass", Limits(cpu_s=0.2), Outcome.CPU),
            (b"import time\ntime.sleep(60)", Limits(wall_s=0.2), Outcome.WALL),
            (b"x = bytearray(1 << 30)", None, Outcome.MEMORY),
            (b"while True: print('x' * 1000)", None, Outcome.OUTPUT),
            (b"import os\nos.fork()\nwhile True: pass", Limits(cpu_s=0.3), Outcome.CPU),
        ):
            assert worker.call(code, limits=limits).outcome is outcome
            assert worker.call(b"import os\nout = os.listdir()").value == b"[]"
        assert descendants(zygote) == []
    assert not Path(scratch).exists() and has_ended(zygote)
