"""Documents into rows of the batch contract; pure, and resumable from a cursor of three numbers.

A document of n tokens is n - 1 pairs (token, next token), and rows hold pairs. So every token but a
document's first is a target exactly once wherever rows are cut, and the last token (``eos``) is a
target only: no slot is spent on an input without a target. A document that is continued in another
row is a document of its own there: its positions restart at 0 and it does not see its earlier part.
A token that bears a mark (``cwm_jax.data.shards``) is no target of the loss. Long dialogs that are
split at turns are the exception: their pieces repeat some tokens that are no targets.

The packers are not grain's: these need no grain, serve finite streams (held-out rows) as well, and
their state survives JSON (grain 0.2.18 compares slices with a tuple, which JSON returns as a list).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from cwm_jax.data.pieces import pieces_of
from cwm_jax.data.shards import TOKEN_BITS

ROW_KEYS = ("tokens", "targets", "positions", "segment_ids", "loss_mask")
# Rows that the fits fill side by side: more pad less, cost memory and are replayed on restore.
GROUP_ROWS = 64

Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Cursor:
    """Where a stream of rows continues: what has to be read again, and what of it was delivered.

    Attributes:
        document: index in the stream of documents of the first one that is needed again.
        offset: its targets that earlier rows (for the fits: earlier groups) hold; of a dialog that
            is split, the place where the next piece's own tokens begin.
        row: rows delivered of the group that begins there; 0 for ``concat_then_split``.
    """

    document: int = 0
    offset: int = 0
    row: int = 0


def pack(
    documents: Iterable[np.ndarray],
    *,
    packing: str,
    max_target_length: int,
    long_dialogs: str = "cut",
    cursor: Cursor = Cursor(),
) -> Iterator[tuple[Row, Cursor]]:
    """Yields packed rows, each with the cursor from which the stream goes on after it.

    ``concat_then_split`` fills every row and cuts documents at its end. ``first_fit`` and
    ``best_fit`` cut documents into pieces of at most a row and put each, in order, into the first
    row of a group of ``GROUP_ROWS`` that has room, or into the one where it leaves the least; the
    first piece that fits nowhere starts a new group. A finite stream ends with its last, partly
    filled rows.

    Args:
        documents: tokens of each, at least 2, from number ``cursor.document`` of the stream on.
        packing: as in ``DataConfig``.
        max_target_length: targets T in a row.
        long_dialogs: as in ``DataConfig``; read by the fits.
        cursor: where to go on; with it the rows are those of the uninterrupted stream.
    """
    if packing == "concat_then_split":
        return _concat_then_split(documents, max_target_length, cursor)
    if packing in ("first_fit", "best_fit"):
        pieces = _pieces(documents, max_target_length, cursor, long_dialogs=long_dialogs)
        return _fit(pieces, max_target_length, cursor, best=packing == "best_fit")
    raise ValueError(
        f"packing is {packing!r}; expected 'concat_then_split', 'first_fit' or 'best_fit'"
    )


def describe_cut(lengths: np.ndarray, *, packing: str, max_target_length: int) -> str | None:
    """How many dialogs of a source lose their unity in rows, for the start of a run; None: none do.

    ``lengths`` are tokens of each, as shards state them.
    """
    T, count = max_target_length, len(lengths)
    if packing == "concat_then_split":
        return f"packing {packing} cuts dialogs where rows end: set data.packing='best_fit'"
    longer = int((np.asarray(lengths, np.int64) - 1 > T).sum())
    if not longer:
        return None
    return (
        f"{longer:,} dialogs of {count:,} are longer than T {T:,} and are cut: what follows a cut "
        "is learnt without what stands before it; raise batch.max_target_length, set "
        "data.long_dialogs='split', or take them out"
    )


def row_from_pieces(pieces: Iterable[np.ndarray], max_target_length: int) -> Row:
    """One row: piece i of k + 1 tokens becomes segment i with k targets; the rest is padding, 0."""
    row: Row = {key: np.zeros(max_target_length, np.int32) for key in ROW_KEYS[:-1]}
    row["loss_mask"] = np.zeros(max_target_length, np.float32)
    start = 0
    for segment, piece in enumerate(pieces, 1):
        end = start + len(piece) - 1
        tokens = piece & TOKEN_BITS
        row["tokens"][start:end] = tokens[:-1]
        row["targets"][start:end] = tokens[1:]
        row["positions"][start:end] = np.arange(end - start)
        row["segment_ids"][start:end] = segment
        row["loss_mask"][start:end] = piece[1:] == tokens[1:]
        start = end
    return row


def stack_rows(rows: Iterable[Row]) -> Row:
    """Rows ``[T]`` into a batch ``[n, T]``."""
    rows = list(rows)
    return {key: np.stack([row[key] for row in rows]) for key in ROW_KEYS}


def cut_rows(rows: Row, size: int) -> list[Row]:
    """Rows ``[n, T]`` as batches of ``size``; the last is filled with padding."""
    missing = -len(rows["tokens"]) % size
    padded = {key: np.pad(values, ((0, missing), (0, 0))) for key, values in rows.items()}
    starts = range(0, len(padded["tokens"]), size)
    return [{key: v[start : start + size] for key, v in padded.items()} for start in starts]


def _concat_then_split(
    documents: Iterable[np.ndarray], T: int, cursor: Cursor
) -> Iterator[tuple[Row, Cursor]]:
    pieces, free = [], T
    index, offset = cursor.document, cursor.offset
    for tokens in documents:
        num_targets = len(tokens) - 1
        while offset < num_targets:
            taken = min(free, num_targets - offset)
            pieces.append(tokens[offset : offset + taken + 1])
            offset, free = offset + taken, free - taken
            if free == 0:
                yield row_from_pieces(pieces, T), Cursor(index, offset)
                pieces, free = [], T
        index, offset = index + 1, 0
    if pieces:
        yield row_from_pieces(pieces, T), Cursor(index)


def _fit(
    pieces: Iterable[tuple[np.ndarray, Cursor]], T: int, cursor: Cursor, *, best: bool
) -> Iterator[tuple[Row, Cursor]]:
    group, free, start = _empty_group(T), np.full(GROUP_ROWS, T), cursor
    end = Cursor(cursor.document)
    for piece, at in pieces:
        need = len(piece) - 1
        if need > free.max():
            yield from _rows_of_group(group, T, start, after=at)
            group, free, start = _empty_group(T), np.full(GROUP_ROWS, T), at
        room = np.where(free >= need, free, T + 1)
        chosen = int(room.argmin() if best else (room <= T).argmax())
        group[chosen].append(piece)
        free[chosen] -= need
        end = Cursor(at.document + 1)
    yield from _rows_of_group(group, T, start, after=end)


def _empty_group(T: int) -> list[list[np.ndarray]]:
    return [[] for _ in range(GROUP_ROWS)]


def _pieces(
    documents: Iterable[np.ndarray], T: int, cursor: Cursor, *, long_dialogs: str
) -> Iterator[tuple[np.ndarray, Cursor]]:
    first = cursor.offset
    for index, tokens in enumerate(documents, cursor.document):
        for offset, piece in pieces_of(tokens, T, long_dialogs=long_dialogs):
            if offset >= first:
                yield piece, Cursor(index, offset)
        first = 0


def _rows_of_group(
    group: list[list[np.ndarray]], T: int, start: Cursor, *, after: Cursor
) -> Iterator[tuple[Row, Cursor]]:
    """The rows of a group from number ``start.row`` on; the last one's cursor is ``after``."""
    filled = [pieces for pieces in group if pieces]
    for number in range(start.row, len(filled)):
        last = number + 1 == len(filled)
        yield (
            row_from_pieces(filled[number], T),
            after if last else dataclasses.replace(start, row=number + 1),
        )
