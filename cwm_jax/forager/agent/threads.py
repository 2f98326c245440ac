"""Episodes on threads of this process, so that what they ask of one model is asked together."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from cwm_jax.trace.corpus.engines import Function

_AHEAD = 4  # assumed: results that may wait for an earlier one, per worker


@dataclasses.dataclass(frozen=True)
class ThreadEngine:
    """An `Engine` whose function may hold what cannot be sent to another process.

    Attributes:
        workers: threads; each has a sandbox of its own.
    """

    workers: int

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; expected at least 1")

    def map_chunks(
        self, function: Function, chunks: Iterable[Sequence[Any]], died: Callable[[Any], bytes]
    ) -> Generator[bytes, None, None]:
        """See `Engine.map_chunks`; raises what the function does. No thread dies by itself."""
        pool = concurrent.futures.ThreadPoolExecutor(self.workers)
        waiting: collections.deque[concurrent.futures.Future[bytes]] = collections.deque()
        try:
            for chunk in chunks:
                if len(waiting) == _AHEAD * self.workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, chunk))
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Those that run end at their next question: see `ModelPolicies.close`.
            pool.shutdown(wait=False, cancel_futures=True)
