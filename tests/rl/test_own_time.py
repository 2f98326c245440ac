"""Law: what counts as time of an environment's call, and what as waiting for others."""

import contextlib
import contextvars
import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cwm_jax.rl import environment
from cwm_jax.rl.environment import OwnTime, waiting_for_others
from cwm_jax.rl.envs.math.python_tool import PythonTool
from cwm_jax.rl.envs.swe import calls
from cwm_jax.sandbox import Outcome, Reply


def test_waits_that_nest_and_overlap_stop_the_time_once(clock):
    own = OwnTime()
    clock.now_s = 1.0
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    with own.kept():
        first.enter_context(waiting_for_others())
        clock.now_s = 11.0
        second.enter_context(waiting_for_others())
        clock.now_s = 21.0
        first.close()
        clock.now_s = 31.0
        assert own.seconds == 1.0
        second.close()
        clock.now_s = 33.0
    assert own.seconds == 3.0


def test_a_call_knows_its_own_waits_alone(clock):
    waits, works = OwnTime(), OwnTime()
    with works.kept():
        with waits.kept(), waiting_for_others():
            clock.now_s = 5.0
        assert (waits.seconds, works.seconds) == (0.0, 5.0)
        with waiting_for_others():
            clock.now_s = 7.0
    with waiting_for_others():  # of no call
        clock.now_s = 8.0
    assert (waits.seconds, works.seconds) == (3.0, 6.0)


def test_threads_of_a_call_wait_for_it_in_a_copy_of_its_context(clock):
    own = OwnTime()

    def wait():
        with waiting_for_others():
            clock.now_s += 5.0

    with own.kept():
        for run, expected in ((contextvars.copy_context().run, 0.0), (lambda f: f(), 5.0)):
            thread = threading.Thread(target=run, args=(wait,))
            thread.start()
            thread.join()
            assert own.seconds == expected


def test_a_place_that_never_comes_is_not_waited_for_for_ever(clock):
    own = OwnTime()
    with own.kept(), waiting_for_others():
        clock.now_s = environment._MOST_WAITING_S
        assert own.seconds == 0.0
        clock.now_s += 600.0
        assert own.seconds == 600.0
    assert own.seconds == 600.0


class SlowWorker:
    """Answers when it is let; ``asked`` has what it was asked."""

    go, asked = threading.Semaphore(0), []

    def call(self, request, **_):
        self.asked.append(request)
        self.go.acquire()
        return Reply(
            outcome=Outcome.OK,
            value=b"[]",
            stdout=b"",
            stderr=b"",
            cpu_s=0.0,
            wall_s=0.0,
            detail="",
        )

    def close(self):
        pass


def run_program():
    return functools.partial(PythonTool(call_s=1.0).run, "")


def make_calls():
    return functools.partial(calls.call_all, {}, [], timeout_s=1.0)


@pytest.mark.parametrize("make", [run_program, make_calls])
def test_who_waits_for_a_sandbox_does_not_spend_its_time(clock, monkeypatch, make):
    """On both ways to a pool, of one place here."""
    monkeypatch.setattr("cwm_jax.sandbox.pool.Worker", lambda *_, **__: SlowWorker())
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(calls, "_POOL_SIZE", 1)
    monkeypatch.setattr(calls, "_pool", functools.cache(calls._pool.__wrapped__))
    SlowWorker.asked.clear()
    run, own = make(), OwnTime()

    def stands():
        before_s, clock.now_s = own.seconds, clock.now_s + 1000.0
        return own.seconds == before_s or time.sleep(0.01)

    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(run)
        while not SlowWorker.asked:
            time.sleep(0.01)
        with own.kept():
            waiting = threads.submit(contextvars.copy_context().run, run)
        stood = any(stands() for _ in range(500))
        SlowWorker.go.release(2)
        running.result(), waiting.result()
        assert stood and len(SlowWorker.asked) == 2
        assert not stands()
