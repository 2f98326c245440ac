"""A conversion in units that run at once and that a killed process need not repeat.

.NAME.partial/journal.jsonl   what is being made, from what; then a line for each finished unit
.NAME.partial/content/        becomes NAME when everything is there
.NAME.partial/lock            held by the process that writes

A unit's files are flushed to disk before its line is, so a line never speaks of half a file; they
still count only while their sizes and times of change are those of the line.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from convert.folders import check_vacant, sync, sync_tree
from convert.names import ConversionError
from convert.sources import FileSource, Source, largest_block_bytes

_JOURNAL = "journal.jsonl"
_CONTENT = "content"
_LOCK = "lock"
_FORMAT = 1  # of the journal and of how units cut a model
# Blocks that a worker holds at a time: read, cast, transposed, encoded (measured: 3 to 5).
BLOCKS_PER_WORKER = 5
MAX_BLOCKS_BYTES = 4 << 30  # of all workers unless asked otherwise: half of 8 GB


@dataclasses.dataclass(frozen=True)
class Unit:
    """A part of a conversion with files of its own.

    Attributes:
        name: unique, and the same when the conversion is started again.
        num_tensors: for the progress bar.
        write: writes its files and returns their paths, with anything in JSON's types to remember.
    """

    name: str
    num_tensors: int
    write: Callable[[], tuple[list[Path], Any]]


class Work:
    """The units of a conversion and the folder they are collected in."""

    def __init__(self, beside: Path) -> None:
        self.folder = beside / _CONTENT
        self._journal = beside / _JOURNAL
        self._done: dict[str, dict[str, Any]] = {}
        self._writing = threading.Lock()
        self._stopping = threading.Event()

    def run(self, units: Sequence[Unit], workers: int) -> dict[str, Any]:
        """Runs the units that are not done; returns what each has remembered.

        Raises:
            Whatever a unit raises first; the others then stop at their next block.
        """
        waiting = [unit for unit in units if unit.name not in self._done]
        done = sum(unit.num_tensors for unit in units if unit.name in self._done)
        total = sum(unit.num_tensors for unit in units)
        with (
            tqdm(total=total, initial=done, unit="tensor", disable=None) as bar,
            concurrent.futures.ThreadPoolExecutor(workers) as pool,
        ):
            futures = {pool.submit(self._finish, unit): unit for unit in waiting}
            try:
                for future in concurrent.futures.as_completed(futures):
                    future.result()
                    bar.update(futures[future].num_tensors)
            except BaseException:
                self._stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return {unit.name: self._done[unit.name]["details"] for unit in units}

    def check_stop(self) -> None:
        """Called by units between blocks: raises in those that need not go on."""
        if self._stopping.is_set():
            raise InterruptedError("another part of the conversion failed")

    def _finish(self, unit: Unit) -> None:
        self.check_stop()
        files, details = unit.write()
        for file in files:
            sync(file)
        for folder in {file.parent for file in files}:
            sync(folder)
        record = {
            "unit": unit.name,
            "files": {str(file.relative_to(self.folder)): _state(file) for file in files},
            "details": details,
        }
        with self._writing:
            _append(self._journal, record)
            self._done[unit.name] = record

    def _resume(self) -> None:
        """Takes over the units whose files are as the journal says; removes all other files."""
        for record in _records(self._journal)[1:]:
            self._done[record["unit"]] = record
        self._done = {
            name: record
            for name, record in self._done.items()
            if all(_state(self.folder / f) == s for f, s in record["files"].items())
        }
        kept = {self.folder / file for record in self._done.values() for file in record["files"]}
        for path in list(self.folder.rglob("*")):
            if not path.is_dir() and path not in kept:
                path.unlink()


@contextlib.contextmanager
def resumable_folder(path: Path, job: dict[str, Any], *, restart: bool = False) -> Iterator[Work]:
    """Work that becomes the folder ``path`` at the end, and not before.

    If the process is killed, interrupted or out of disk, finished units stay beside ``path`` and
    the next call with an equal job starts from them.

    Args:
        path: absent or an empty folder.
        job: see ``job_of``.
        restart: discard what an earlier process has left.

    Raises:
        ConversionError: there is something at ``path``; another process writes it; or what was left
            belongs to another job.
    """
    path = Path(os.path.abspath(path))  # "." has no name
    check_vacant(path)
    beside = path.parent / f".{path.name}.partial"
    beside.mkdir(parents=True, exist_ok=True)
    with _lock(beside, path):
        if restart:
            _discard(beside)
        _check_job(beside, job)
        work = Work(beside)
        work.folder.mkdir(exist_ok=True)
        try:
            work._resume()
            yield work
            sync_tree(work.folder)
            work.folder.rename(path)  # an empty folder is replaced; one filled meanwhile raises
            sync(path.parent)
            shutil.rmtree(beside)
        except ValueError:  # what is there cannot be converted: nothing to go on with
            shutil.rmtree(beside)
            raise
        except OSError as error:
            error.add_note(
                f"finished parts are kept in {beside}: the same command goes on from there"
            )
            raise


def job_of(command: str, source: FileSource, **options: Any) -> dict[str, Any]:
    """What makes two conversions the same: command, source (as its files are now), options."""
    folder = source.folder.absolute()
    files = {str(f.relative_to(source.folder)): _state(f) for f in sorted(source.identity_files())}
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return {
        "format": _FORMAT,
        "command": command,
        "source": str(folder),
        "files of the source": digest,
        **options,
    }


def choose_workers(asked: int | None, source: Source) -> int:
    """As asked, or the cores of this process as far as blocks fit in MAX_BLOCKS_BYTES.

    A conversion's memory is that of the libraries (0.15 GB; 0.4 GB with PyTorch) plus at most
    workers x BLOCKS_PER_WORKER x the largest block.

    Raises:
        ConversionError: fewer than one asked for.
    """
    if asked is None:
        fit = MAX_BLOCKS_BYTES // (BLOCKS_PER_WORKER * largest_block_bytes(source))
        return max(1, min(len(os.sched_getaffinity(0)), fit))
    if asked < 1:
        raise ConversionError(f"workers is {asked}; expected 1 or more")
    return asked


def _check_job(beside: Path, job: dict[str, Any]) -> None:
    records = _records(beside / _JOURNAL)
    if not records:  # killed before the first line was whole: nothing counts
        _discard(beside)
        _append(beside / _JOURNAL, {"job": job})
        return
    old = records[0].get("job", {})
    changed = [
        f"{key} (then {old.get(key)!r}, now {job.get(key)!r})"
        for key in sorted(old.keys() | job.keys())
        if old.get(key) != job.get(key)
    ]
    if changed:
        raise ConversionError(
            f"{beside} holds an unfinished conversion with other {', '.join(changed)}; give the "
            "same arguments to go on with it, --restart to discard it, or another destination"
        )


@contextlib.contextmanager
def _lock(beside: Path, path: Path) -> Iterator[None]:
    with open(beside / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConversionError(f"another process is writing {path}; wait for it") from error
        check_vacant(path)  # it may have finished meanwhile
        yield


def _discard(beside: Path) -> None:
    (beside / _JOURNAL).unlink(missing_ok=True)  # first: without it, no content counts
    sync(beside)
    shutil.rmtree(beside / _CONTENT, ignore_errors=True)


def _records(journal: Path) -> list[dict[str, Any]]:
    """Whole lines only: the last may have been cut by a kill; the next is then put in its place."""
    if not journal.exists():
        return []
    data = journal.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(journal, len(whole))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise ConversionError(f"{journal} is damaged ({error}); --restart begins anew") from error


def _append(journal: Path, record: dict[str, Any]) -> None:
    with open(journal, "ab") as file:
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _state(file: Path) -> list[int]:
    """Size and time of change; those of no file if it is not there."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]
