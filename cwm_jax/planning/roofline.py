"""Seconds of a step from what it computes, moves and sends, on a target's peaks and links."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from cwm_jax.planning.collectives import Collective
from cwm_jax.planning.estimate import Flops, Work, attention_imbalance, flops, traffic
from cwm_jax.planning.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """A step's terms, each as if it were alone."""

    flops: Flops
    products_s: float
    attention_s: float
    """Of the device that has most of it."""
    traffic_bytes: dict[str, float]
    memory_s: float
    links: tuple[LinkUse, ...]

    @property
    def collective_s(self) -> float:
        return sum(use.seconds for use in self.links)

    @property
    def overlapped_s(self) -> float:
        """Computing, memory and links each behind the longest of them."""
        return max(self.products_s + self.attention_s, self.memory_s, self.collective_s)

    @property
    def serial_s(self) -> float:
        """One after another."""
        return self.products_s + self.attention_s + self.memory_s + self.collective_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinkUse:
    """All collectives of one kind along the same mesh axes in a step."""

    axes: tuple[str, ...]
    kind: str
    executions: int
    sent_bytes: float
    """By each device."""
    seconds: float


def roofline(
    work: Work, sent: Iterable[Collective], target: Target, places: Sequence[tuple[int, ...]]
) -> Roofline:
    """The terms of a step.

    Args:
        work: the step.
        sent: its collectives, compiled or estimated.
        target: the cluster.
        places: of each device of the mesh, in the mesh's order, see ``device_places``.
    """
    device, count = target.accelerator, flops(work)
    tokens = work.step_tokens / work.num_devices
    attained = device.peak_flops * device.product_fraction
    products = tokens * (count.products + count.recomputed_products) / attained
    attained = device.peak_flops * device.attention_fraction
    attention = tokens * (count.attention + count.recomputed_attention) / attained
    moved = traffic(work)
    return Roofline(
        flops=count,
        products_s=products,
        attention_s=attention * attention_imbalance(work),
        traffic_bytes=moved,
        memory_s=sum(moved.values()) / device.memory_bytes_per_s,
        links=link_uses(sent, target, places),
    )


def link_uses(
    sent: Iterable[Collective], target: Target, places: Sequence[tuple[int, ...]]
) -> tuple[LinkUse, ...]:
    """Collectives by axes and kind, the longest first."""
    by_kind: dict[tuple[tuple[str, ...], str], list[Collective]] = defaultdict(list)
    for item in sent:
        by_kind[item.axes, item.kind].append(item)
    uses = (
        LinkUse(
            axes=axes,
            kind=kind,
            executions=sum(item.executions for item in items),
            sent_bytes=sum(item.total_bytes for item in items),
            seconds=sum(
                collective_seconds(item, target, [places[i] for i in item.group]) * item.executions
                for item in items
            ),
        )
        for (axes, kind), items in by_kind.items()
    )
    return tuple(sorted(uses, key=lambda use: -use.seconds))


def collective_seconds(
    item: Collective, target: Target, places: Sequence[tuple[int, ...]]
) -> float:
    """Of one execution, at full bandwidth; latency is not counted.

    A GPU sends through NVLink, and to other nodes through its NIC: the k GPUs that a group has in a
    node share what the node must receive. A TPU sends along every dimension of the torus in which
    the group extends, both ways where the dimension is a ring; a permute along one link.
    """
    device = target.accelerator
    if target.platform != "tpu":
        k = sum(place[0] == places[0][0] for place in places)
        across = 0.0
        if k < len(places):
            across = item.sent_bytes / (k * device.network_bytes_per_s)
        return max(item.sent_bytes / device.link_bytes_per_s, across)
    extends = [len({place[i] for place in places}) > 1 for i in range(len(target.shape))]
    links = sum(2 if target.is_ring(i) else 1 for i, extended in enumerate(extends) if extended)
    if item.kind == "collective-permute" or links == 0:
        links = 1
    seconds = item.sent_bytes / (links * device.link_bytes_per_s)
    if item.kind.endswith("all-to-all"):  # on a ring of n the mean path is n/4 hops each way
        seconds *= max(1.0, len(places) / 4)
    return seconds


def device_places(target: Target, mesh: Any) -> list[tuple[int, ...]]:
    """Of each device of a mesh: (node, GPU in the node), or a chip's coordinates in the torus."""
    devices = list(mesh.devices.flat)
    if target.platform == "tpu":
        return [tuple(device.coords)[: len(target.shape)] for device in devices]
    in_node = target.devices_per_node or math.prod(target.shape)
    return [divmod(device.id, in_node) for device in devices]
