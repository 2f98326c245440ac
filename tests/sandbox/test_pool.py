"""A pool runs as many calls at a time as it has workers, and loses none of them for good."""

import contextlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process_tree import descendants, has_ended, wait_until

from cwm_jax.sandbox import Limits, Outcome, Pool, SandboxError

LIMITS = Limits(wall_s=20)


def workers(pool: Pool) -> list[int]:
    return [worker._supervisor.process.pid for worker in pool._free]


def test_calls_of_many_threads_all_have_their_answers(program):
    with Pool(program, size=2, limits=LIMITS) as pool, ThreadPoolExecutor(8) as threads:
        replies = threads.map(lambda n: pool.call(b"out = %d" % n).value, range(60))
        assert list(replies) == [b"%d" % n for n in range(60)]
        assert len(workers(pool)) == 2


def test_as_many_calls_run_at_once_as_there_are_workers(program, tmp_path):
    """Each sleeps until it is told to end; more than two are never inside."""
    with Pool(program, size=2, limits=LIMITS) as pool, ThreadPoolExecutor(3) as threads:
        pool.warm_up()
        first = workers(pool)
        calls = [threads.submit(pool.call, b"import time\ntime.sleep(60)") for _ in range(2)]
        wait_until(lambda: all(len(descendants(pid)) == 2 for pid in first))
        third = threads.submit(pool.call, b"out = 3")
        time.sleep(0.1)
        assert not third.done() and pool._free == []
        os.kill(first[0], signal.SIGKILL)
        assert third.result().value == b"3"
        assert sum(call.done() for call in calls) == 1
        os.kill(first[1], signal.SIGKILL)
        assert {call.result().outcome for call in calls} == {Outcome.EXIT}


def test_calls_have_their_turns_in_order_and_say_that_they_wait(monkeypatch):
    """Who has just given a worker back does not get it before those who wait."""
    started, go, waiting = [], threading.Semaphore(0), []

    class SlowWorker:
        def call(self, request, **_):
            started.append(request)
            go.acquire()
            return request

        def close(self):
            pass

    @contextlib.contextmanager
    def noted():
        waiting.append(threading.get_ident())
        yield
        waiting.remove(threading.get_ident())

    monkeypatch.setattr("cwm_jax.sandbox.pool.Worker", lambda *_, **__: SlowWorker())
    pool = Pool(Path("program"), size=1, waiting=noted)
    with pool, ThreadPoolExecutor(4) as threads:
        twice = threads.submit(lambda: [pool.call(b"a"), pool.call(b"d")])
        wait_until(lambda: started == [b"a"])
        for number, name in enumerate((b"b", b"c"), 1):
            threads.submit(pool.call, name)
            wait_until(lambda number=number: len(pool._queue) == number)
        num_waiting = len(waiting)
        go.release(4)
        assert twice.result() == [b"a", b"d"] and num_waiting == 2
        assert started == [b"a", b"b", b"c", b"d"] and waiting == [] and pool._queue == []


def test_workers_are_made_when_they_are_needed_or_ahead(program):
    with Pool(program, size=3) as pool:
        assert workers(pool) == []
        pool.call(b"")
        first = workers(pool)
        pool.call(b"")
        assert workers(pool) == first and len(first) == 1
        pool.warm_up()
        pool.warm_up()
        assert len(workers(pool)) == 3 and set(first) < set(workers(pool))


def test_a_worker_that_died_is_replaced(program):
    with Pool(program, size=1) as pool:
        pool.warm_up()
        (first,) = workers(pool)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: has_ended(first))
        assert pool.call(b"out = 1").value == b"1"
        assert workers(pool) != [first]


def test_a_call_that_hangs_costs_itself_only(program, monkeypatch):
    monkeypatch.setattr("cwm_jax.sandbox.supervisor._GRACE_S", 0.3)
    with Pool(program, size=2, limits=LIMITS) as pool, ThreadPoolExecutor(2) as threads:
        pool.warm_up()
        zygotes = [descendants(pid)[-1] for pid in workers(pool)]
        os.kill(zygotes[-1], signal.SIGSTOP)  # of the worker that is taken first
        hung = threads.submit(pool.call, b"out = 1", limits=Limits(wall_s=0.5))
        wait_until(lambda: len(pool._free) == 1)
        assert [pool.call(b"out = %d" % n).value for n in range(5)] == [b"%d" % n for n in range(5)]
        assert hung.result().outcome is Outcome.WALL and has_ended(zygotes[-1])
        limits = Limits(wall_s=0.2)
        slow = threads.submit(pool.call, b"import time\ntime.sleep(60)", limits=limits)
        assert pool.call(b"out = 1").value == b"1"
        assert slow.result().outcome is Outcome.WALL
        assert pool.call(b"out = 1").value == b"1"


def test_what_a_call_needs_goes_through(program):
    with Pool(program, size=1, preload=["fractions"], readable=[program]) as pool:
        code = (
            f"import sys\nout = 'fractions' in sys.modules, open({str(program)!r}).read(1), input()"
        )
        assert pool.call(code.encode(), stdin=b"a\n").value == b"(True, '\\n', 'a')"
        assert pool.call(b"while True: pass", limits=Limits(cpu_s=0.1)).outcome is Outcome.CPU


def test_closing_leaves_no_processes_and_refuses_calls(program):
    pool = Pool(program, size=2)
    pool.warm_up()
    processes = [pid for first in workers(pool) for pid in (first, *descendants(first))]
    assert len(processes) == 4
    pool.close()
    assert all(map(has_ended, processes))
    for refused in (lambda: pool.call(b""), pool.warm_up):
        with pytest.raises(ValueError, match="the pool is closed"):
            refused()
    pool.close()


def test_closing_waits_for_calls_and_turns_away_who_waits(program):
    pool = Pool(program, size=1, limits=LIMITS)
    pool.warm_up()
    (first,) = workers(pool)
    with ThreadPoolExecutor(3) as threads:
        running = threads.submit(pool.call, b"import time\ntime.sleep(0.5)\nout = 1")
        wait_until(lambda: len(descendants(first)) == 2)
        waiting = threads.submit(pool.call, b"out = 2")
        time.sleep(0.1)
        pool.close()
        assert running.done() and running.result().value == b"1"
        with pytest.raises(ValueError, match="the pool is closed"):
            waiting.result()
    assert has_ended(first)


def test_a_worker_that_cannot_be_made_blocks_nobody(program, tmp_path, monkeypatch):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with Pool(broken, size=2) as pool:
        for attempt in (lambda: pool.call(b""), pool.warm_up, lambda: pool.call(b"")):
            with pytest.raises(ValueError, match="ZeroDivisionError"):
                attempt()
        broken.write_text(program.read_text())
        assert pool.call(b"out = 1").value == b"1"
    monkeypatch.setenv("PATH", "/nowhere")
    with Pool(program, size=1) as pool, pytest.raises(SandboxError, match="unsafe=True"):
        pool.call(b"")
    with Pool(program, size=1, unsafe=True) as pool:
        assert pool.call(b"out = 1").value == b"1"


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_size_is_a_whole_number(program, size):
    with pytest.raises(ValueError, match="a whole number, at least 1"):
        Pool(program, size=size)


def test_workers_outlive_the_threads_that_made_them(program):
    with Pool(program, size=2) as pool:
        thread = threading.Thread(target=pool.warm_up)
        thread.start()
        thread.join()
        time.sleep(0.1)
        assert not any(map(has_ended, workers(pool)))
