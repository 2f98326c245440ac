"""Contract: the TPU kernels at CWM's sizes compile for v5e, v5p and v6e without one.

libtpu refuses what does not fit a chip's memories. Its schedules are counted as in
benchmarks/tpu_schedule.py, and compared with those of JAX's splash attention. Nothing is run.
"""

import pytest

pytest.importorskip("libtpu")

from benchmarks.tpu_schedule import (
    SPLASH,
    SPLASH_TILE,
    TOPOLOGIES,
    compile_row,
    measure,
    share,
    tile_of,
)

pytestmark = pytest.mark.aot

# Cases of one chip differ in the grid, and in little else: the shorter ones are tried on one chip.
PROGRAMS = [(chip, case) for chip in TOPOLOGIES for case in ("131k local", "131k global")]
PROGRAMS += [("v5e", "8k packed"), ("v5p", "32k local")]


@pytest.mark.parametrize(("chip", "case"), PROGRAMS)
def test_forward_and_backward_compile_and_keep_no_scores(chip, case):
    compiled = measure(chip, case)
    print(compile_row(chip, case, compiled))
    # what is kept is, at 131k, 24 MiB each of log-sum-exps and of products of output and gradient
    assert compiled.temporaries < 64 * 2**20


@pytest.mark.parametrize("chip", ["v5p", "v6e"])
def test_no_schedule_uses_the_matrix_units_less_than_splash(chip):
    case = "8k packed"
    ours, splash = (measure(chip, x, schedules=True).kernels for x in (case, SPLASH))
    for kernel, schedule in ours.items():
        (of_splash,) = splash[kernel].regions
        whole, partial = schedule.regions  # a tile without the mask, and with it
        assert whole.bundles <= partial.bundles
        queries, keys = tile_of(chip, case, kernel)
        least = share(chip, kernel, *SPLASH_TILE, of_splash.bundles)
        assert share(chip, kernel, queries, keys, whole.bundles) >= least, kernel
