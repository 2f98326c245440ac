import dataclasses
import hashlib
import json
import os
import resource
import signal
import textwrap
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource

from cwm_jax.config import DataConfig, SourceConfig
from cwm_jax.config.schema import to_json
from cwm_jax.data import prepare as prepare_module
from cwm_jax.data.prepare import prepare
from cwm_jax.data.shards import open_shards, tokens_from_record
from cwm_jax.data.sources import DataError
from cwm_jax.data.split import is_heldout
from cwm_jax.storage import StorageError

TEXTS = [f"text of document {number}".encode() for number in range(50)]


@pytest.fixture
def prepared(make_config, tokenizer):
    config = make_config({"a": TEXTS})
    return config, prepare(config.sources[0], config, tokenizer)


def texts_of(shards, split, tokenizer):
    found = []
    with ArrayRecordDataSource(shards.paths(split)) as records:
        for record in (records[i] for i in range(len(records))):
            tokens = tokens_from_record(record)
            assert tokens.dtype == np.uint32
            assert tokens[0] == tokenizer.bos_id and tokens[-1] == tokenizer.eos_id
            found.append(bytes(tokens[1:-1].tolist()))
    return found


def test_records_are_the_framed_documents_of_their_split(prepared, tokenizer):
    _, shards = prepared
    heldout = [t for i, t in enumerate(TEXTS) if is_heldout(f"{i:04d}.txt", 0.2)]
    assert texts_of(shards, "heldout", tokenizer) == heldout
    assert texts_of(shards, "train", tokenizer) == [t for t in TEXTS if t not in heldout]
    assert 0 < len(heldout) < 20


