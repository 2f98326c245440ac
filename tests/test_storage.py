"""Files are there whole or not at all, and what differs from its manifest is refused."""

import dataclasses
import json
import os

import pytest

from cwm_jax import storage
from cwm_jax.config.schema import to_json
from cwm_jax.storage import (
    RecordWriter,
    StorageError,
    StoredFile,
    read_manifest,
    read_records,
    stored_file,
    write_json,
    write_whole,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    kind: str
    schema_version: int
    files: tuple[StoredFile, ...]


@pytest.fixture
def write(tmp_path):
    def records(*records, shard_bytes=1 << 20):
        with RecordWriter(tmp_path, "x", shard_bytes=shard_bytes, next_step="free space") as writer:
            for record in records:
                writer.add(record)
            return writer.finish()

    return records


def test_records_come_back_in_order_from_files_named_with_their_number(tmp_path, write):
    expected = [bytes([n]) * n for n in range(10)]
    files = write(*expected, shard_bytes=10)
    assert len(files) > 2
    assert [f.name for f in files] == [
        f"x-{n:05d}-of-{len(files):05d}.arrayrecord" for n in range(len(files))
    ]
    found = []
    for file in files:
        found += read_records(tmp_path / file.name, file, next_step="")
    assert [record for _, record in found] == expected
    assert found[0][0] == f"{tmp_path / files[0].name}:0"
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name for file in files]


def test_no_record_makes_no_file(tmp_path, write):
    assert write() == () and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda path: path.unlink(), "missing, but its manifest lists it; do so"),
        (lambda path: os.truncate(path, 9), "has 9 bytes; expected .*: do so"),
        (lambda path: path.write_bytes(path.read_bytes()[::-1]), "sha256 is .*: do so"),
    ],
)
def test_a_file_that_differs_is_refused_before_its_first_record(tmp_path, write, damage, text):
    (file,) = write(b"abc", b"def")
    path = tmp_path / file.name
    damage(path)
    with pytest.raises(StorageError, match=text):
        next(read_records(path, file, next_step="do so"))


def test_what_array_record_cannot_read_is_reported(tmp_path):
    path = tmp_path / "x.arrayrecord"
    path.write_bytes(b"\0" * 200_000)
    with pytest.raises(StorageError, match=r"cannot be read .*; do so"):
        list(read_records(path, stored_file(path), next_step="do so"))


def test_where_nothing_can_be_written_the_next_step_is_named(tmp_path):
    with (
        RecordWriter(tmp_path / "no", "x", shard_bytes=1, next_step="free space") as writer,
        pytest.raises(StorageError, match=r"could not write x to .*no: .*; free space"),
    ):
        writer.add(b"abc")


def test_a_file_keeps_its_old_content_until_the_new_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(descriptor):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_manifests_come_back_and_others_are_refused(tmp_path, write):
    path = tmp_path / "manifest.json"
    ours = Manifest(kind="ours", schema_version=2, files=write(b"abc"))
    write_json(path, to_json(ours))

    def read():
        return read_manifest(path, Manifest, kind="ours", version=2, next_step="write it again")

    assert read() == ours
    values = json.loads(path.read_text())
    for damaged, text in [
        ("{", "no readable manifest"),
        ("[]", "no readable manifest"),
        (
            json.dumps(values | {"kind": "theirs"}),
            "kind 'theirs', version 2; expected 'ours', 2",
        ),
        (json.dumps(values | {"schema_version": 1}), "version 1; expected 'ours', 2"),
        (json.dumps(values | {"file": 1}), "unknown key 'file'"),
    ]:
        path.write_text(damaged)
        with pytest.raises(StorageError, match=f"{text}.*write it again"):
            read()
    path.unlink()
    with pytest.raises(StorageError, match="no readable manifest"):
        read()
