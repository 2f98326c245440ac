"""How well predicted frames agree with true ones, frame by frame and summed by groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from cwm_jax.trace import TraceFrame


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameScore:
    """One predicted frame against the true one at its place.

    Attributes:
        valid: well-formed, and there at all.
        state: event and all locals (of a return or exception: the value) are equal.
        keys: share of the names, of either, that both have; 1 for two frames without locals.
        key_values: share of the names, of either, that both have with one value.
        action: event and source line are equal.
        exact: all of it is equal.
    """

    valid: bool = False
    state: bool = False
    keys: float = 0.0
    key_values: float = 0.0
    action: bool = False
    exact: bool = False


METRICS = tuple(field.name for field in dataclasses.fields(FrameScore))


def score_frame(true: TraceFrame, predicted: TraceFrame | None, *, valid: bool) -> FrameScore:
    """Compares one frame; None stands for one that is not there or has no readable event."""
    if predicted is None or predicted.event is not true.event:
        return FrameScore(valid=valid and predicted is not None)
    ours, theirs = predicted.local_vars, true.local_vars
    names = {*ours, *theirs}
    common = sum(name in ours and name in theirs for name in names)
    equal = sum(ours.get(name) == theirs.get(name) for name in names)
    action = predicted.source_line == true.source_line
    state = ours == theirs and predicted.arg == true.arg
    return FrameScore(
        valid=valid,
        state=state,
        keys=common / len(names) if names else 1.0,
        key_values=equal / len(names) if names else 1.0,
        action=action,
        exact=valid and state and action,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredFrame:
    """A score with what it is grouped by."""

    event: str
    difficulty: int | None
    score: FrameScore


def summarise(frames: Sequence[ScoredFrame]) -> dict[str, dict[str, float]]:
    """Means of every metric: of all frames, of each event and of each difficulty.

    Returns:
        ``{"overall": {...}, "event=call": {...}, "difficulty=1": {...}}``, each with ``frames``,
        their number.
    """
    groups: dict[str, list[FrameScore]] = {"overall": []}
    for frame in frames:
        names = ["overall", f"event={frame.event}"]
        names += [] if frame.difficulty is None else [f"difficulty={frame.difficulty}"]
        for name in names:
            groups.setdefault(name, []).append(frame.score)
    return {name: _means(groups[name]) for name in sorted(groups, key=_group_order) if groups[name]}


def score_trace(
    true: Sequence[TraceFrame], predicted: Sequence[TraceFrame | None], *, malformed: frozenset[int]
) -> tuple[list[FrameScore], int | None]:
    """Compares a predicted trace with the true one, place by place.

    Args:
        true: frames after those that the model was given.
        predicted: its frames; None where none can be read.
        malformed: places of predicted frames that are not well-formed.

    Returns:
        A score for each true frame, and the place of the first frame that differs, lacks or is too
        many; None where the traces are equal.
    """
    scores, divergence = [], None
    for place, frame in enumerate(true):
        ours = predicted[place] if place < len(predicted) else None
        score = score_frame(frame, ours, valid=place not in malformed)
        scores.append(score)
        if divergence is None and not score.exact:
            divergence = place
    if divergence is None and len(predicted) > len(true):
        divergence = len(true)
    return scores, divergence


def _means(scores: Sequence[FrameScore]) -> dict[str, float]:
    sums: Mapping[str, float] = {
        name: sum(float(getattr(score, name)) for score in scores) for name in METRICS
    }
    return {"frames": len(scores), **{name: total / len(scores) for name, total in sums.items()}}


def _group_order(name: str) -> tuple[int, str]:
    order = ("overall", "event", "difficulty")
    return order.index(name.partition("=")[0]), name
