"""Where work is done: in processes of this machine, or on many through Ray.

Both give chunks of items to processes that stay, and hand the results on in the order of the
chunks, however they come in. A process that dies is replaced, and each item of its chunk is tried
once more by itself.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from cwm_jax.sandbox import SandboxError

# Chunks that may be done before their turn, per worker: bounds what waits in memory (assumed).
_AHEAD = 4
_LOST = object()
_END_S = 10.0  # for a worker to end by itself

Function = Callable[[Sequence[Any]], bytes]


class Engine(Protocol):
    """Runs a function over chunks of items."""

    def map_chunks(
        self, function: Function, chunks: Iterable[Sequence[Any]], died: Callable[[Any], bytes]
    ) -> Generator[bytes, None, None]:
        """Yields the results of each chunk, joined, in the order of the chunks.

        The processes start with the first and end with the generator.

        No more chunks are taken than there is work for, so they may be without end.

        Args:
            function: of the items of a chunk, or of one of them; can be pickled.
            chunks: items that can be pickled.
            died: the result of an item that ended its process twice.

        Raises:
            SandboxError: the function did.
            RuntimeError: no process can be started, or the function failed in another way.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LocalEngine:
    """Processes of this machine.

    A script that uses it needs ``if __name__ == "__main__":``, as any that starts processes.

    Attributes:
        workers: their number; None takes one for each processor that this process may use.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        _check_workers(self.workers)

    def map_chunks(
        self, function: Function, chunks: Iterable[Sequence[Any]], died: Callable[[Any], bytes]
    ) -> Generator[bytes, None, None]:
        """See `Engine.map_chunks`."""
        workers = self.workers or len(os.sched_getaffinity(0))
        return _in_order(_LocalPool(function, workers), chunks, died)


@dataclasses.dataclass(frozen=True)
class RayEngine:
    """Actors of a Ray cluster; ``cwm_jax`` and the items' modules must be importable on its nodes.

    Attributes:
        address: of the cluster, as `ray.init` takes it; None starts Ray on this machine. Where this
            process is connected to a cluster already, that one is taken.
        workers: actors, of one processor each; None takes one for each processor of the cluster.
        num_gpus: of each actor; the number of actors is then to be given.
        runtime_env: as `ray.init` takes it, for example to bring the package to the nodes.
    """

    address: str | None = None
    workers: int | None = None
    num_gpus: float = 0
    runtime_env: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_workers(self.workers)
        if self.num_gpus and self.workers is None:
            raise ValueError(
                f"num_gpus is {self.num_gpus} and workers is not set; expected the number of "
                "workers: with one for each processor most would wait for a GPU for ever"
            )

    def map_chunks(
        self, function: Function, chunks: Iterable[Sequence[Any]], died: Callable[[Any], bytes]
    ) -> Generator[bytes, None, None]:
        """See `Engine.map_chunks`; raises ImportError without Ray."""
        return _in_order(_RayPool(function, self), chunks, died)


@dataclasses.dataclass(frozen=True)
class _Task:
    """Items for one process: a whole chunk, or at second try one item of it."""

    chunk: int
    position: int
    items: Sequence[Any]
    is_retry: bool = False


class _Pool(Protocol):
    """Processes; a context manager that ends them."""

    workers: int

    def __enter__(self) -> _Pool: ...
    def __exit__(self, *_: object) -> None: ...
    def num_free(self) -> int: ...
    def submit(self, task: _Task) -> None: ...
    def wait(self) -> list[tuple[_Task, Any]]:
        """Blocks until something changes; what is done now, ``_LOST`` where the process is."""
        ...


class _Chunks:
    """What is to be done, and the parts of chunks that are done but not yet in turn."""

    def __init__(self, chunks: Iterable[Sequence[Any]], ahead: int) -> None:
        self._source = enumerate(chunks)
        self._ahead = ahead
        self._retries: collections.deque[_Task] = collections.deque()
        self._parts: dict[int, list[bytes | None]] = {}
        self._yielded = 0
        self._exhausted = False

    def next_task(self) -> _Task | None:
        if self._retries:
            return self._retries.popleft()
        if len(self._parts) >= self._ahead:
            return None
        number, items = next(self._source, (0, None))
        if items is None:
            self._exhausted = True
            return None
        self._parts[number] = [None]
        return _Task(number, 0, items)

    def done(self, task: _Task, result: bytes) -> None:
        self._parts[task.chunk][task.position] = result

    def lost(self, task: _Task) -> None:
        """Its items are to be tried again, one by one."""
        self._parts[task.chunk] = [None] * len(task.items)
        self._retries += [_Task(task.chunk, n, [item], True) for n, item in enumerate(task.items)]

    def in_turn(self) -> Iterator[bytes]:
        """The chunks that are whole and next."""
        while None not in (parts := self._parts.get(self._yielded, [None])):
            del self._parts[self._yielded]
            self._yielded += 1
            yield b"".join(part for part in parts if part is not None)

    def is_done(self) -> bool:
        return self._exhausted and not self._parts


def _in_order(
    pool: _Pool, chunks: Iterable[Sequence[Any]], died: Callable[[Any], bytes]
) -> Generator[bytes, None, None]:
    with pool:
        state = _Chunks(chunks, _AHEAD * pool.workers)
        while True:
            while pool.num_free() and (task := state.next_task()) is not None:
                pool.submit(task)
            if state.is_done():
                return
            for task, result in pool.wait():
                if result is not _LOST:
                    state.done(task, result)
                elif task.is_retry:
                    state.done(task, died(task.items[0]))
                else:
                    state.lost(task)
            yield from state.in_turn()


@dataclasses.dataclass(eq=False)
class _Process:
    """A process of this machine; ``task`` is what it does, ``ready`` whether it ever started."""

    process: Any
    connection: Any
    task: _Task | None = None
    ready: bool = False


class _LocalPool:
    def __init__(self, function: Function, workers: int) -> None:
        self.workers = workers
        self._function = function
        self._processes: list[_Process] = []
        # A forked process would share what this one holds: threads, locks, accelerators.
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> _LocalPool:
        for _ in range(self.workers):
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._processes:
            worker.connection.close()  # ends one that waits for a task
            if worker.task is not None:
                worker.process.terminate()
        for worker in self._processes:
            worker.process.join(_END_S)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join()
            worker.process.close()

    def num_free(self) -> int:
        return sum(worker.ready and worker.task is None for worker in self._processes)

    def submit(self, task: _Task) -> None:
        worker = next(w for w in self._processes if w.ready and w.task is None)
        worker.task = task
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead: `wait` sees it
            worker.connection.send(task.items)

    def wait(self) -> list[tuple[_Task, Any]]:
        by_connection = {w.connection: w for w in self._processes if w.task or not w.ready}
        done = []
        for connection in multiprocessing.connection.wait(list(by_connection)):
            worker = by_connection[connection]
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                done += self._replace(worker)
                continue
            if not worker.ready:
                worker.ready = True
            elif worker.task is not None:
                done.append((worker.task, _result(message)))
                worker.task = None
        return done

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        process.start()
        theirs.close()  # else its end would not be seen
        self._processes.append(_Process(process, ours))

    def _replace(self, worker: _Process) -> list[tuple[_Task, Any]]:
        self._processes.remove(worker)
        worker.connection.close()
        worker.process.join(_END_S)
        if not worker.ready:
            raise RuntimeError(
                f"a worker process ended with status {worker.process.exitcode} before it could "
                "work; expected it to start: its own message is above (a script that starts "
                'processes needs if __name__ == "__main__":)'
            )
        worker.process.close()
        self._start()
        return [] if worker.task is None else [(worker.task, _LOST)]


def _serve(connection: Any, function: Function) -> None:
    """A local worker: answers each list of items until the other side is gone."""
    # Ctrl-C is for the process that waits. To be ignored would be handed on to traced programs.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        connection.send(None)
        while True:
            connection.send(_answer(function, connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _RayPool:
    def __init__(self, function: Function, engine: RayEngine) -> None:
        self._ray = _import_ray()
        self._function = function
        self._engine = engine
        self._starting: dict[Any, Any] = {}  # reference -> actor
        self._free: list[Any] = []
        self._busy: dict[Any, tuple[Any, _Task]] = {}
        self.workers = 0

    def __enter__(self) -> _RayPool:
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            local = {"include_dashboard": False} if self._engine.address is None else {}
            self._ray.init(
                address=self._engine.address or "local",
                runtime_env=dict(self._engine.runtime_env or {}) or None,
                log_to_driver=False,
                **local,
            )
        self.workers = self._engine.workers or int(self._ray.cluster_resources()["CPU"])
        resources = {"num_cpus": 1, "num_gpus": self._engine.num_gpus}
        self._actor_class = self._ray.remote(**resources, max_restarts=0)(_Actor)
        for _ in range(self.workers):
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        actors = [
            *self._starting.values(),
            *self._free,
            *(actor for actor, _ in self._busy.values()),
        ]
        for actor in actors:
            self._ray.kill(actor)
        if self._is_ours:
            self._ray.shutdown()

    def num_free(self) -> int:
        return len(self._free)

    def submit(self, task: _Task) -> None:
        actor = self._free.pop()
        self._busy[actor.answer.remote(task.items)] = (actor, task)

    def wait(self) -> list[tuple[_Task, Any]]:
        references, _ = self._ray.wait([*self._starting, *self._busy], num_returns=1)
        return [done for reference in references for done in self._finished(reference)]

    def _finished(self, reference: Any) -> list[tuple[_Task, Any]]:
        try:
            message = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if reference in self._starting:
                raise RuntimeError(
                    f"a Ray worker did not start: {error}; expected cwm_jax to be importable on "
                    "every node: install it there, or say so in runtime_env"
                ) from error
            _, task = self._busy.pop(reference)
            self._start()
            return [(task, _LOST)]
        if reference in self._starting:
            self._free.append(self._starting.pop(reference))
            return []
        actor, task = self._busy.pop(reference)
        self._free.append(actor)
        return [(task, _result(message))]

    def _start(self) -> None:
        actor = self._actor_class.remote(self._function)
        self._starting[actor.ready.remote()] = actor


class _Actor:
    """A Ray worker."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def ready(self) -> None:
        """Returns when the actor is there."""

    def answer(self, items: Sequence[Any]) -> tuple[bool, Any]:
        return _answer(self._function, items)


def _answer(function: Function, items: Sequence[Any]) -> tuple[bool, Any]:
    """(True, the result) or (False, what is to be raised by who waits for it)."""
    try:
        return True, function(items)
    except SandboxError as error:
        return False, error
    except Exception:  # may not be pickled itself
        return False, RuntimeError(f"a worker failed:\n{traceback.format_exc()}")


def _result(message: tuple[bool, Any]) -> bytes:
    succeeded, value = message
    if not succeeded:
        raise value
    return value


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "the Ray engine needs ray, which is not installed; expected ray 2.x: pip install ray"
        ) from error
    return ray


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; expected at least 1, or None for all processors")