def test_manifest_describes_what_was_made(prepared, tokenizer):
    config, shards = prepared
    manifest = json.loads((shards.folder / "manifest.json").read_text())
    assert manifest == to_json(shards.manifest)
    assert manifest["source"] == to_json(config.sources[0])
    assert manifest["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert manifest["vocab_size"] == tokenizer.vocab_size
    assert manifest["train"]["documents"] + manifest["heldout"]["documents"] == len(TEXTS)
    total = manifest["train"]["tokens"] + manifest["heldout"]["tokens"]
    assert total == sum(len(text) + 2 for text in TEXTS)
    for split in ("train", "heldout"):
        for number, file in enumerate(manifest[split]["files"]):
            assert file["name"] == f"{split}-{number:05d}-of-00001.arrayrecord"
            content = (shards.folder / file["name"]).read_bytes()
            assert file["bytes"] == len(content)
            assert file["sha256"] == hashlib.sha256(content).hexdigest()
        lengths = shards.lengths(split)
        assert lengths.sum() == manifest[split]["tokens"]
        assert lengths.tolist() == [len(t) + 2 for t in texts_of(shards, split, tokenizer)]


def test_big_splits_have_several_files_in_order(make_config, tokenizer, monkeypatch):
    config = make_config({"a": TEXTS})
    whole = prepare(config.sources[0], config, tokenizer)
    monkeypatch.setattr(prepare_module, "_SHARD_BYTES", 1000)
    monkeypatch.setattr(prepare_module, "_BATCH_DOCUMENTS", 7)
    other = dataclasses.replace(config, cache_directory=config.cache_directory + "2")
    parts = prepare(config.sources[0], other, tokenizer)
    names = [file.name for file in parts.manifest.train.files]
    assert len(names) > 2 and names[1] == f"train-00001-of-{len(names):05d}.arrayrecord"
    assert sorted(p.name for p in parts.folder.iterdir()) == sorted(
        [
            *names,
            *(file.name for file in parts.manifest.heldout.files),
            *("train-lengths.npy", "heldout-lengths.npy", "manifest.json"),
        ]
    )
    assert texts_of(parts, "train", tokenizer) == texts_of(whole, "train", tokenizer)
    assert parts.manifest.train.tokens_sha256 == whole.manifest.train.tokens_sha256


def test_same_key_is_reused_and_any_change_of_it_is_not(prepared, make_config, tokenizer):
    config, shards = prepared
    source = config.sources[0]
    encoded = tokenizer.encoded_documents
    reweighted = dataclasses.replace(source, weight=7.0)
    assert prepare(reweighted, config, tokenizer).folder == shards.folder
    assert tokenizer.encoded_documents == encoded == len(TEXTS)

    folders = {shards.folder}
    tokenizer.fingerprint = "another"
    folders.add(prepare(source, config, tokenizer).folder)
    folders.add(
        prepare(source, dataclasses.replace(config, heldout_fraction=0.3), tokenizer).folder
    )
    folders.add(prepare(dataclasses.replace(source, non_utf8="bytes"), config, tokenizer).folder)
    make_config({"a": [*TEXTS, b"one more"]})
    folders.add(prepare(source, config, tokenizer).folder)
    assert len(folders) == 5
    assert tokenizer.encoded_documents == 5 * len(TEXTS) + 1


@pytest.mark.parametrize(("policy", "skipped", "kept"), [("skip", 2, 0), ("bytes", 0, 2)])
def test_non_utf8_and_empty_documents_are_counted(make_config, tokenizer, policy, skipped, kept):
    raw = [b"caf\xe9", b"\xff\xfe"]
    config = make_config({"a": [*TEXTS, *raw, b""]}, source_settings={"non_utf8": policy})
    shards = prepare(config.sources[0], config, tokenizer)
    manifest = shards.manifest
    assert manifest.skipped_non_utf8_documents == skipped
    assert manifest.bytes_documents == kept
    assert manifest.empty_documents == 1
    assert manifest.train.documents + manifest.heldout.documents == len(TEXTS) + kept
    found = texts_of(shards, "train", tokenizer) + texts_of(shards, "heldout", tokenizer)
    assert sorted(found) == sorted(TEXTS + raw[:kept])


def test_a_split_without_documents_is_refused_with_a_fraction_that_works(make_config, tokenizer):
    config = make_config({"a": TEXTS[:4]}, heldout_fraction=1e-6)
    source = config.sources[0]
    with pytest.raises(DataError, match="held-out split without one of its 4") as refused:
        prepare(source, config, tokenizer)
    assert list(Path(config.cache_directory).iterdir()) == []
    bound = float(str(refused.value).rsplit(" ", 1)[1])
    works = dataclasses.replace(config, heldout_fraction=bound + 1e-6)
    assert prepare(source, works, tokenizer).manifest.heldout.documents == 1

    with pytest.raises(DataError, match="training split without one") as refused:
        prepare(source, dataclasses.replace(config, heldout_fraction=0.999999), tokenizer)
    bound = float(str(refused.value).rsplit(" ", 1)[1])
    works = dataclasses.replace(config, heldout_fraction=bound - 1e-6)
    assert prepare(source, works, tokenizer).manifest.train.documents == 1


def test_a_corpus_of_nothing_usable_is_refused(make_config, tokenizer):
    config = make_config({"a": [b"", b"\xff", b"\xfe"]})
    with pytest.raises(DataError, match=r"no document is left.*1 empty, 2 not UTF-8"):
        prepare(config.sources[0], config, tokenizer)


def test_another_tokenizer_is_refused_by_both_fingerprints(prepared, tokenizer):
    _, shards = prepared
    tokenizer.fingerprint = "another"
    with pytest.raises(DataError, match="tokenizer one-byte-each, but the run's is another; use"):
        open_shards(shards.folder, tokenizer)


def test_a_vocabulary_above_the_models_is_refused(prepared, tokenizer, make_config):
    config, shards = prepared
    assert open_shards(shards.folder, tokenizer, model_vocab_size=266) == shards
    for where in (
        lambda: open_shards(shards.folder, tokenizer, model_vocab_size=265),
        lambda: prepare(config.sources[0], config, tokenizer, model_vocab_size=265),
    ):
        with pytest.raises(DataError, match="has 266 tokens, the model 265"):
            where()
    fresh = make_config({"fresh": TEXTS})
    encoded = tokenizer.encoded_documents
    with pytest.raises(DataError, match="'fresh': the tokenizer has 266 tokens"):
        prepare(fresh.sources[0], fresh, tokenizer, model_vocab_size=265)
    assert tokenizer.encoded_documents == encoded


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_damaged_files_are_noticed(prepared, tokenizer, split):
    _, shards = prepared
    path = Path(shards.paths(split)[0])
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(StorageError, match=rf"{split}-.*: sha256 is .*; expected .*delete"):
        open_shards(shards.folder, tokenizer)
    open_shards(shards.folder, tokenizer, verify=False)
    path.write_bytes(content[:-1])
    with pytest.raises(
        StorageError, match=f"has {len(content) - 1} bytes; expected {len(content)}"
    ):
        open_shards(shards.folder, tokenizer, verify=False)
    path.unlink()
    with pytest.raises(StorageError, match="missing, but its manifest lists it"):
        open_shards(shards.folder, tokenizer, verify=False)
    path.write_bytes(content)
    assert open_shards(shards.folder, tokenizer) == shards


def test_damaged_manifests_are_noticed(prepared, tokenizer):
    config, shards = prepared
    path = shards.folder / "manifest.json"
    values = json.loads(path.read_text())
    for damaged, text in [
        ("{", "no readable manifest"),
        ("[]", "no readable manifest"),
        ("{}", "no readable manifest"),
        (json.dumps({**values, "schema_version": 0}), "version 0; expected 'token-shards', 4"),
        (json.dumps({**values, "train": None}), "no readable manifest"),
    ]:
        path.write_text(damaged)
        with pytest.raises(StorageError, match=f"(?s){text}.*delete"):
            prepare(config.sources[0], config, tokenizer)
    path.unlink()
    with pytest.raises(StorageError, match="no readable manifest"):
        open_shards(shards.folder, tokenizer)


def test_a_failure_leaves_nothing_behind(make_config, tokenizer, monkeypatch):
    config = make_config({"a": TEXTS})
    monkeypatch.setattr(prepare_module, "_BATCH_DOCUMENTS", 10)
    with monkeypatch.context() as patch:
        encode = tokenizer.encode_batch

        def fail_later(texts):
            if tokenizer.encoded_documents >= 30:
                raise OSError("disk full")
            return encode(texts)

        patch.setattr(tokenizer, "encode_batch", fail_later)
        with pytest.raises(OSError, match="disk full"):
            prepare(config.sources[0], config, tokenizer)
    assert list(Path(config.cache_directory).iterdir()) == []
    shards = prepare(config.sources[0], config, tokenizer)
    assert shards.manifest.train.documents + shards.manifest.heldout.documents == len(TEXTS)


def test_a_full_disk_is_reported_and_leaves_nothing_behind(make_config, tokenizer):
    config = make_config({"a": TEXTS})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writes fail with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(StorageError, match=r"could not write (train|heldout) to .*free space"):
            prepare(config.sources[0], config, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(Path(config.cache_directory).iterdir()) == []
    prepare(config.sources[0], config, tokenizer)


_KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from conftest import ByteTokenizer
from cwm_jax.config import DataConfig, SourceConfig
from cwm_jax.data import prepare as module

class Killed(ByteTokenizer):
    def encode_batch(self, texts):
        if self.encoded_documents >= 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_batch(texts)

module._BATCH_DOCUMENTS = 10
source = SourceConfig(name="a", kind="folder", path={path!r})
config = DataConfig(sources=(source,), cache_directory={cache!r}, heldout_fraction=0.2)
module.prepare(source, config, Killed())
"""


def test_a_killed_preparation_is_not_taken_for_whole(make_config, tokenizer, run_until_killed):
    config = make_config({"a": TEXTS})
    source = config.sources[0]
    script = textwrap.dedent(_KILLED).format(
        tests=str(Path(__file__).parent), path=source.path, cache=config.cache_directory
    )
    run_until_killed(script)
    (left,) = Path(config.cache_directory).iterdir()
    assert left.name.endswith(".tmp") and list(left.glob("train-*"))

    shards = prepare(source, config, tokenizer)
    assert tokenizer.encoded_documents == len(TEXTS)
    assert list(Path(config.cache_directory).iterdir()) == [shards.folder]


def test_a_living_process_keeps_its_temporary_folder(make_config, tokenizer):
    config = make_config({"a": TEXTS})
    shards = prepare(config.sources[0], config, tokenizer)
    mine = shards.folder.parent / (
        f".{shards.folder.name}.{prepare_module.socket.gethostname()}.{os.getppid()}.tmp"
    )
    shards.folder.rename(mine)
    assert prepare(config.sources[0], config, tokenizer) == shards
    assert mine.exists()


def test_the_first_of_two_processes_provides_the_shards(make_config, tokenizer, monkeypatch):
    config = make_config({"a": TEXTS})
    encode = tokenizer.encode_batch

    def be_overtaken(texts):
        monkeypatch.setattr(tokenizer, "encode_batch", encode)
        monkeypatch.setattr(prepare_module.os, "getpid", lambda: 1)
        prepare(config.sources[0], config, tokenizer)
        return encode(texts)

    monkeypatch.setattr(tokenizer, "encode_batch", be_overtaken)
    shards = prepare(config.sources[0], config, tokenizer)
    assert tokenizer.encoded_documents == 2 * len(TEXTS)
    assert list(Path(config.cache_directory).iterdir()) == [shards.folder]


def test_stdlib_shards_are_found_again(tmp_path, tokenizer):
    source = SourceConfig(name="python", kind="stdlib")
    config = DataConfig(sources=(source,), cache_directory=str(tmp_path))
    shards = prepare(source, config, tokenizer)
    manifest = shards.manifest
    assert manifest.train.documents + manifest.heldout.documents > 500
    encoded = tokenizer.encoded_documents
    assert prepare(source, config, tokenizer) == shards
    assert tokenizer.encoded_documents == encoded
