"""Documents in pieces, each of which fits a row: cut where rows end, or dialogs split at turns.

Split, a dialog that is too long becomes pieces that are dialogs again. Each begins with the
opening, all that is said before the assistant's first message, and goes on with the turns that the
piece before it did not hold, as many as fit. A turn is a message of the assistant with the tools'
results after it, and the user's message before it where there is one. So what is learnt is learnt
once, and with the task before it; what lies between the two is not there.

* A turn that fits no piece is divided between its messages.
* A message that fits no piece loses its tail, which is learnt nowhere: it would be read without its
  beginning.
* An opening of more than half a row stands only before the first message, and there only if both
  fit; other pieces begin with ``bos`` alone. So no message of at most half a row loses its tail.
* A piece of which nothing is learnt is left out.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cwm_jax.data.shards import MASKED_MARK, MESSAGE_MARK, TOKEN_BITS, TURN_MARK


def pieces_of(
    tokens: np.ndarray, max_target_length: int, *, long_dialogs: str
) -> Iterator[tuple[int, np.ndarray]]:
    """The pieces of a document in order, each after the place where its own tokens begin.

    Places rise from piece to piece. A function of its arguments alone.

    Args:
        tokens: ``[n]`` with their marks, at least 2; with all of them, so that what is learnt is
            decided for the document and not for its pieces.
        max_target_length: targets T in a row; a piece has at most T + 1 tokens.
        long_dialogs: as in ``DataConfig``; other documents are cut in any case.
    """
    T = max_target_length
    is_split = long_dialogs == "split" and len(tokens) - 1 > T and (tokens & MESSAGE_MARK).any()
    if not is_split:
        for place in range(0, len(tokens) - 1, T):
            yield place, tokens[place : place + T + 1]
        return
    pieces = list(_split(tokens, T))
    learnt = [(place, piece) for place, piece in pieces if num_learnt(piece)]
    yield from learnt or pieces[:1]  # a stream of documents without any piece would never end


def num_learnt(tokens: np.ndarray) -> int:
    """Tokens that are targets of the loss where these are a piece."""
    return int((tokens[1:] <= TOKEN_BITS).sum())


def describe_split(
    dialogs: Iterable[np.ndarray], max_target_length: int, *, longer: int, count: int
) -> str:
    """What splitting does to a source, for the start of a run.

    Args:
        dialogs: of those that are longer than a row, all or some.
        max_target_length: targets T in a row.
        longer: how many dialogs are longer than a row.
        count: how many there are.
    """
    looked_at = num_pieces = before = after = lost = 0
    for tokens in dialogs:
        found = [piece for _, piece in pieces_of(tokens, max_target_length, long_dialogs="split")]
        looked_at, num_pieces = looked_at + 1, num_pieces + len(found)
        before, after = before + len(tokens), after + sum(map(len, found))
        lost += num_learnt(tokens) - sum(map(num_learnt, found))
    whose = "" if looked_at == longer else f" (of the first {looked_at:,} of them)"
    return (
        f"{longer:,} dialogs of {count:,} are longer than T {max_target_length:,} and are split at "
        f"turns{whose}: {num_pieces:,} pieces with {after:,} tokens in place of {before:,}; "
        f"{lost:,} of what is learnt are lost, tails of messages that fit no piece"
    )


def _split(tokens: np.ndarray, T: int) -> Iterator[tuple[int, np.ndarray]]:
    starts = np.flatnonzero(tokens & MESSAGE_MARK)
    first_learnt = int(((tokens & MASKED_MARK) == 0).argmax())
    answer = int(starts[starts < first_learnt][-1])
    turns = np.flatnonzero(tokens & TURN_MARK)
    turn_ends = [*turns[turns > answer].tolist(), len(tokens)]
    message_ends = [*starts[starts > answer].tolist(), len(tokens)]
    at = answer
    while at < len(tokens):
        message_end = message_ends[bisect.bisect_right(message_ends, at)]
        has_opening = answer <= T // 2 or (at == answer and message_end <= T + 1)
        context = tokens[: answer if has_opening else 1]
        longest = at + T + 1 - len(context)
        end = _last(turn_ends, at, longest) or _last(message_ends, at, longest)
        yield at, np.concatenate([context, tokens[at : end or longest]])
        at = end or message_end


def _last(ends: Sequence[int], at: int, longest: int) -> int | None:
    """The last of the rising ``ends`` that is after ``at`` and not after ``longest``."""
    number = bisect.bisect_right(ends, longest)
    return ends[number - 1] if number and ends[number - 1] > at else None
