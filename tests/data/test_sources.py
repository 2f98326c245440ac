import dataclasses
import gzip
import io
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from cwm_jax.config import SourceConfig
from cwm_jax.data import sources
from cwm_jax.data.sources import DataError, corpus_fingerprint, documents
from cwm_jax.data.split import is_heldout, split_fraction, training_texts


def source(kind, path, **settings):
    return SourceConfig(name="corpus", kind=kind, path=str(path), **settings)


def names(config):
    return [document.name for document in documents(config)]


def test_stdlib_is_the_interpreters_own_in_a_fixed_order():
    config = SourceConfig(name="python", kind="stdlib")
    found = {document.name: document.data for document in documents(config)}
    assert len(found) > 500
    assert list(found) == sorted(found)
    assert found["dataclasses.py"] == open_bytes(dataclasses.__file__)
    parts = {part for name in found for part in name.split("/")}
    assert not parts & {"site-packages", "dist-packages", "__pycache__"}
    assert corpus_fingerprint(config) == corpus_fingerprint(config)


def open_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def test_folder_takes_every_visible_file_or_what_the_glob_names(tmp_path):
    for name in ("b.py", "a.txt", "sub/c.py", ".git/config", "sub/.hidden"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    assert names(source("folder", tmp_path)) == ["a.txt", "b.py", "sub/c.py"]
    assert names(source("folder", tmp_path, glob="**/*.py")) == ["b.py", "sub/c.py"]
    assert names(source("folder", tmp_path, glob=".git/*")) == [".git/config"]


def test_jsonl_reads_plain_and_compressed_files_by_line(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"code": "é"}\n\n{"code": "second", "x": 1}')
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"code": "zipped"}\n')
    config = source("jsonl", tmp_path, text_field="code")
    assert [(d.name, d.data) for d in documents(config)] == [
        ("a.jsonl.gz:1", b"zipped"),
        ("b.jsonl:1", "é".encode()),
        ("b.jsonl:3", b"second"),
    ]
    assert names(source("jsonl", tmp_path / "b.jsonl", text_field="code")) == [
        "b.jsonl:1",
        "b.jsonl:3",
    ]


def test_jsonl_keeps_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}\n{"text": "\\ud800"}\n{"text": null}\n')
    found = [document.data for document in documents(source("jsonl", path))]
    assert found == [b"caf\xe9", b"\xed\xa0\x80", b""]
    with pytest.raises(UnicodeDecodeError):
        found[1].decode()


def test_parquet_streams_text_and_binary_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_PARQUET_BATCH_ROWS", 2)
    table = pyarrow.table({"text": ["a", "é", None, "d", "e"], "raw": [b"\xff"] * 5})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    found = list(documents(source("parquet", tmp_path)))
    assert [d.data for d in found] == [b"a", "é".encode(), b"", b"d", b"e"]
    assert [d.name for d in found] == [f"x.parquet:{row}" for row in range(5)]
    assert next(iter(documents(source("parquet", tmp_path, text_field="raw")))).data == b"\xff"


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        ("jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2 is not JSON"),
        ("jsonl", b'{"text": ' + b"1" * 5000 + b"}", r"a\.jsonl:1 is not JSON"),
        ("jsonl", b'{"body": "a"}\n', r"a\.jsonl:1 has \['body'\]; expected the key 'text'"),
        ("jsonl", b'"a"\n', r"a\.jsonl:1 is no object"),
        ("jsonl", b'{"text": 7}\n', r"a\.jsonl:1 'text' is of type int"),
        ("jsonl", b"\n\n", "holds no document"),
        ("parquet", b"PAR1 but not really", "cannot be read as Parquet"),
    ],
)
def test_bad_content_names_source_place_and_expectation(tmp_path, kind, content, text):
    (tmp_path / f"a.{kind}").write_bytes(content)
    with pytest.raises(DataError, match=f"source 'corpus' .*{text}"):
        list(documents(source(kind, tmp_path)))


