"""Half-open intervals ``(start, end)`` of numbers."""


def merge(intervals):
    """The same points as few intervals in rising order; touching ones become one."""
    merged = []
    for start, end in sorted(intervals):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def subtract(intervals, holes):
    """The points of the intervals that lie in none of the holes."""
    left = []
    holes = merge(holes)
    for start, end in merge(intervals):
        for hole_start, hole_end in holes:
            if hole_end <= start or hole_start >= end:
                continue
            if start < hole_start:
                left.append((start, hole_start))
            start = min(hole_end, end)
        if start < end:
            left.append((start, end))
    return left


def gaps(intervals, start, end):
    """What is free between ``start`` and ``end``."""
    if start > end:
        raise ValueError("start is after end")
    return subtract([(start, end)], intervals)


def busiest(intervals):
    """``(point, count)``: the first point that lies in the most intervals, and in how many."""
    events = []
    for start, end in intervals:
        if start < end:
            events.append((start, 1))
            events.append((end, -1))
    best_point, best_count, count = None, 0, 0
    for point, change in sorted(events):
        count += change
        if count > best_count:
            best_point, best_count = point, count
    return best_point, best_count
