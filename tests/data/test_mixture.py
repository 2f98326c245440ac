"""Shares by weight and by epochs, and buckets by document length."""

import collections
import dataclasses
import itertools
import json
import random
import types

import numpy as np
import pytest

from cwm_jax.config import LengthBucket, SourceConfig
from cwm_jax.data import packing as packing_module
from cwm_jax.data.loader import Loader
from cwm_jax.data.mixture import (
    Bucket,
    BucketPart,
    bucket_of_step,
    describe_buckets,
    describe_shares,
    source_shares,
)
from cwm_jax.data.prepare import prepare
from cwm_jax.data.sources import DataError

T = 32
BUCKETS = (
    LengthBucket(max_document_tokens=20),
    LengthBucket(max_document_tokens=60, attention_cap=16),
    LengthBucket(),
)


# Shares


def source(name, **settings):
    return SourceConfig(name=name, kind="stdlib", **settings)


def shards_of(*tokens):
    """What ``source_shares`` reads of shards with so many training tokens."""
    split = types.SimpleNamespace
    return [split(manifest=split(train=split(tokens=number))) for number in tokens]


def shares_of(sources, tokens, train_tokens):
    found = source_shares(sources, shards_of(*tokens), train_tokens=train_tokens)
    return [(share.share, share.epochs) for share in found]


def test_weights_alone_are_relative():
    sources = [source("a", weight=3.0), source("b", weight=4.0), source("c", weight=3.0)]
    found = shares_of(sources, (100, 4000, 60), 1000)
    assert found == [pytest.approx(x) for x in ((0.3, 3.0), (0.4, 0.1), (0.3, 5.0))]


def test_epochs_are_exact_and_weights_divide_the_rest():
    sources = [source("a", epochs=2.0), source("b"), source("c", weight=3.0)]
    found = shares_of(sources, (100, 400, 50), 1000)
    assert found == [pytest.approx(x) for x in ((0.2, 2.0), (0.2, 0.5), (0.6, 12.0))]


def test_epochs_alone_fill_a_run_of_as_many_tokens():
    sources = [source("a", epochs=2.0), source("b", epochs=1.5)]
    assert shares_of(sources, (100, 400), 800) == [(0.25, 2.0), (0.75, 1.5)]
    (a, _), (b, _) = shares_of(sources, (100, 400), 804)  # within a step of it
    assert a + b == pytest.approx(1)


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        (
            [source("a", epochs=4.0), source("b", epochs=3.0), source("c")],
            r"ask for 1,600 tokens \(a 4 x 100, b 3 x 400\), 160.0% of optimizer.train_tokens "
            r"\(1,000\); expected fewer.*lower epochs",
        ),
        ([source("a", epochs=10.0), source("b")], r"100.0% .*expected fewer"),
        (
            [source("a", epochs=1.0), source("b", epochs=1.0)],
            r"ask for 500 tokens .*50.0% .*set optimizer.train_tokens to 500, or give a source a",
        ),
    ],
)
def test_epochs_that_do_not_fit_the_run_are_refused_with_numbers(sources, text):
    with pytest.raises(DataError, match=text):
        shares_of(sources, (100, 400, 50)[: len(sources)], 1000)


def test_every_source_has_a_line():
    found = source_shares(
        [source("a", epochs=2.0), source("b")], shards_of(100, 4000), train_tokens=800
    )
    assert list(describe_shares(found)) == [
        "source a: 100 unique tokens, 25.00% of the run, 2 epochs",
        "source b: 4,000 unique tokens, 75.00% of the run, 0.15 epochs",
    ]


# Which bucket


def buckets_of(*shares):
    part = BucketPart(source=0, indices=None, documents=1, tokens=1, share=0.0)
    return [Bucket(parts=(dataclasses.replace(part, share=share),)) for share in shares]