def test_missing_column_names_those_there_are(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"columns \['body'\]; expected 'text'"):
        list(documents(source("parquet", tmp_path)))


def test_truncated_gzip_is_an_error_that_names_the_file(tmp_path):
    buffer = io.BytesIO()
    with gzip.open(buffer, "wt") as file:
        file.write(json.dumps({"text": "a" * 100}))
    (tmp_path / "a.jsonl.gz").write_bytes(buffer.getvalue()[:-9])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz cannot be read"):
        list(documents(source("jsonl", tmp_path)))


def test_bad_paths(tmp_path):
    with pytest.raises(DataError, match=r"'corpus' \(folder\): .*nowhere cannot be read.*set path"):
        list(documents(source("folder", tmp_path / "nowhere")))
    with pytest.raises(DataError, match="holds no file that matches"):
        list(documents(source("folder", tmp_path)))
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"holds no file that matches \*\.jsonl or"):
        list(documents(source("jsonl", tmp_path)))
    with pytest.raises(DataError, match="is a file; kind 'folder' expects a folder"):
        list(documents(source("folder", tmp_path / "file")))
    with pytest.raises(DataError, match="glob '/x'"):
        list(documents(source("folder", tmp_path, glob="/x")))


def test_unreadable_files_and_folders_are_errors(tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("x")
    config = source("folder", tmp_path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", refuse)
        with pytest.raises(DataError, match=r"secret\.txt cannot be read.*permissions"):
            list(documents(config))

    def walk(root, onerror):
        onerror(PermissionError(13, "Permission denied", os.path.join(root, "sub")))
        return iter(())

    monkeypatch.setattr(sources.os, "walk", walk)
    with pytest.raises(DataError, match="sub cannot be listed"):
        list(documents(config))


def test_fingerprint_follows_names_sizes_and_times(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    os.utime(path, ns=(1, 1))
    seen = {corpus_fingerprint(source("folder", tmp_path))}
    os.utime(path, ns=(2, 2))
    seen.add(corpus_fingerprint(source("folder", tmp_path)))
    path.write_text("four")
    os.utime(path, ns=(2, 2))
    seen.add(corpus_fingerprint(source("folder", tmp_path)))
    path.rename(tmp_path / "b.txt")
    seen.add(corpus_fingerprint(source("folder", tmp_path)))
    assert len(seen) == 4


def test_split_is_a_fixed_function_of_the_name():
    assert split_fraction("a.py") == 0xF0DE093A8C24F6A3 / 2**64  # of `printf a.py | sha256sum`
    assert is_heldout("a.py", 0.95) and not is_heldout("a.py", 0.94)
    share = sum(is_heldout(f"{i}.py", 0.1) for i in range(5000)) / 5000
    assert 0.08 < share < 0.12
    assert 0 <= split_fraction(os.fsdecode(b"caf\xe9.py")) < 1


def test_training_texts_leave_heldout_out_and_stop_at_the_limit(make_config):
    texts = [f"document {i} é".encode() for i in range(40)]
    config = make_config({"a": [*texts, b"\xff not text"]})
    expected = [
        text.decode() for i, text in enumerate(texts) if not is_heldout(f"{i:04d}.txt", 0.2)
    ]
    settings = {"heldout_fraction": 0.2}
    assert (
        list(training_texts(config.sources, training_bytes=10**6, **settings)) == expected
        and 20 < len(expected) < 40
    )
    for limit in range(1, 60):
        found = list(training_texts(config.sources, training_bytes=limit, **settings))
        joined = "".join(found)
        assert "".join(expected).startswith(joined)
        assert limit - 2 < len(joined.encode()) <= limit


def test_training_texts_follow_the_weights(make_config):
    config = make_config({"a": [b"a" * 10] * 200, "b": [b"b" * 30] * 200}, weights={"a": 3.0})
    text = "".join(training_texts(config.sources, heldout_fraction=0.1, training_bytes=1000))
    assert len(text) == 1000
    assert abs(text.count("a") - 750) <= 40
