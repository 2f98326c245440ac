"""Engines: results in order, work without end, processes that die or cannot start, Ray the same."""

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from corpus_work import mixed

from cwm_jax.sandbox import SandboxError
from cwm_jax.trace.corpus import CorpusSettings, LocalEngine, RayEngine, write_corpus

ROOT = Path(__file__).parent.parent.parent
RAY = """
import sys
from pathlib import Path
from cwm_jax.trace.corpus import CorpusSettings, RayEngine, write_corpus
from corpus_work import mixed

folder = Path(sys.argv[1])
settings = CorpusSettings(unsafe=True, chunk_items=4)
engine = RayEngine(workers=2)
write_corpus(mixed(folder / "ray flag"), folder / "ray", settings=settings, engine=engine)
"""


def joined(items):
    return ",".join(map(str, items)).encode()


def slow_when_even(items):
    time.sleep(0.2 * (items[0] % 2 == 0))
    return joined(items)


def slow_at_zero(items):
    time.sleep(0.5 * (items[0] == 0))
    return joined(items)


def fails(items):
    raise KeyError(f"no {items}")


def lacks_a_sandbox(items):
    raise SandboxError("no bubblewrap")


def ends_at_three(items):
    if 3 in items:
        os._exit(1)
    return joined(items) + b";"


def ends_in_a_thread_at_three(items):
    """Ends the process between two tasks, too."""
    if 3 in items:
        threading.Timer(0.05, os._exit, [1]).start()
    return joined(items)


def died(item):
    return f"died {item};".encode()


def test_results_come_in_the_order_of_the_chunks():
    chunks = [[n, n + 10] for n in range(8)]
    results = LocalEngine(3).map_chunks(slow_when_even, chunks, died)
    assert list(results) == [joined(chunk) for chunk in chunks]


def test_work_may_be_without_end_and_is_not_taken_ahead_of_need():
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield [number]

    results = LocalEngine(2).map_chunks(slow_at_zero, endless(), died)
    assert next(results) == b"0"
    assert 2 <= len(taken) <= 4 * 2
    assert list(itertools.islice(results, 30)) == [b"%d" % n for n in range(1, 31)]
    results.close()
    assert not multiprocessing.active_children()


def test_no_work_is_no_result():
    assert list(LocalEngine(2).map_chunks(joined, [], died)) == []


def test_a_process_that_dies_costs_the_item_that_ended_it_alone():
    chunks = [[0, 1], [2, 3, 4], [5]]
    results = list(LocalEngine(2).map_chunks(ends_at_three, chunks, died))
    assert results == [b"0,1;", b"2;died 3;4;", b"5;"]


def test_a_process_that_dies_while_it_waits_is_replaced():
    results = LocalEngine(1).map_chunks(ends_in_a_thread_at_three, [[n] for n in range(6)], died)
    found = []
    for result in results:
        found.append(result)
        time.sleep(0.1 * (result == b"3"))
    assert found == [b"%d" % n for n in range(6)]


def test_a_function_that_fails_stops_everything_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)a worker failed:.*KeyError: 'no \[1, 2\]'"):
        list(LocalEngine(1).map_chunks(fails, [[1, 2]], died))


def test_the_lack_of_a_sandbox_is_raised_as_such():
    with pytest.raises(SandboxError, match="no bubblewrap"):
        list(LocalEngine(2).map_chunks(lacks_a_sandbox, [[1]], died))


class Unreadable:
    """A function that no other process can be given."""

    def __call__(self, items):
        return b""

    def __reduce__(self):
        return os._exit, (7,)


def test_processes_that_cannot_start_are_not_taken_for_bad_work():
    with pytest.raises(RuntimeError, match="ended with status 7 before it could work"):
        list(LocalEngine(1).map_chunks(Unreadable(), [[1]], died))


@pytest.mark.parametrize("engine", [LocalEngine, RayEngine])
def test_the_number_of_workers_is_checked(engine):
    with pytest.raises(ValueError, match="workers is 0; expected at least 1"):
        engine(workers=0)


def test_without_ray_the_engine_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="pip install ray"):
        list(RayEngine().map_chunks(joined, [[1]], died))


def test_ray_writes_the_same_bytes_whatever_the_work_does(tmp_path):
    paths = [str(ROOT), str(ROOT / "tests" / "trace")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RAY, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    work, settings = mixed(tmp_path / "flag"), CorpusSettings(unsafe=True, chunk_items=4)
    report = write_corpus(work, tmp_path / "local", settings=settings, engine=LocalEngine(1))
    assert report.examples == {"internal:KeyError": ["raises"], "worker-died": ["exits"]}
    assert report.total.kept == 11
    for path in (tmp_path / "local").iterdir():
        if path.name != "run.json":
            assert path.read_bytes() == (tmp_path / "ray" / path.name).read_bytes()
