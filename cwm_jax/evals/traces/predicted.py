"""What a model wrote of a trace, read and compared with the true one; without JAX.

A program's output is predicted three ways: at the end of its trace, in one step (``return`` forced
after the entry's call), and directly, as the right side of an ``assert``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cwm_jax.evals.traces.metrics import FrameScore, score_trace
from cwm_jax.tokenizer import END_OF_TEXT, FRAME_SEP, RETURN_SEP
from cwm_jax.trace.episodes import Episode, direct_answer
from cwm_jax.trace.format import parse_frame, scope_locals
from cwm_jax.trace.frames import TraceFrame, is_left, returned_value


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictedTrace:
    """One trace as the model continued it from the entry's call.

    Attributes:
        episode: the true one.
        text: what the model wrote.
        valid: well-formed from end to end: its last frame leaves the entry, and
            ``<|end_of_text|>`` follows.
        divergence: place of the first frame, after the entry's call, that differs, the end counted
            as one; None if none.
        output: value of the entry's return, if the trace ends with it.
        scores: of the true frames after the entry's call, at their places.
    """

    episode: Episode
    text: str
    valid: bool
    divergence: int | None
    output: str | None
    scores: tuple[FrameScore, ...]


def predicted_trace(episode: Episode, true: Sequence[TraceFrame], text: str) -> PredictedTrace:
    """Compares what follows the entry's call.

    Args:
        episode: the true trace.
        true: its frames, the entry's call first.
        text: what the model wrote after that call, with the ``<|end_of_text|>`` that ended it.
    """
    frames, malformed = read_frames(text, true[0])
    whole = [true[0], *frames]
    valid = text.endswith(END_OF_TEXT) and not malformed and is_left(whole)
    scores, divergence = score_trace(true[1:], frames, malformed=malformed)
    if divergence is None and not valid:  # all but the end
        divergence = len(scores)
    return PredictedTrace(
        episode=episode,
        text=text,
        valid=valid,
        divergence=divergence,
        output=returned_value(whole) if valid else None,
        scores=tuple(scores),
    )


def read_frames(
    text: str, entry: TraceFrame | None
) -> tuple[list[TraceFrame | None], frozenset[int]]:
    """The frames that a model wrote after the entry's call; from it on if ``entry`` is None.

    Returns:
        Frames at their places, None where there is no readable event, and the places of those that
        are not well-formed.
    """
    parts = text.removesuffix(END_OF_TEXT).split(FRAME_SEP)
    closed = [part + FRAME_SEP for part in parts[:-1]]
    frames, malformed = [], set()
    previous = None if entry is None else scope_locals(entry, None)
    for place, part in enumerate(closed + parts[-1:] if parts[-1] else closed):
        frame, problems = parse_frame(part, previous)
        frames.append(frame)
        if problems:
            malformed.add(place)
        if frame is not None:
            previous = scope_locals(frame, previous)
    return frames, frozenset(malformed)


def single_step_output(text: str) -> str | None:
    """The value in what follows a forced ``<|return_sep|>``; None if its frame is malformed."""
    frame, problems = parse_frame(RETURN_SEP + text, None)
    return None if frame is None or problems else frame.arg


def direct_output(text: str) -> str | None:
    """The rest of the assertion, its ``<|end_of_text|>`` included; one without end is None."""
    end = direct_answer("")
    return text.removesuffix(end) if text.endswith(end) else None