@pytest.mark.parametrize("shares", [(0.5, 0.2, 0.3), (0.01, 0.99), (0.0, 0.6, 0.0, 0.4, 0.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_buckets_come_as_often_as_their_shares(shares, seed):
    buckets = buckets_of(*shares)
    drawn = [bucket_of_step(buckets, seed, step) for step in range(3000)]
    for n in (30, 300, 3000):
        counts = np.bincount(drawn[:n], minlength=len(shares))
        assert np.abs(counts - n * np.array(shares)).max() < 5
        assert (counts[np.array(shares) == 0] == 0).all()


def test_the_bucket_is_a_function_of_seed_and_step():
    buckets = buckets_of(0.5, 0.5)
    runs = [[bucket_of_step(buckets, seed, step) for step in range(50)] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert bucket_of_step(buckets_of(0.3), 0, 10**12) == 0


# Rows of buckets


@pytest.fixture
def make_loader(make_config, tokenizer):
    """Loaders of two sources with documents of 8 to 150 tokens."""
    with_threads = []

    def make(*, host=0, hosts=1, seed=0, **settings):
        rng = np.random.default_rng(0)
        corpora = {
            name: [f"{name}{i:04d}".encode().ljust(int(n), b".") for i, n in enumerate(lengths)]
            for name, lengths in (
                ("a", rng.integers(6, 150, 60)),
                ("b", rng.integers(6, 50, 90)),
            )
        }
        config = make_config(
            corpora,
            **{"weights": {"a": 2.0}, "length_buckets": BUCKETS, "num_streams": hosts, **settings},
        )
        shards = [prepare(s, config, tokenizer) for s in config.sources]
        loader = Loader(
            shards,
            config,
            shares=source_shares(config.sources, shards, train_tokens=10**5),
            max_target_length=T,
            seed=seed,
            own_rows=(host,),
            micro_batch_rows=hosts,
        )
        with_threads.append(loader)
        return loader

    yield make
    for loader in with_threads:
        loader.close()


def documents_of(loader, bucket, count):
    (stream,) = loader._rows[bucket]._documents.values()
    return [np.frombuffer(stream[i], np.uint32) for i in range(count)]


def test_a_bucket_holds_the_documents_of_its_lengths_and_each_once_an_epoch(make_loader):
    loader = make_loader(shuffle=False)
    seen = collections.Counter()
    for number, (above, longest) in enumerate(((0, 20), (20, 60), (60, 10**9))):
        bucket = loader.buckets[number]
        found = documents_of(loader, number, 400)
        assert all(above < len(tokens) <= longest for tokens in found)
        for part in bucket.parts:
            own = [bytes(t[1:6].tolist()).decode() for t in found if t[1] == b"ab"[part.source]]
            assert len(set(own[: part.documents])) == part.documents == len(set(own))
            seen[part.source] += part.documents
    manifests = [loader._shares[0].unique_tokens, loader._shares[1].unique_tokens]
    for number, unique in enumerate(manifests):
        parts = [p for b in loader.buckets for p in b.parts if p.source == number]
        assert sum(p.tokens for p in parts) == unique
    assert len(loader.buckets[2].parts) == 1  # none of b is that long


def test_shares_of_buckets_and_sources_are_the_datas_own(make_loader):
    loader = make_loader()
    for number, share in enumerate(loader._shares):
        parts = [p for b in loader.buckets for p in b.parts if p.source == number]
        for part in parts:
            assert part.share == pytest.approx(share.share * part.tokens / share.unique_tokens)
    assert sum(bucket.share for bucket in loader.buckets) == pytest.approx(1)
    # what a long run draws: steps by bucket, documents by source within them
    tokens = collections.Counter()
    for number, bucket in enumerate(loader.buckets):
        found = documents_of(loader, number, 2000)
        drawn = collections.Counter()
        for document in found:
            drawn[int(document[1])] += len(document)
        for letter, count in drawn.items():
            tokens[letter] += bucket.share * count / drawn.total()
    assert tokens[ord("a")] == pytest.approx(2 / 3, abs=0.01)


def as_bytes(rows):
    return b"".join(rows[key].tobytes() for key in sorted(rows))


@pytest.mark.parametrize("packing", ["concat_then_split", "best_fit"])
def test_resume_is_exact_at_any_step(make_loader, packing, monkeypatch):
    monkeypatch.setattr(packing_module, "GROUP_ROWS", 4)
    loader = make_loader(packing=packing, prefetch_rows=5)
    states, steps = [loader.state()], []
    for step in range(60):
        steps.append(as_bytes(loader.next_rows(3, loader.bucket(step))))
        states.append(json.loads(json.dumps(loader.state())))
    assert len({loader.bucket(step) for step in range(60)}) == 3
    other = make_loader(packing=packing, prefetch_rows=2)
    for at in random.Random(0).sample(range(55), 12):
        other.restore(states[at])
        for step in range(at, at + 5):
            assert as_bytes(other.next_rows(3, other.bucket(step))) == steps[step]
        assert other.state() == states[at + 5]


def test_hosts_take_the_same_bucket_and_other_documents(make_loader):
    loaders = [make_loader(host=host, hosts=3) for host in range(3)]
    steps = [[loader.bucket(step) for step in range(100)] for loader in loaders]
    assert steps[0] == steps[1] == steps[2] and len(set(steps[0])) == 3
    for bucket in range(3):
        for part in loaders[0].buckets[bucket].parts:
            letter = b"ab"[part.source]
            streams = [
                [
                    bytes(t[1:6].tolist())
                    for t in documents_of(loader, bucket, 300)
                    if t[1] == letter
                ]
                for loader in loaders
            ]
            rounds = min(map(len, streams))
            order = list(itertools.chain(*zip(*(s[:rounds] for s in streams), strict=True)))
            epoch = order[: part.documents]
            assert len(set(epoch)) == part.documents


def test_epochs_count_what_was_drawn(make_loader):
    loader = make_loader(hosts=2)
    assert loader.epochs() == {"a": 0.0, "b": 0.0}
    for step in range(200):
        loader.next_rows(2 * 4, loader.bucket(step))
    drawn = 2 * 200 * 4 * T  # tokens of both hosts, but for the first of each document
    for share, seen in zip(loader._shares, loader.epochs().values(), strict=True):
        assert seen == pytest.approx(share.share * drawn / share.unique_tokens, rel=0.06)
        assert seen > 1


def test_every_bucket_has_a_line(make_loader):
    loader = make_loader()
    lines = list(describe_buckets(loader.buckets, BUCKETS))
    assert lines[1].startswith("bucket of documents to 60 tokens, global attention capped at 16: ")
    assert "of all longer documents, global attention not capped: " in lines[2]
    assert sum(float(line.split(", ")[-1].split("%")[0]) for line in lines) == pytest.approx(100)
    assert list(describe_buckets(make_loader(length_buckets=()).buckets, ())) == []


def test_a_bucket_without_documents_is_never_drawn(make_loader):
    empty = LengthBucket(max_document_tokens=1000)
    loader = make_loader(length_buckets=(*BUCKETS[:2], empty, LengthBucket()))
    assert loader.buckets[3].parts == () and loader.buckets[3].share == 0
    assert 3 not in {loader.bucket(step) for step in range(500)}
