"""A killed conversion goes on where it stopped, to the same bytes; half a file never counts."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_models import random_params, small_config

import convert.sources
import convert.work
from convert import save_hf
from convert.__main__ import main
from convert.safetensors_files import HfSource
from convert.sources import largest_block_bytes
from convert.work import Unit, Work, choose_workers, resumable_folder

REPOSITORY = Path(__file__).parents[2]
BLOCK_BYTES = 1000
SHARD_BYTES = 20_000
# A conversion that kills itself before it reads its nth block.
_KILLED = """
import os, signal, sys
import convert.sources
from convert.__main__ import main
from convert.work import Work
blocks, convert.sources.BLOCK_BYTES = int(sys.argv[1]), int(sys.argv[2])
def check_stop(self):
    global blocks
    blocks -= 1
    if blocks == 0:
        os.kill(os.getpid(), signal.SIGKILL)
Work.check_stop = check_stop
main(sys.argv[3:])
"""
# They hold the time of the conversion.
_TIMED = {"_CHECKPOINT_METADATA", "checksums.json"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """hf, checkpoint and meta, and what from-hf, to-hf, from-meta and to-meta make of them."""
    folder = tmp_path_factory.mktemp("whole")
    kinds = ("full_attention", "sliding_attention") * 2
    config = small_config(4, layer_types=kinds, bos_token_id=None, eos_token_id=None)
    save_hf(folder / "hf", config, random_params(config), max_shard_bytes=SHARD_BYTES)
    patch = pytest.MonkeyPatch()
    patch.setattr(convert.sources, "BLOCK_BYTES", BLOCK_BYTES)
    assert main(arguments("from-hf", folder, folder / "checkpoint")) == 0
    assert main(arguments("to-meta", folder, folder / "meta")) == 0
    for command in ("from-hf", "to-hf", "from-meta", "to-meta"):
        assert main(arguments(command, folder, folder / command)) == 0
    patch.undo()
    return folder


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(convert.sources, "BLOCK_BYTES", BLOCK_BYTES)


def arguments(command: str, folder: Path, destination: Path, workers: int = 1) -> list[str]:
    source = {"from-hf": "hf", "from-meta": "meta"}.get(command, "checkpoint")
    options = ["--workers", str(workers)]
    if command.startswith("to-"):
        options += ["--max-shard-bytes", str(SHARD_BYTES)]
    return [command, str(folder / source), str(destination), *options]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in _TIMED
    }


def finished(beside: Path) -> list[str]:
    lines = (beside / "journal.jsonl").read_text().splitlines()
    return [json.loads(line)["unit"] for line in lines[1:]]


@pytest.mark.parametrize(
    ("command", "workers"), [("from-hf", 2), ("to-hf", 1), ("from-meta", 1), ("to-meta", 2)]
)
def test_killed_and_started_again(whole, tmp_path, small_blocks, command, workers):
    out, beside = tmp_path / command, tmp_path / f".{command}.partial"
    killed = subprocess.run(
        [
            *(sys.executable, "-c", _KILLED, "100", str(BLOCK_BYTES)),
            *arguments(command, whole, out, workers),
        ],
        cwd=REPOSITORY,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    done = finished(beside)
    kept = {path: path.stat().st_mtime_ns for path in recorded_files(beside)}
    assert done
    assert main(arguments(command, whole, out, workers)) == 0
    assert contents(out) == contents(whole / command)
    moved = {out / path.relative_to(beside / "content"): time for path, time in kept.items()}
    assert {path: path.stat().st_mtime_ns for path in moved} == moved  # not written again
    assert sorted(path.name for path in tmp_path.iterdir()) == [command]


def recorded_files(beside: Path) -> list[Path]:
    lines = (beside / "journal.jsonl").read_text().splitlines()
    return [beside / "content" / file for line in lines[1:] for file in json.loads(line)["files"]]


@pytest.fixture
def interrupted(whole, tmp_path, small_blocks):
    """Leaves a conversion to DST after some blocks; returns what starts it again."""

    def interrupt(command: str, blocks: int = 100) -> tuple[list[str], Path]:
        out = tmp_path / command
        source = {"from-hf": "hf", "from-meta": "meta"}.get(command, "checkpoint")
        copy = tmp_path / "source" / source
        if not copy.exists():
            shutil.copytree(whole / source, copy)

        def check_stop(self):
            nonlocal blocks
            blocks -= 1
            if blocks == 0:
                raise KeyboardInterrupt

        again = arguments(command, tmp_path / "source", out)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Work, "check_stop", check_stop)
            main(again)
        return again, tmp_path / f".{command}.partial"

    return interrupt


def test_full_disk_keeps_what_is_done(whole, tmp_path, capsys, monkeypatch, small_blocks):
    def no_space(*arguments, **options):
        raise OSError(28, "No space left on device")

    out = tmp_path / "to-hf"
    with monkeypatch.context() as patch:
        patch.setattr("convert.to_hf._generation_config", no_space)
        assert main(arguments("to-hf", whole, out)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "No space left" in line
    assert "the same command goes on" in line
    assert not out.exists()
    with monkeypatch.context() as patch:  # every tensor is there: none is read
        patch.setattr("convert.exports.Export.blocks", no_space)
        assert main(arguments("to-hf", whole, out)) == 0
    assert contents(out) == contents(whole / "to-hf")


@pytest.mark.parametrize("command", ["from-hf", "to-meta"])
def test_another_source_or_option_is_refused(interrupted, capsys, whole, command):
    again, beside = interrupted(command)
    kept = contents(beside)
    assert main([*again, "--dtype", "bfloat16"]) == 2
    assert "dtype (then None, now 'bfloat16')" in capsys.readouterr().err
    for name in ("config.json", "checksums.json"):
        if (file := Path(again[1]) / name).exists():
            os.utime(file, ns=(0, 0))
    assert main(again) == 2
    error = capsys.readouterr().err
    assert "files of the source" in error
    assert "--restart" in error
    assert contents(beside) == kept
    assert main([*again, "--restart"]) == 0
    assert contents(Path(again[2])) == contents(whole / command)
    assert not beside.exists()


def _cut_a_file(beside: Path) -> None:
    file = recorded_files(beside)[0]
    file.write_bytes(file.read_bytes()[:-1])


def _touch_a_file(beside: Path) -> None:
    os.utime(recorded_files(beside)[0], ns=(0, 0))


def _remove_a_file(beside: Path) -> None:
    recorded_files(beside)[0].unlink()


def _cut_the_journal(beside: Path) -> None:
    journal = beside / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])


def _cut_the_first_line(beside: Path) -> None:
    journal = beside / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:20])


def _add_files(beside: Path) -> None:
    (beside / "content" / "stray").write_text("of nobody")


@pytest.mark.parametrize("command", ["from-hf", "to-meta"])
@pytest.mark.parametrize(
    "harm",
    [
        *(_cut_a_file, _touch_a_file, _remove_a_file),
        *(_cut_the_journal, _cut_the_first_line, _add_files),
    ],
)
def test_what_is_left_is_not_trusted(interrupted, whole, command, harm):
    again, beside = interrupted(command)
    assert len(finished(beside)) > 1
    harm(beside)
    assert main(again) == 0
    assert contents(Path(again[2])) == contents(whole / command)


def test_the_journal_is_cut_twice(interrupted, whole, capsys):
    """What is written after a torn line is not torn with it."""
    for blocks in (60, 50):
        again, beside = interrupted("to-meta", blocks)
        _cut_the_journal(beside)
    assert main(again) == 0
    assert contents(Path(again[2])) == contents(whole / "to-meta")


def test_a_damaged_journal_is_refused(interrupted, capsys):
    again, beside = interrupted("to-hf")
    journal = beside / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"details"', b'"deta', 1))
    assert main(again) == 2
    assert "--restart begins anew" in capsys.readouterr().err
    assert main([*again, "--restart"]) == 0


def test_two_processes_do_not_write_one_folder(interrupted, capsys):
    again, beside = interrupted("to-hf")
    with open(beside / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(again) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert main(again) == 0


def test_a_failure_stops_the_other_workers(tmp_path):
    def fail():
        raise OSError("no space")

    def go_on():
        while True:
            work.check_stop()
            time.sleep(0.001)

    with (
        pytest.raises(OSError, match="no space"),
        resumable_folder(tmp_path / "out", {"a": 1}) as work,
    ):
        work.run([Unit("a", 1, go_on), Unit("b", 1, fail), Unit("c", 1, fail)], 2)


def test_workers_are_the_cores_as_far_as_memory_allows(whole, monkeypatch):
    source = HfSource(whole / "hf")
    cores = len(os.sched_getaffinity(0))
    assert choose_workers(None, source) == cores
    assert choose_workers(cores + 5, source) == cores + 5
    block = 96 * 24 * 4  # the embedding's
    assert largest_block_bytes(source) == block
    monkeypatch.setattr(convert.work, "MAX_BLOCKS_BYTES", 2 * 5 * block - 1)
    assert choose_workers(None, source) == 1


def test_workers_must_be_positive(whole, tmp_path, capsys):
    assert main([*arguments("to-hf", whole, tmp_path / "out"), "--workers", "0"]) == 2
    assert "workers is 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
