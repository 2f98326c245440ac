"""What is known of accelerators without asking one: peaks, memories and links.

Status of the columns: peaks and memories' rates are vendors' data sheets (secondary); memory is
what the device reports as usable in all (secondary); links are the public scaling book's for TPUs
and data sheets' for GPUs (secondary); fractions are said at each.
"""

from __future__ import annotations

import dataclasses
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One chip (TPU) or GPU."""

    name: str
    kinds: tuple[str, ...]
    """Words of jax's ``device_kind``, lower case."""
    peak_flops: float
    """Dense bfloat16, FLOP/s."""
    memory_bytes: int
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """One way: of one inter-chip link of a TPU, of all NVLinks of a GPU."""
    network_bytes_per_s: float
    """One way, of one device: to other slices (TPU) or nodes (GPU)."""
    usable_memory_fraction: float
    """Of ``memory_bytes``, for the program: the rest is the runtime's."""
    product_fraction: float
    """Of the peak that large matrix products attain."""
    attention_fraction: float
    """Of the peak that our attention attains, forward and backward, visible pairs counted."""
    status: str
    """Of the three fractions."""


_TPU = dict(
    network_bytes_per_s=6.25e9,
    usable_memory_fraction=0.98,  # read in a refusal: XLA gives v5e's programs 15.75 of 16 GiB
    product_fraction=0.85,  # assumed
)
_TPU_STATUS = "assumed; nothing of ours has run on a TPU"
_HOPPER = dict(
    peak_flops=989e12,
    link_bytes_per_s=450e9,
    network_bytes_per_s=50e9,
    usable_memory_fraction=0.92,  # assumed: CUDA's context, NCCL's buffers, fragments
    product_fraction=671 / 989,  # measured on an H200, a product of 8192, docs/LOG.md
    attention_fraction=500 / 989,  # measured on an H200, 8k full, docs/LOG.md
)

ACCELERATORS = (
    Accelerator(
        name="h200",
        kinds=("h200",),
        memory_bytes=143_771 * 2**20,
        memory_bytes_per_s=4.8e12,
        status="products and attention measured on one H200, usable memory assumed",
        **_HOPPER,
    ),
    Accelerator(
        name="h100",
        kinds=("h100",),
        memory_bytes=81_559 * 2**20,
        memory_bytes_per_s=3.35e12,
        status="products and attention measured on one H200, usable memory assumed",
        **_HOPPER,
    ),
    Accelerator(
        name="a100",
        kinds=("a100",),
        peak_flops=312e12,
        memory_bytes=81_920 * 2**20,
        memory_bytes_per_s=2.04e12,
        link_bytes_per_s=300e9,
        network_bytes_per_s=25e9,
        usable_memory_fraction=0.92,
        product_fraction=0.7,
        attention_fraction=0.4,
        status="assumed; nothing of ours has run on an A100",
    ),
    Accelerator(
        name="v4",
        kinds=("v4",),
        peak_flops=275e12,
        memory_bytes=32 * GIB,
        memory_bytes_per_s=1.2e12,
        link_bytes_per_s=45e9,
        attention_fraction=0.7,
        status=_TPU_STATUS,
        **_TPU,
    ),
    Accelerator(
        name="v5e",
        kinds=("v5 lite", "v5e"),
        peak_flops=197e12,
        memory_bytes=16 * GIB,
        memory_bytes_per_s=8.1e11,
        link_bytes_per_s=45e9,
        attention_fraction=0.7,
        status=_TPU_STATUS,
        **_TPU,
    ),
    Accelerator(
        name="v5p",
        kinds=("v5p", "v5"),
        peak_flops=459e12,
        memory_bytes=95 * GIB,
        memory_bytes_per_s=2.8e12,
        link_bytes_per_s=90e9,
        attention_fraction=0.7,
        status=_TPU_STATUS,
        **_TPU,
    ),
    Accelerator(
        name="v6e",
        kinds=("v6",),
        peak_flops=918e12,
        memory_bytes=32 * GIB,
        memory_bytes_per_s=1.6e12,
        link_bytes_per_s=90e9,
        attention_fraction=0.4,  # the compiler's own schedules use 0.42 to 0.49 (docs/LOG.md)
        status=_TPU_STATUS,
        **_TPU,
    ),
)


def accelerator_of(device_kind: str) -> Accelerator | None:
    """The row whose words are in jax's name of a device; None for an unknown device."""
    kind = device_kind.lower()
    for accelerator in ACCELERATORS:
        if any(re.search(rf"\b{word}\b", kind) for word in accelerator.kinds):
            return accelerator
    return None


def accelerator(name: str) -> Accelerator:
    """By name.

    Raises:
        ValueError: an unknown name.
    """
    for row in ACCELERATORS:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in ACCELERATORS)
    raise ValueError(f"unknown accelerator {name!r}; known: {known}")
