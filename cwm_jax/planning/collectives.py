"""What a compiled program sends between devices, read from its text.

XLA's own analysis counts the body of a loop once and does not say over which mesh axis a collective
runs; both are in the optimised HLO text. Bytes are those that one device sends, in the fewest that
a ring needs: of n devices an all-gather or reduce-scatter of S bytes sends S (n-1)/n, an all-reduce
twice that.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

_ITEM_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
    "all-to-all",
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"%([\w.\-]+)")  # operands are no computations
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}"
)
_TRIP_COUNT = re.compile(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)')


class HloError(ValueError):
    """A program's text is not of the form that is read here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One instruction."""

    kind: str
    name: str
    """``op_name`` of its metadata: where the model asks for it."""
    axes: tuple[str, ...]
    """Mesh axes along which its devices differ."""
    group: tuple[int, ...]
    """Devices of one of its groups, by their place in the mesh (the first pair of a permute)."""
    sent_bytes: float
    """By one device in one execution."""
    executions: int
    """In a run of the program."""

    @property
    def total_bytes(self) -> float:
        return self.sent_bytes * self.executions


def collectives(hlo_text: str, mesh_sizes: Mapping[str, int]) -> list[Collective]:
    """Every collective of a compiled program (``compiled.as_text()``) on a mesh of these sizes.

    Raises:
        HloError: one in a loop without a known number of turns, or with groups in a form that is
            not known.
    """
    bodies, entry = _computations(hlo_text)
    executions: dict[str, float] = defaultdict(float)
    _count_executions(bodies, entry, 1, executions)
    found = []
    for name, times in executions.items():
        for line in bodies[name]:
            match = _COLLECTIVE.search(line)
            if match is not None:
                if math.isnan(times):
                    raise HloError(f"{name} communicates in a loop of unknown length: {line[:200]}")
                found.append(_collective(line, match, mesh_sizes, int(times)))
    return [item for item in found if item.sent_bytes]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry, lines = None, []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = bodies[match[1]] = []
            entry = match[1] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)
    if entry is None:
        raise HloError("the program's text has no ENTRY computation; expected optimised HLO")
    return bodies, entry


def _count_executions(bodies, name: str, times: float, executions: dict[str, float]) -> None:
    executions[name] += times
    for line in bodies[name]:
        turns = _turns(line, bodies) if " while(" in line else 1.0
        for called in _CALLED.findall(line):
            if called in bodies:
                _count_executions(bodies, called, times * turns, executions)


def _turns(line: str, bodies) -> float:
    """Of a loop: as XLA states it or, for the TPU, from its counter, which starts at zero."""
    if known := _TRIP_COUNT.search(line):
        return float(known[1])
    condition, body = (re.search(rf"{part}=%([\w.\-]+)", line) for part in ("condition", "body"))
    if not condition or not body:
        return math.nan
    test = bodies[condition[1]]
    compared = re.search(r" compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", _root(test))
    place = compared and re.search(
        r"get-tuple-element\(.*\), index=(\d+)", _definition(compared[1], test)
    )
    if not compared or not place:
        return math.nan
    limit = _constant(compared[2], test)
    turns = limit / _increment(int(place[1]), bodies[body[1]])
    return turns if math.isnan(turns) else math.ceil(turns)


def _increment(place: int, body: list[str]) -> float:
    """By which a loop's body raises that element of its tuple."""
    elements = re.search(r" tuple\((.*?)\)", _root(body))
    names = _CALLED.findall(elements[1]) if elements else []
    raised = names[place] if place < len(names) else ""
    added = re.search(r" add\(%([\w.\-]+), %([\w.\-]+)\)", _definition(raised, body))
    return _constant(added[2], body) if added else math.nan


def _constant(name: str, lines: list[str]) -> float:
    found = re.search(r"= [su]32\[\].* constant\((\d+)\)", _definition(name, lines))
    return float(found[1]) if found else math.nan


