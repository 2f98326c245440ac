"""Items prepared in a thread while the last ones are used."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any


class Prefetched:
    """Items of an endless iterator, taken ahead of time in a thread."""

    def __init__(self, items: Iterator[Any], size: int, *, name: str) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=_fill, args=(items, self._queue, self._stopped), name=name, daemon=True
        )
        self._thread.start()

    def get(self) -> Any:
        """The next item, waited for; raises what the iterator raised."""
        item = self._queue.get()
        if isinstance(item, _Failure):
            raise item.error
        return item

    def close(self) -> None:
        """Ends the thread; what it has prepared is lost."""
        self._stopped.set()
        while self._thread.is_alive():  # it may wait for room in the queue
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()
            self._thread.join(0.01)


def _fill(items: Iterator[Any], into: queue.Queue[Any], stopped: threading.Event) -> None:
    try:
        for item in items:
            if stopped.is_set():
                return
            into.put(item)
    except BaseException as error:  # handed to the reader of the queue
        into.put(_Failure(error))


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
