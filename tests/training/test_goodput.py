"""Every second of a run is on one cause, over kills and restarts."""

import json
import time

import pytest
from tiny import tiny_run, write_corpus

from cwm_jax.config import BatchConfig, MeshConfig
from cwm_jax.data.loader import Loader
from cwm_jax.training import loop
from cwm_jax.training.goodput import CAUSES, FIELDS, Goodput, process_start
from cwm_jax.training.metrics import read_metrics


class Clock:
    """Seconds that pass when told."""

    def __init__(self, now: float):
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def path(tmp_path):
    return tmp_path / "goodput.json"


def process(path, clock, *, imports=3.0, step=0, lines=()) -> Goodput:
    """One that began ``imports`` seconds ago and is about to run its first step."""
    books = Goodput(path, started=clock.now, clock=clock)
    clock.advance(imports)
    books.resume(step, list(lines))
    books.begin("step")
    return books


def booked(books: Goodput) -> dict[str, float]:
    books.fields()
    return {cause: seconds for cause, seconds in books.seconds.items() if seconds}


def line(step, time_s, step_time_s):
    return {"step": step, "time_s": time_s, "step_time_s": step_time_s}


def test_each_second_of_a_process_is_on_one_cause(path):
    clock = Clock(100.0)
    books = process(path, clock)
    with books.during("compile"):
        clock.advance(20)
    assert books.wait(lambda: clock.advance(2) or "rows", lambda: False) == ("rows", 2)
    assert books.wait(lambda: clock.advance(1), lambda: True) == (None, 1)  # a step ran meanwhile
    clock.advance(60)
    with books.during("checkpoint"):
        clock.advance(4)
        with books.during("evaluation"):
            clock.advance(5)
        clock.advance(1)
    clock.advance(9)
    expected = {"start_up": 3, "compile": 20, "data_stall": 2, "step": 70}
    assert booked(books) == expected | {"checkpoint": 5, "evaluation": 5}
    assert books.fields()["goodput"] == pytest.approx(70 / 105)
    assert set(books.fields()) | {"data_wait_s"} == FIELDS
    assert books.describe().startswith("goodput 66.7% of 105.0 s: start up 3.0, compile 20.0")


def test_what_was_done_after_the_last_checkpoint_counts_as_repeated(path):
    clock = Clock(0.0)
    books = process(path, clock)
    clock.advance(40)
    books.write(4)  # the checkpoint of step 4 at 43 s
    lines = [line(4, 43.0, 10.0), line(5, 53.0, 10.0), line(6, 63.0, 10.0)]
    clock.now = 70.0  # killed at 65; step 7 was under way and left no line
    books = process(path, clock, step=4, lines=lines)
    expected = {"start_up": 6, "step": 40, "repeated": 20, "restart": 7}
    assert booked(books) == expected
    # killed again before its first line: what it did is known to be over at its own books alone
    clock.advance(2)
    clock.advance(8)
    books = process(path, clock, step=4, lines=lines[:1])
    assert booked(books) == expected | {"start_up": 9, "restart": 17}
    assert sum(booked(books).values()) == clock.now


def test_a_checkpoint_that_was_not_whole_takes_its_steps_with_it(path):
    clock = Clock(0.0)
    books = process(path, clock)
    clock.advance(40)
    books.write(4)
    lines = [line(step, 3.0 + 10 * step, 10.0) for step in range(1, 5)]
    clock.advance(5)
    books = process(path, clock, step=2, lines=lines)  # step 4's is damaged
    assert booked(books) == {"start_up": 6, "step": 20, "repeated": 20, "restart": 5}
    clock.advance(1)
    books = process(path, clock, step=2, lines=lines)  # killed before the lines were cut
    assert booked(books) == {"start_up": 9, "step": 20, "repeated": 20, "restart": 6}


def test_nobody_waits_for_a_finished_run(path):
    clock = Clock(0.0)
    books = process(path, clock)
    clock.advance(7)
    books.write(8, finished=True)
    clock.advance(1e6)
    assert booked(process(path, clock, step=8)) == {"start_up": 6, "step": 7}


def test_a_process_without_books_writes_none(tmp_path):
    clock = Clock(0.0)
    books = process(None, clock)
    books.write(1)
    assert booked(books) == {"start_up": 3}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", '{"seconds": {"lunch": 1}}'])
def test_damaged_books_are_named(path, text):
    path.write_text(text)
    with pytest.raises(ValueError, match=r"goodput\.json: cannot be read"):
        process(path, Clock(0.0))


def test_a_process_knows_its_age():
    start = process_start()
    assert 0 < time.time() - start < 24 * 3600
    assert process_start() == pytest.approx(start, abs=0.5)


def test_causes_of_a_run_that_failed_and_went_on_sum_to_its_time(tmp_path, monkeypatch):
    write_corpus(tmp_path)
    batch = BatchConfig(max_target_length=32, per_device_batch_size=1)
    config = tiny_run(tmp_path, rows=8, batch=batch, mesh=MeshConfig(data=8, fsdp=1))
    # 8 steps, a save at every second
    next_rows, given = Loader.next_rows, []

    def fail_at_the_sixth(self, *args):
        given.append(None)
        if len(given) == 6:
            raise KeyboardInterrupt  # as a kill: nothing is written any more
        time.sleep(0.02)
        return next_rows(self, *args)

    began = time.time()
    monkeypatch.setattr(Loader, "next_rows", fail_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        loop.run(config, started=began)
    time.sleep(0.5)
    again = time.time()
    result = loop.run(config, started=again)
    books = json.loads((result.folder / "goodput.json").read_text())
    seconds = books["seconds"]
    assert books["finished"] and books["step"] == 8
    assert sum(seconds.values()) == pytest.approx(books["until_s"] - began, abs=1e-3)
    assert again - began > seconds["restart"] > 0.5
    assert all(seconds[cause] > 0 for cause in CAUSES if cause != "repeated")
    last = read_metrics(result.folder / "metrics.jsonl")[-1]
    assert 0 < last["goodput"] < 1 and last["restart_s"] == seconds["restart"]
    assert last["data_wait_s"] > 0.02