def _definition(name: str, lines: list[str]) -> str:
    return next((text for text in lines if f"%{name} = " in text), "")


def _root(lines: list[str]) -> str:
    return next((text for text in lines if "ROOT" in text), "")


def _collective(line: str, match: re.Match, mesh_sizes, executions: int) -> Collective:
    result, kind, start = match.groups()
    shape = tuple(mesh_sizes.values())
    if kind == "collective-permute":
        group, share = _permuted(line), 1.0
        size = _bytes(result) / (2 if start else 1)  # a start's result holds the operand too
    else:
        group = _first_group(line, math.prod(shape))
        n = len(group)
        size = _bytes(result)
        if kind == "all-gather":
            size /= 1 + 1 / n if start else 1
        elif kind == "reduce-scatter":
            size *= n / (n + 1) if start else n
        elif kind.endswith("all-to-all"):
            size /= 2 if start else 1
        share = (n - 1) / n * (2 if kind == "all-reduce" else 1)
    places = np.array(np.unravel_index(group, shape))
    varies = (places != places[:, :1]).any(axis=1)
    name = re.search(r'op_name="([^"]*)"', line)
    return Collective(
        kind=kind,
        name=name[1] if name else "",
        axes=tuple(axis for axis, v in zip(mesh_sizes, varies, strict=True) if v),
        group=tuple(int(device) for device in group),
        sent_bytes=size * share if len(group) > 1 else 0.0,
        executions=executions,
    )


def _bytes(result: str) -> float:
    """Of the arrays in a result's type; scalars of a start's bookkeeping do not count."""
    return sum(
        math.prod(int(n) for n in dims.split(",")) * _item_bits(kind) / 8
        for kind, dims in _ARRAY.findall(result)
        if dims
    ) or sum(_item_bits(kind) / 8 for kind, _ in _ARRAY.findall(result))


def _item_bits(kind: str) -> int:
    if kind in _ITEM_BITS:
        return _ITEM_BITS[kind]
    digits = re.match(r"[a-z]+(\d+)", kind)  # f32, s8, u16, f8e4m3fn
    if digits is None:
        raise HloError(f"unknown element type {kind!r} in a collective's result")
    return int(digits[1])


def _permuted(line: str) -> list[int]:
    """The first pair that leaves its device; one device where there is none."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    if pairs is None:
        raise HloError(f"a permute without pairs: {line[:200]}")
    for pair in re.findall(r"(\d+),(\d+)", pairs[1]):
        if pair[0] != pair[1]:
            return [int(pair[0]), int(pair[1])]
    return [0]


def _first_group(line: str, num_devices: int) -> Sequence[int]:
    """The first of a collective's groups, in any of the three forms in which XLA prints them."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return [int(device) for device in found[1].split(",")]
    if re.search(r"replica_groups=\{\}", line):
        return range(num_devices)
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        groups, dims, order = (_ints(part) for part in found.groups())
        devices = np.arange(math.prod(dims)).reshape(dims)
        return devices.transpose(order or None).reshape(groups)[0].tolist()
    if found := _MESH_GROUPS.search(line):
        return _mesh_group(line, *found.groups())
    raise HloError(f"replica_groups of an unknown form: {line[:300]}")


def _mesh_group(line: str, mesh: str, dims: str | None, order: str | None, axes: str) -> list[int]:
    """``mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}``: devices along all axes, grouped by
    some; without device_ids in their own order.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    wanted = [axis.strip().strip("'") for axis in axes.split(",")]
    if any(axis not in sizes for axis in wanted):
        raise HloError(f"replica_groups of an unknown form: {line[:300]}")
    devices = np.arange(math.prod(sizes.values()))
    if dims:
        devices = devices.reshape(_ints(dims)).transpose(_ints(order) or None)
    devices = devices.reshape(*sizes.values())
    index = tuple(slice(None) if name in wanted else 0 for name in sizes)
    return devices[index].ravel().tolist()


def _ints(text: str | None) -> list[int]:
    return [int(number) for number in text.split(",")] if text else []
