"""A corpus of execution traces as ``cwm_jax.trace.corpus`` writes it: a manifest and ArrayRecords.

``manifest.json`` is an object with ``schema_version`` 1, ``kind`` ``trace-corpus`` and ``files``
(``name bytes sha256`` each, in the order of the episodes). A record is one episode as JSON in
UTF-8; of its keys ``name prompt frames finished`` are read, and others are left alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from cwm_jax.data.files import DataError, StoredFile, check_file
from cwm_jax.schema import from_json
from cwm_jax.tokenizer import BEGIN_OF_TEXT, END_OF_TEXT, FRAME_SEP, TRACE_CONTEXT_START

MANIFEST = "manifest.json"
KIND, SCHEMA_VERSION = "trace-corpus", 1
_PROMPT_START = BEGIN_OF_TEXT + TRACE_CONTEXT_START
_READ_AGAIN = "trace the corpus again, or fetch it again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One execution trace; special tokens are in its texts by name.

    Attributes:
        name: ``PROGRAM#N``, unique and stable.
        prompt: ``<|begin_of_text|><|trace_context_start|>`` to the first ``<|frame_sep|>``.
        frames: what follows, with the final ``<|end_of_text|>`` if ``finished``.
        finished: False where a limit cut the trace.
    """

    name: str
    prompt: str
    frames: str
    finished: bool


def corpus_files(folder: Path) -> tuple[StoredFile, ...]:
    """The files that the manifest of a trace corpus lists.

    Raises:
        DataError: no manifest, or one of another kind or version.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text())
        kind, version = values["kind"], values["schema_version"]
        files = tuple(from_json(StoredFile, file) for file in values["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no readable manifest ({error}); expected that of a trace corpus: set path "
            "to its folder"
        ) from error
    if (kind, version) != (KIND, SCHEMA_VERSION):
        raise DataError(
            f"{path} is of kind {kind!r}, version {version!r}; expected {KIND!r}, "
            f"{SCHEMA_VERSION}: {_READ_AGAIN}"
        )
    return files


def episodes(folder: Path, file: StoredFile) -> Iterator[Episode]:
    """Streams the episodes of one file, after its content is checked.

    Raises:
        DataError: the file is missing or damaged, or a record is not an episode.
    """
    path = folder / file.name
    check_file(path, file, verify=True, next_step=_READ_AGAIN)
    reader: Any = ArrayRecordReader(str(path))
    try:
        for number in range(reader.num_records()):
            yield _episode(reader.read(), f"{path}:{number}")
    except RuntimeError as error:  # ArrayRecord's
        raise DataError(f"{path} cannot be read ({error}); {_READ_AGAIN}") from error
    finally:
        reader.close()


def _episode(record: bytes, where: str) -> Episode:
    try:
        values = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}); {_READ_AGAIN}") from error
    wanted = {"name": str, "prompt": str, "frames": str, "finished": bool}
    kinds = {key: type(values.get(key)) for key in wanted} if isinstance(values, dict) else None
    if kinds != wanted:
        got = f"has {kinds}" if kinds else "is no object"
        raise DataError(f"{where} {got}; expected {wanted}: {_READ_AGAIN}")
    episode = Episode(**{key: values[key] for key in wanted})
    _check_texts(episode, where)
    return episode


def _check_texts(episode: Episode, where: str) -> None:
    """Raises DataError where the texts are not what the loss mask and the model rely on."""
    prompt, frames = episode.prompt, episode.frames
    try:
        (prompt + frames).encode()
    except UnicodeEncodeError as error:  # a lone "\\ud800" escape
        raise DataError(f"{where} is not text ({error}); {_READ_AGAIN}") from error
    if not prompt.startswith(_PROMPT_START) or prompt.find(FRAME_SEP) != len(prompt) - len(
        FRAME_SEP
    ):
        raise DataError(
            f"{where}: the prompt {prompt[:60]!r} ... {prompt[-30:]!r} does not begin with "
            f"{_PROMPT_START} and end with its only {FRAME_SEP}; {_READ_AGAIN}"
        )
    if not frames or frames.endswith(END_OF_TEXT) != episode.finished:
        raise DataError(
            f"{where}: finished is {episode.finished}, but the frames end with {frames[-30:]!r}; "
            f"expected {END_OF_TEXT} there if finished alone: {_READ_AGAIN}"
        )
