"""Static schedules of the TPU attention kernels beside those of JAX's splash attention; no TPU.

    python -m benchmarks.tpu_schedule [--chips v5p v6e] [--cases "8k packed" ...] [--jobs 2]

libtpu compiles for chips that are not there (requirements-aot.txt) and writes the final schedule
of each kernel: VLIW bundles, one a cycle unless something stalls, and the units that each one uses.
For a kernel this counts the bundles of its straight-line regions that use the MXUs: those that
compute a tile, without what runs once for a row of tiles or steers the pipeline. Ours have two, one
without the mask and one with it. The share of the MXUs is the FLOPs of a tile, over peak FLOPs per
cycle, over bundles; where it is more than 100 %, the compiler's own model of the MXUs allows more
than the published peak. Both kernels are counted the same way, splash in tiles of 1024 x 1024
without a mask. No stall and no fetch is in these numbers: they rank schedules, and are no speeds.

Spills are registers that the scheduler parks in the chip's vector memory (fills read them back);
the bundles count their slots.

Compile times and temporaries are of forward and backward together, of operands with heads before
positions, as the kernels want them: [batch, heads, positions, width].
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from cwm_jax.kernels.mask import IntervalMask
from cwm_jax.kernels.tuning import TpuBlocks, TpuTile, tpu_blocks

N, K, H = 48, 8, 128
CASES = {
    "8k packed": (8192, None),
    "32k local": (32_768, 8192),
    "131k local": (131_072, 8192),
    "131k global": (131_072, None),
}
SPLASH = "splash"
SPLASH_TILE = (1024, 1024)

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Of one core, peak over clock, to a power of two: 197 TFLOP/s at 1.5 GHz, half of 459 and 918 at
# 1.75 GHz; the clocks are assumed.
FLOPS_PER_CYCLE = {"v5e": 131_072, "v5p": 131_072, "v6e": 524_288}
PRODUCTS = {"forward": 2, "dq": 3, "dkv": 4}
OUR_NAMES = {kernel: f"cwm_attention_{kernel}" for kernel in PRODUCTS}
SPLASH_NAMES = {"forward": "splash_mqa_fwd", "dq": "splash_mqa_dq", "dkv": "splash_mqa_dkv"}
SPLASH_TOKENS = 4096


class Region(NamedTuple):
    """A straight-line piece of a schedule that uses the MXUs."""

    bundles: int
    fills: int
    spills: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Of one kernel; regions from the shortest, so that the one without the mask is the first."""

    bundles: int
    regions: list[Region]

    @classmethod
    def from_json(cls, bundles, regions):
        return cls(bundles, [Region(*region) for region in regions])


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What one compilation, of forward and backward, gave."""

    seconds: float
    """Twice as many while the schedules are written out."""
    temporaries: int
    kernels: dict[str, Schedule]
    """Empty unless they were asked for."""


def measure(
    chip: str, case: str, *, schedules: bool = False, blocks: TpuBlocks | None = None
) -> Compiled:
    """Compiles a case (or ``SPLASH``) in a process of its own: libtpu reads its options once.

    Args:
        chip, case: of ``TOPOLOGIES`` and ``CASES``.
        schedules: True reads the kernels' schedules, which for one chip differ between cases only
            where their tiles do.
        blocks: None is the chip's own.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(
            JAX_PLATFORMS="cpu",
            TPU_SKIP_MDS_QUERY="1",  # no metadata server is asked where there is no TPU
            ALLOW_MULTIPLE_LIBTPU_LOAD="1",
            JAX_ENABLE_COMPILATION_CACHE="false",
            XLA_FLAGS="",
        )
        if schedules:
            options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
            environment["LIBTPU_INIT_ARGS"] = options
        given = json.dumps(blocks and dataclasses.asdict(blocks))
        command = [sys.executable, "-m", "benchmarks.tpu_schedule", "--worker"]
        command += [chip, case, given, folder if schedules else ""]
        done = subprocess.run(
            command,
            env=os.environ | environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{case} does not compile for {chip}:\n{done.stderr[-3000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
    kernels = {name: Schedule.from_json(**x) for name, x in found.pop("kernels").items()}
    return Compiled(**found, kernels=kernels)


# ---------------------------------------------------------------- in the process of a compilation


def worker(chip: str, case: str, given: str, folder: str) -> None:
    blocks = json.loads(given)
    if blocks is not None:
        blocks = TpuBlocks(**{name: TpuTile(**tile) for name, tile in blocks.items()})
    function, arguments = splash_program() if case == SPLASH else our_program(chip, case, blocks)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    mesh = jax.sharding.Mesh(topology.devices[:1], ("tpu",))
    sharding = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments
    )
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    names = SPLASH_NAMES if case == SPLASH else OUR_NAMES
    kernels = {x: read_schedule(Path(folder), name) for x, name in names.items() if folder}
    found = Compiled(seconds, compiled.memory_analysis().temp_size_in_bytes, kernels)
    print(json.dumps(dataclasses.asdict(found)))


def our_program(chip: str, case: str, blocks: TpuBlocks | None) -> tuple[Callable, tuple]:
    from cwm_jax.kernels.tpu import tpu_attention

    T, window = CASES[case]
    blocks = blocks or tpu_blocks(chip, T, window)

    def attend(q, k, v, mask):
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        out = tpu_attention(q, k, v, mask, scale=H**-0.5, blocks=blocks)
        return out.transpose(0, 2, 1, 3)

    def both(q, k, v, d_out, mask):
        out, vjp = jax.vjp(lambda *x: attend(*x, mask), q, k, v)
        return out, vjp(d_out)

    heads = [jax.ShapeDtypeStruct((1, n, T, H), jnp.bfloat16) for n in (N, K, K, N)]
    bounds = jax.ShapeDtypeStruct((1, T), jnp.int32)
    mask: Any = IntervalMask(
        key_start=bounds,
        key_end=bounds,
        query_start=bounds,
        query_end=bounds,
        sliding_window=window,
        packed=True,
        aligned=True,
    )
    return both, (*heads, mask)


def splash_program() -> tuple[Callable, tuple]:
    """The heads of one group: a tile's schedule does not depend on how many there are."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    G, T, (rows, columns) = N // K, SPLASH_TOKENS, SPLASH_TILE
    blocks = splash.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    mask = splash.MultiHeadMask([splash.FullMask((T, T))] * G)

    def both(q, k, v, d_out):
        attend = splash.make_splash_mqa_single_device(mask, block_sizes=blocks)
        out, vjp = jax.vjp(attend, q, k, v)
        return out, vjp(d_out)

    q, k = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((G, T, H), (T, H)))
    return both, (q, k, k, q)


_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(.*?):\s*>*\s*\{")  # address, labels, instructions
_BRANCH = "sbr.rel"


def read_schedule(folder: Path, kernel: str) -> Schedule:
    """From libtpu's final bundles of a kernel, and its table of the units that each one uses."""
    (file,) = folder.glob(f"*{kernel}*[0-9]-final_bundles.txt")
    stem = re.sub(r"\d+-final_bundles\.txt$", "", file.name)
    tables = folder.glob("*-final_hlo-static-per-bundle-utilization.txt")
    (table,) = (x for x in tables if x.name.startswith(stem))
    head, rows = table.read_text().split("== UTILIZATION:\n")
    units = re.split(r",\s*", head.splitlines()[1].strip())
    uses = [dict(zip(units, map(int, row.split()), strict=True)) for row in rows.splitlines()]
    bundles = [(m[1].strip(), line) for line in file.open() if (m := _BUNDLE.match(line))]
    regions, region = [], []
    for (label, line), use in zip(bundles, uses, strict=True):
        if label:  # something jumps here
            regions.append(region)
            region = []
        region.append(use)
        if _BRANCH in line:
            regions.append(region)
            region = []
    regions = [x for x in [*regions, region] if any(use["MXU"] for use in x)]
    found = [
        Region(len(x), sum(u["VLOAD:FILL"] for u in x), sum(u["VSTORE:SPILL"] for u in x))
        for x in regions
    ]
    return Schedule(len(bundles), sorted(found))


# ---------------------------------------------------------------- tables


def share(chip: str, kernel: str, queries: int, keys: int, bundles: int) -> float:
    """Of the MXUs' peak, for a tile of all its heads' queries against keys."""
    flops = 2 * PRODUCTS[kernel] * queries * keys * H
    return flops / FLOPS_PER_CYCLE[chip] / bundles


def tile_of(chip: str, case: str, kernel: str) -> tuple[int, int]:
    """Queries, of all heads of the group, and keys."""
    if case == SPLASH:
        return SPLASH_TILE
    tile = getattr(tpu_blocks(chip, *CASES[case]), kernel)
    return N // K * tile.queries, tile.keys


def compile_row(chip: str, case: str, compiled: Compiled) -> str:
    mib = compiled.temporaries / 2**20
    return f"| {chip} | {case} | {compiled.seconds:.1f} | {mib:.1f} |"


def schedule_rows(chip: str, case: str, compiled: Compiled) -> list[str]:
    rows = []
    for kernel, schedule in compiled.kernels.items():
        queries, keys = tile_of(chip, case, kernel)
        shares = [100 * share(chip, kernel, queries, keys, x.bundles) for x in schedule.regions]
        rows.append(
            f"| {chip} | {kernel} | {case} | {queries} x {keys} | {schedule.bundles} "
            f"| {' / '.join(str(x.bundles) for x in schedule.regions)} "
            f"| {' / '.join(f'{x:.1f}' for x in shares)} "
            f"| {' / '.join(f'{x.fills}, {x.spills}' for x in schedule.regions)} |"
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="+", default=list(TOPOLOGIES), choices=TOPOLOGIES)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--jobs", type=int, default=1, help="compilations at a time")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        return worker(*arguments.worker)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        pairs = [(chip, case) for chip in arguments.chips for case in arguments.cases]
        compiles = [(pair, pool.submit(measure, *pair)) for pair in pairs]
        pairs = [(chip, case) for chip in arguments.chips for case in (SPLASH, arguments.cases[0])]
        schedules = [(pair, pool.submit(measure, *pair, schedules=True)) for pair in pairs]
        columns = ["chip", "case", "compile s, both passes", "temporaries MiB"]
        print_table(columns, [compile_row(*pair, x.result()) for pair, x in compiles])
        columns = ["chip", "kernel", "case", "tile", "bundles of the program", "of its regions"]
        columns += ["share of the MXUs %", "fills, spills"]
        rows = [row for pair, x in schedules for row in schedule_rows(*pair, x.result())]
        print_table(columns, rows)


def print_table(columns: list[str], rows: list[str]) -> None:
    print(f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows, sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
