"""What lies in a run's folder is whole, of one run, and each item is there once."""

import dataclasses
import json

import pytest

from cwm_jax.evals.runs.records import (
    ITEMS_FILE,
    Record,
    RecordFile,
    RecordsError,
    Turn,
    merge,
    read_records,
    read_run,
)

RUN = {
    "set": "toy",
    "file": {"name": "toy.jsonl", "sha256": "abc"},
    "model": {"name": "m"},
    "settings": {"temperature": 1.0, "seed": 0, "shard": None},
    "num_problems": 2,
    "started": "today",
}


def record(problem="p", sample=0, **changes) -> Record:
    turn = Turn(text="ä\n", reasoning="", finish_reason="stop", num_prompt_tokens=3, num_tokens=2)
    values = dict(problem=problem, sample=sample, status="graded", turns=(turn,), passed=True)
    return Record(**{**values, **changes})


def test_records_are_read_as_they_were_written(tmp_path):
    written = record(answer="\ud800", scores={"near": 0.5}, info={"a": [1]}, labels={"l": "x"})
    with RecordFile(tmp_path, RUN) as file:
        file.add(written)
        assert read_records(tmp_path) == {("p", 0): written}  # on the disk at once
    with RecordFile(tmp_path, {**RUN, "started": "tomorrow"}) as file:
        assert file.records == {("p", 0): written}
    assert written.num_tokens == 2
    unknown = dataclasses.replace(written.turns[0], num_tokens=None)
    assert record(turns=(unknown, unknown)).num_tokens is None


def test_a_record_is_on_the_disk_before_the_next_is_taken_up(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append((tmp_path / ITEMS_FILE).read_bytes().count(b"\n"))

    with RecordFile(tmp_path, RUN) as file:
        monkeypatch.setattr("os.fsync", fsync)
        file.add(record())
        file.add(record("q"))
    assert synced == [1, 2]


@pytest.mark.parametrize("rest", [b'{"problem": "q", "sam', b"\xff\x00", b"{}"])
def test_a_torn_last_line_is_cut_off(tmp_path, rest):
    with RecordFile(tmp_path, RUN) as file:
        file.add(record())
    whole = (tmp_path / ITEMS_FILE).read_bytes()
    (tmp_path / ITEMS_FILE).write_bytes(whole + rest)
    with RecordFile(tmp_path, RUN) as file:
        assert [*file.records] == [("p", 0)]
        file.add(record("q"))
    assert [*read_records(tmp_path)] == [("p", 0), ("q", 0)]
    assert (tmp_path / ITEMS_FILE).read_bytes().startswith(whole + b"{")


def test_a_damaged_line_before_the_last_is_named(tmp_path):
    with RecordFile(tmp_path, RUN) as file:
        file.add(record())
        file.add(record("q"))
    lines = (tmp_path / ITEMS_FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / ITEMS_FILE).write_bytes(lines[0][:20] + b"\n" + lines[1])
    with pytest.raises(RecordsError, match=r"items\.jsonl:1 is no record"):
        RecordFile(tmp_path, RUN)
    (tmp_path / ITEMS_FILE).write_bytes(lines[0] * 2)
    with pytest.raises(RecordsError, match=r"\('p', 0\) is there twice"):
        RecordFile(tmp_path, RUN)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {**RUN["settings"], "temperature": 0.5}}, "settings.temperature was 1.0"),
        ({"file": {"name": "toy.jsonl", "sha256": "abd"}}, 'file.sha256 was "abc" and is "abd"'),
        ({"model": {"name": "other"}}, 'model.name was "m" and is "other"'),
        ({"model": {"name": "m", "dtype": "int8"}}, 'model.dtype was null and is "int8"'),
    ],
)
def test_a_run_of_other_settings_is_refused_and_says_which(tmp_path, change, named):
    with RecordFile(tmp_path, RUN) as file:
        file.add(record())
    before = (tmp_path / "run.json").read_bytes(), (tmp_path / ITEMS_FILE).read_bytes()
    with pytest.raises(RecordsError, match="holds a run of other settings") as caught:
        RecordFile(tmp_path, {**RUN, **change})
    assert named in str(caught.value) and str(caught.value).count(" was ") == 1
    assert before == ((tmp_path / "run.json").read_bytes(), (tmp_path / ITEMS_FILE).read_bytes())


def test_two_processes_do_not_write_one_folder(tmp_path):
    with (
        RecordFile(tmp_path, RUN),
        pytest.raises(RecordsError, match="written by another process"),
    ):
        RecordFile(tmp_path, RUN)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RecordsError, match=r"no readable run\.json"):
        read_run(tmp_path)
    (tmp_path / ITEMS_FILE).write_text("{}\n")
    with pytest.raises(RecordsError, match=r"items\.jsonl and no run\.json"):
        RecordFile(tmp_path, RUN)
    (tmp_path / "run.json").write_text(json.dumps({"kind": "evaluation", "schema_version": 0}))
    with pytest.raises(RecordsError, match="version 0; expected 'evaluation', 1"):
        read_run(tmp_path)


def test_a_void_sample_gives_way_to_a_later_record(tmp_path):
    with RecordFile(tmp_path, RUN) as file:
        file.add(record(status="void", passed=False))
        file.add(record())
    assert read_records(tmp_path)["p", 0].passed


def test_shards_become_one_run_and_strangers_do_not(tmp_path):
    for number, name in enumerate(("p", "q")):
        shard = {**RUN, "settings": {**RUN["settings"], "shard": [number, 2]}}
        with RecordFile(tmp_path / name, {**shard, "num_problems": 1}) as file:
            file.add(record(name))
    with RecordFile(tmp_path / "other", {**RUN, "model": {"name": "n"}}):
        pass
    merge([tmp_path / "p", tmp_path / "q"], tmp_path / "whole")
    assert {*read_records(tmp_path / "whole")} == {("p", 0), ("q", 0)}
    assert read_run(tmp_path / "whole")["num_problems"] == 2
    assert read_run(tmp_path / "whole")["settings"] == RUN["settings"]
    with pytest.raises(RecordsError, match=r'model\.name was "m" and is "n"'):
        merge([tmp_path / "p", tmp_path / "other"], tmp_path / "no")
    with pytest.raises(RecordsError, match=r"\('p', 0\) is in another shard"):
        merge([tmp_path / "p", tmp_path / "p"], tmp_path / "no")
