"""Runs on several processes and devices: they resume each other, and what ends one of them is told.

Each process is train.py itself, with virtual devices.
"""

import signal
import time

import numpy as np
import pytest
from tolerances import TRAJECTORY_RTOL
from training.hosts_runs import ROOT, HostsRuns, outputs

pytestmark = pytest.mark.cluster

STEPS = 24
ALL_AXES = ("mesh.fsdp=2", "mesh.context=2", "mesh.tensor=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> HostsRuns:
    return HostsRuns(tmp_path_factory.mktemp("hosts"), STEPS)


@pytest.fixture(scope="module")
def uninterrupted(runs) -> list[float]:
    """Losses of all steps in one process with one device."""
    runs.finish("uninterrupted")
    losses = runs.losses("uninterrupted")
    assert len(losses) == STEPS and losses[-1] < losses[0] - 1
    return losses


def test_a_run_resumes_on_other_devices_and_processes(runs, uninterrupted):
    """1 device, 2 x 4, 2, 2 x 2, 8: the same batches in the same order, the same losses."""
    for steps, processes, devices, settings in (
        (3, 1, 1, ()),
        (6, 2, 4, ALL_AXES),
        (12, 1, 2, ("mesh.fsdp=2",)),
        (15, 2, 2, ("mesh.data=2", "mesh.fsdp=1", "mesh.context=2")),
        (STEPS, 1, 8, ("mesh.data=2", "mesh.fsdp=4")),
    ):
        runs.finish("elastic", f"steps={steps}", *settings, processes=processes, devices=devices)
    np.testing.assert_allclose(runs.losses("elastic"), uninterrupted, rtol=TRAJECTORY_RTOL)
    for step in (6, STEPS):
        assert runs.data_position("elastic", step) == runs.data_position("uninterrupted", step)


def test_sigterm_on_one_host_saves_once_on_all(runs, uninterrupted):
    started = runs.start("stopped", "checkpoint.checkpoint_period=1000", processes=2, devices=4)
    runs.wait_for_step("stopped", 1, started)
    started[1].send_signal(signal.SIGTERM)
    first, second = outputs(started)
    (saved,) = runs.checkpoints("stopped")
    assert 1 < int(saved) < STEPS
    assert f"saved step {int(saved)} and stopped" in first
    assert len(runs.losses("stopped")) == int(saved)
    assert "saved step" not in second  # the log is the first process'
    runs.finish("stopped")
    np.testing.assert_allclose(runs.losses("stopped"), uninterrupted, rtol=TRAJECTORY_RTOL)


@pytest.mark.parametrize("killed", [1, 0], ids=["another host", "the coordinator"])
def test_a_host_that_is_killed_ends_the_others_and_the_run_goes_on(runs, uninterrupted, killed):
    name = f"killed-{killed}"
    started = runs.start(name, processes=2, devices=4)
    runs.wait_for_step(name, 4, started)
    started[killed].kill()
    said = outputs(started, status=None)[1 - killed]
    # JAX's service says which, or the collective it left does
    assert any(
        text in said
        for text in ("stopped sending heartbeats):\n1", "the leader", "Connection reset", "closed")
    ), said
    runs.finish(name, *ALL_AXES, processes=2, devices=4)
    np.testing.assert_allclose(runs.losses(name), uninterrupted, rtol=TRAJECTORY_RTOL)


def test_a_host_that_is_slow_is_waited_for(runs, uninterrupted):
    started = runs.start("slow", processes=2, devices=4)
    runs.wait_for_step("slow", 2, started)
    started[1].send_signal(signal.SIGSTOP)
    time.sleep(3)  # fewer than the seconds after which it would count as dead
    started[1].send_signal(signal.SIGCONT)
    outputs(started)
    np.testing.assert_allclose(runs.losses("slow"), uninterrupted, rtol=TRAJECTORY_RTOL)


def test_a_disk_that_is_full_on_one_host_is_told_on_all(runs):
    started = runs.start(
        "full",
        processes=2,
        devices=4,
        shell={1: 'ulimit -f 1; exec "$0" "$@"'},  # 1 KiB for each file
    )
    said = outputs(started, status=None)
    assert "could not save a checkpoint" in said[1] and "File too large" in said[1], said[1]
    assert "process 1" in said[0] or "another task died" in said[0], said[0]
    assert not [name for name in runs.checkpoints("full") if name.isdigit()]


def test_a_folder_that_cannot_be_written_is_told_on_all(runs):
    runs.folder.joinpath("runs", "readonly").mkdir(parents=True)
    runs.folder.joinpath("runs", "readonly", "checkpoints").write_text("no folder")
    first, second = outputs(runs.start("readonly", processes=2), status=None)
    assert "train.py: process 0 (" in first and "checkpoints'" in first
    heard = "train.py: process 1 (" in second and "checkpoint folder: process 0 (" in second
    assert heard or "the leader" in second  # where it was too busy to hear of it in time


def test_a_folder_that_the_hosts_do_not_share_is_refused(runs, tmp_path):
    shell = {}
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        shell[i] = f'cd {tmp_path / str(i)}; shift; exec "$0" {ROOT}/train.py "$@"'
    setting = "base_output_directory=runs"  # in the folder in which each was started
    for said in outputs(runs.start("apart", setting, processes=2, shell=shell), status=2):
        assert "runs/apart is not the folder of process 0" in said
        assert "process 1 (" in said


def test_another_config_on_one_host_is_refused(runs):
    started = runs.start("other", processes=2, only={1: "optimizer.learning_rate=0.5"})
    for number, said in enumerate(outputs(started, status=2)):
        assert f"train.py: process {number} (" in said
        assert "process 1 (" in said and "has another start: optimizer.learning_rate 0.5" in said
        assert "(process 0: 0.01)" in said
    assert not (runs.folder / "runs" / "other").exists()


def test_a_stale_compilation_cache_changes_nothing(runs, uninterrupted, tmp_path):
    env_flag = f"JAX_COMPILATION_CACHE_DIR={tmp_path} JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0"
    shell = {0: f'export {env_flag}; exec "$0" "$@"'}
    runs.finish("cached", "steps=3", shell=shell)
    cached = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(cached) > 2
    for path in cached:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    runs.finish("cached", shell=shell)
    assert runs.losses("cached") == uninterrupted


def test_what_needs_all_weights_in_one_process_is_refused(runs):
    started = runs.start("export", "logging.export=hf", processes=2)
    for said in outputs(started, status=2):
        assert "logging.export: runs in one process, and this run has 2" in said
