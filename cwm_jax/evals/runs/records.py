"""What a run has done, item by item, on disk: appended, never rewritten; a killed run goes on.

    <folder>/run.json       what was asked of which model, with which file: compared on resuming
             items.jsonl    a record a line, in the order in which they were finished

A record is on the disk before the next is taken up. A line that a kill has torn is cut off.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cwm_jax.storage import LineFile, StorageError, write_json

RUN_FILE, ITEMS_FILE = "run.json", "items.jsonl"
KIND, SCHEMA_VERSION = "evaluation", 1
Key = tuple[str, int]
# Of run.json, what may differ between the starts of a run.
_FREE = ("versions", "started", "url", "notes", "metrics", "published", "about")


class RecordsError(ValueError):
    """A folder that is not a run's, or is another's, or is damaged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """One answer of an attempt; counts are None where the server does not tell."""

    text: str
    reasoning: str
    finish_reason: str
    num_prompt_tokens: int | None
    num_tokens: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One sample of one problem.

    Attributes:
        problem, sample: what it is of.
        status: ``graded``; ``too_long``: its prompt left no room for an answer, which counts as
            failed; ``void``: its environment failed, which counts as nothing.
        turns: the model's answers.
        passed, answer, reason, scores, info: the verdict's.
        seconds: from the start of the attempt to its verdict.
        seed: of the attempt.
        labels: the problem's.
    """

    problem: str
    sample: int
    status: Literal["graded", "too_long", "void"]
    turns: tuple[Turn, ...] = ()
    passed: bool = False
    answer: str | None = None
    reason: str = ""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    seed: int = 0
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.problem, self.sample

    @property
    def is_void(self) -> bool:
        return self.status == "void"

    @property
    def num_tokens(self) -> int | None:
        """Of all its answers; None where one is not known."""
        return _sum(turn.num_tokens for turn in self.turns)

    @property
    def num_prompt_tokens(self) -> int | None:
        return _sum(turn.num_prompt_tokens for turn in self.turns)


class RecordFile:
    """The folder of a run, open for one process.

    Args:
        folder: made if missing.
        run: what ``run.json`` says.

    Raises:
        RecordsError: it is of another run, which is named; another process writes it; a damaged
            line that is not the last.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        path = folder / ITEMS_FILE
        try:
            self._file = LineFile(path, shown=folder, otherwise="name another by --out")
        except StorageError as error:
            raise RecordsError(str(error)) from None
        try:
            self._begin(dict(run))
            self.records = _by_key(_read(path, self._file.lines()), folder)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, record: Record) -> None:
        """Appends; it is on the disk when this returns."""
        known = self.records.get(record.key)
        assert known is None or known.is_void, record.key
        self._file.add(json.dumps(dataclasses.asdict(record)).encode() + b"\n")
        self.records[record.key] = record

    def note(self, notes: Sequence[str]) -> None:
        """Keeps what readers should know, besides what earlier starts of the run have kept."""
        kept = [*self.run.get("notes", ()), *notes]
        self.run["notes"] = list(dict.fromkeys(kept))
        write_json(self.folder / RUN_FILE, self.run)

    def _begin(self, run: dict[str, Any]) -> None:
        run = {"kind": KIND, "schema_version": SCHEMA_VERSION, **json.loads(json.dumps(run))}
        if not (self.folder / RUN_FILE).exists():
            if (self.folder / ITEMS_FILE).stat().st_size:
                raise RecordsError(
                    f"{self.folder} has {ITEMS_FILE} and no {RUN_FILE}; expected both, or neither: "
                    "name another folder by --out"
                )
            write_json(self.folder / RUN_FILE, run)
        self.run = read_run(self.folder)
        changed = list(_differences(self.run, run))
        if changed:
            raise RecordsError(
                f"{self.folder} holds a run of other settings: {'; '.join(changed)}; expected the "
                "same to go on with it: name another folder by --out, or ask as before"
            )


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json`` of a folder; raises RecordsError."""
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        found = run["kind"], run["schema_version"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RecordsError(
            f"{folder}: no readable {RUN_FILE} ({error}); expected the folder of an evaluation"
        ) from error
    if found != (KIND, SCHEMA_VERSION):
        raise RecordsError(
            f"{folder}: {RUN_FILE} is of kind {found[0]!r}, version {found[1]!r}; expected "
            f"{KIND!r}, {SCHEMA_VERSION}: evaluate again"
        )
    return run


def read_records(folder: Path) -> dict[Key, Record]:
    """The records of a folder that nobody writes; of an item the newest.

    Raises:
        RecordsError: a damaged line that is not the last, or an item that is there twice.
    """
    path = folder / ITEMS_FILE
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RecordsError(f"{path}: cannot be read ({error}); name a run's folder") from error
    return _by_key(_read(path, lines), folder)


def merge(folders: Sequence[Path], out: Path) -> None:
    """Writes the runs of several shards as one.

    Raises:
        RecordsError: they differ in more than their shard, or an item is in several of them.
    """
    runs = [read_run(folder) for folder in folders]
    for folder, run in zip(folders[1:], runs[1:], strict=True):
        first, other = (_without_shard(r) for r in (runs[0], run))
        if changed := list(_differences(first, other)):
            raise RecordsError(
                f"{folder} is no shard of the run in {folders[0]}: {'; '.join(changed)}"
            )
    whole = _without_shard(runs[0])
    whole["num_problems"] = sum(run["num_problems"] for run in runs)
    whole["notes"] = list(dict.fromkeys(note for run in runs for note in run.get("notes", ())))
    found: dict[Key, Record] = {}
    for folder in folders:
        for key, record in read_records(folder).items():
            if key in found:
                raise RecordsError(f"{folder}: {key} is in another shard, too; name each once")
            found[key] = record
    with RecordFile(out, whole) as file:
        for key, record in found.items():
            if key not in file.records:
                file.add(record)


def _without_shard(run: Mapping[str, Any]) -> dict[str, Any]:
    return {**run, "settings": {**run["settings"], "shard": None}, "num_problems": None}


def _read(path: Path, lines: Sequence[bytes]) -> Iterable[Record]:
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            turns = tuple(Turn(**turn) for turn in values.pop("turns"))
            yield Record(**values, turns=turns)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise RecordsError(
                f"{path}:{number} is no record ({error}); expected what an evaluation has written: "
                "take the line out, and the item is done again"
            ) from error


def _by_key(records: Iterable[Record], folder: Path) -> dict[Key, Record]:
    found: dict[Key, Record] = {}
    for record in records:
        known = found.get(record.key)
        if known is not None and not known.is_void:
            raise RecordsError(f"{folder}: {record.key} is there twice; take one of the lines out")
        found[record.key] = record
    return found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterable[str]:
    for name in sorted({*old, *new}):
        if not path and name in _FREE:
            continue
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{path}{name}.")
        elif before != after:
            yield f"{path}{name} was {_shown(before)} and is {_shown(after)}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sum(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
