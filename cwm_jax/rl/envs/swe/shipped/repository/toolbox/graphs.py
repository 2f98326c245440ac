"""Graphs as lists of edges."""

import heapq


def neighbours(edges, directed=False):
    """A dictionary from each node to the sorted list of those it has an edge to."""
    found = {}
    for a, b in edges:
        found.setdefault(a, set()).add(b)
        found.setdefault(b, set())
        if not directed:
            found[b].add(a)
    return {node: sorted(others) for node, others in found.items()}


def components(edges):
    """Sorted lists of the nodes that hang together, the largest first."""
    near = neighbours(edges)
    seen, parts = set(), []
    for root in sorted(near):
        if root in seen:
            continue
        part, pending = [], [root]
        seen.add(root)
        while pending:
            node = pending.pop()
            part.append(node)
            for other in near[node]:
                if other not in seen:
                    seen.add(other)
                    pending.append(other)
        parts.append(sorted(part))
    return sorted(parts, key=lambda part: (-len(part), part))


def order(edges):
    """The nodes so that every edge leads forwards; the smallest possible one comes first."""
    after = neighbours(edges, directed=True)
    waits = dict.fromkeys(after, 0)
    for others in after.values():
        for other in others:
            waits[other] += 1
    ready = [node for node, count in waits.items() if count == 0]
    heapq.heapify(ready)
    result = []
    while ready:
        node = heapq.heappop(ready)
        result.append(node)
        for other in after[node]:
            waits[other] -= 1
            if waits[other] == 0:
                heapq.heappush(ready, other)
    if len(result) < len(after):
        raise ValueError("the graph has a cycle")
    return result


def shortest_path(roads, start, goal):
    """``(length, nodes)`` over two-way roads ``(a, b, length)``; None where none leads there."""
    near = {}
    for a, b, length in roads:
        if length < 0:
            raise ValueError("a road has a negative length")
        near.setdefault(a, []).append((b, length))
        near.setdefault(b, []).append((a, length))
    pending, done = [(0, [start])], set()
    while pending:
        total, path = heapq.heappop(pending)
        node = path[-1]
        if node == goal:
            return total, path
        if node in done:
            continue
        done.add(node)
        for other, length in near.get(node, []):
            if other not in done:
                heapq.heappush(pending, (total + length, [*path, other]))
    return None
