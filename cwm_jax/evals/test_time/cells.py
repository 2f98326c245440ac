"""What was run, on disk: a line for each run, found again by a hash of all that it depends on.

Lines are appended by threads as runs end, so that a killed command goes on where it was. A line
that a kill has torn is cut off.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.storage import LineFile

_VERSION = 1  # of what a run means; another one finds nothing of the old


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One run that is to be done.

    Attributes:
        key: of `cell_key`.
        about: for people: the problem, and what is run.
        run: gives what JSON can hold; raises EnvironmentFailure.
    """

    key: str
    about: dict[str, Any]
    run: Callable[[], Any]


def cell_key(*parts: Any) -> str:
    """Of all that a run depends on."""
    text = json.dumps([_VERSION, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Cells:
    """The file of runs that were done, open for one process.

    Raises:
        ValueError: another process writes it, or a line that is not the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = LineFile(path, shown=path, otherwise="name another --out")
        self._lock = threading.Lock()
        try:
            self._known = self._read(path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Cells:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def done(self, cells: Sequence[Cell], *, num_workers: int) -> dict[str, Any]:
        """The values of the cells by key; those that are not known are run, each key once.

        Raises:
            EnvironmentFailure: of some runs, after all others are done and kept.
        """
        missing: dict[str, Cell] = {}
        for cell in cells:
            if cell.key not in self._known:
                missing.setdefault(cell.key, cell)
        failures: list[str] = []
        pool = concurrent.futures.ThreadPoolExecutor(num_workers)
        try:
            futures = [pool.submit(self._run, cell) for cell in missing.values()]
            for future in concurrent.futures.as_completed(futures):
                try:
                    future.result()
                except EnvironmentFailure as error:
                    failures.append(str(error))
        finally:
            pool.shutdown(cancel_futures=True)
        if failures:
            raise EnvironmentFailure(
                f"{len(failures)} of {len(missing)} runs failed, first: {failures[0]}; mend that "
                "and start again: what is done is kept"
            )
        return {cell.key: self._known[cell.key] for cell in cells}

    def _run(self, cell: Cell) -> None:
        value = cell.run()
        line = json.dumps({"key": cell.key, **cell.about, "value": value}).encode() + b"\n"
        with self._lock:
            self._file.add(line)
            self._known[cell.key] = value

    def _read(self, path: Path) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for number, line in enumerate(self._file.lines(), 1):
            try:
                found = json.loads(line)
                known[found["key"]] = found["value"]
            except (ValueError, LookupError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number} is no run's line ({error}); expected what this command has "
                    "written: take the line out, and the run is done again"
                ) from None
        return known
