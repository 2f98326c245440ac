"""Oracle: every mesh of eight devices computes what one device does, on packed rows."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from training.hosts_runs import ROOT, environment, free_port, outputs
from training.mesh_step import TWO_PROCESS_MESHES, OneStep, check_equal, one_step

pytestmark = pytest.mark.cluster

SHAPES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(sizes) == 8]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> OneStep:
    return one_step(tmp_path_factory.mktemp("single"), (1, 1, 1, 1))


@pytest.mark.parametrize("sizes", SHAPES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_every_mesh_of_eight_devices_equals_one(tmp_path, single, sizes):
    check_equal(one_step(tmp_path, sizes), single)


def test_meshes_of_two_processes_with_four_devices_equal_one_device(tmp_path, single):
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "training.mesh_step", port, process, str(tmp_path)],
            env=environment(4) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in "01"
    ]
    outputs(workers)
    for sizes in TWO_PROCESS_MESHES:
        check_equal(OneStep.load(tmp_path / f"{'x'.join(map(str, sizes))}.npz"), single)
