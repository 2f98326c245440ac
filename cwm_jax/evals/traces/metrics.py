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
        state: it is valid, and event and all locals (of a return or exception: the value) are
            equal, in any order.
        keys: share of the names, of either, that both have; 1 if neither has any, None for a true
            return or exception, which has no locals.
        key_values: likewise, the names that both have with one value.
        action: event and source line are equal.
        exact: valid, state and action.
    """

    valid: bool = False
    state: bool = False
    keys: float | None = 0.0
    key_values: float | None = 0.0
    action: bool = False
    exact: bool = False


METRICS = tuple(field.name for field in dataclasses.fields(FrameScore))


def score_frame(true: TraceFrame, predicted: TraceFrame | None, *, valid: bool) -> FrameScore:
    """Compares one frame; None stands for one that is not there or has no readable event."""
    nothing = 0.0 if true.event.has_locals else None
    if predicted is None or predicted.event is not true.event:
        valid = valid and predicted is not None
        return FrameScore(valid=valid, keys=nothing, key_values=nothing)
    state = valid and predicted.local_vars == true.local_vars and predicted.arg == true.arg
    action = predicted.source_line == true.source_line
    keys, key_values = nothing, nothing
    if true.event.has_locals:
        keys, key_values = _agreement(predicted.local_vars, true.local_vars)
    return FrameScore(
        valid=valid,
        state=state,
        keys=keys,
        key_values=key_values,
        action=action,
        exact=state and action,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredFrame:
    """A score with what it is grouped by."""

    event: str
    difficulty: int | None
    score: FrameScore


def summarise(frames: Sequence[ScoredFrame]) -> dict[str, dict[str, float]]:
    """Means of every metric: of all frames, of each event and of each difficulty.

    Those of names are over the frames that have locals.

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
    return {name: _means(groups[name]) for name in sorted(groups, key=group_order) if groups[name]}


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


def _agreement(ours: Mapping[str, str], theirs: Mapping[str, str]) -> tuple[float, float]:
    names = {*ours, *theirs}
    if not names:
        return 1.0, 1.0
    common = sum(name in ours and name in theirs for name in names)
    equal = sum(ours.get(name) == theirs.get(name) for name in names)
    return common / len(names), equal / len(names)


def _means(scores: Sequence[FrameScore]) -> dict[str, float]:
    means: dict[str, float] = {"frames": len(scores)}
    for name in METRICS:
        values = [float(v) for v in (getattr(score, name) for score in scores) if v is not None]
        if values:
            means[name] = sum(values) / len(values)
    return means


def group_order(name: str) -> tuple[int, str]:
    """Sorts groups: overall, events, difficulties."""
    order = ("overall", "event", "difficulty")
    return order.index(name.partition("=")[0]), name
