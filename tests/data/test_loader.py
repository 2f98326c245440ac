import collections
import gc
import itertools
import json
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cwm_jax.config import DataConfig, LengthBucket, SourceConfig
from cwm_jax.data import packing as packing_module
from cwm_jax.data.loader import Loader, _tokens_from, heldout_rows, merge_states
from cwm_jax.data.mixture import source_shares
from cwm_jax.data.prepare import prepare
from cwm_jax.data.sources import DataError
from cwm_jax.data.split import is_heldout

PACKINGS = ("concat_then_split", "first_fit", "best_fit")
T = 24
DOCUMENTS = DataConfig(sources=(SourceConfig(name="any", kind="stdlib"),))  # no setting matters


def texts(letter, count, *, longest=90, seed=0):
    """Documents that begin with their own number, of many lengths, some over several rows."""
    lengths = np.random.default_rng(seed).integers(8, longest, count)
    return [f"{letter}{i:04d}".encode().ljust(n, b".") for i, n in enumerate(lengths)]


@pytest.fixture
def make_loader(make_config, tokenizer):
    """Loaders of one corpus or several; all are closed at the end."""
    with_threads = []

    def make(
        corpora=None, *, weights=None, max_target_length=T, host=0, hosts=1, seed=0, **settings
    ):
        corpora = {"a": texts("a", 40), "b": texts("b", 15)} if corpora is None else corpora
        settings.setdefault("num_streams", hosts)
        config = make_config(corpora, weights=weights, **settings)
        shards = [prepare(source, config, tokenizer) for source in config.sources]
        loader = Loader(
            shards,
            config,
            shares=source_shares(config.sources, shards, train_tokens=10**4),
            max_target_length=max_target_length,
            seed=seed,
            own_rows=(host,) if isinstance(host, int) else host,
            micro_batch_rows=hosts,
        )
        with_threads.append(loader)
        return loader

    yield make
    for loader in with_threads:
        loader.close()


def rows_as_bytes(batch):
    num_rows = len(batch["tokens"])
    return [b"".join(batch[key][i].tobytes() for key in sorted(batch)) for i in range(num_rows)]


def delivered_documents(loader, num_rows):
    """The documents ("a0012", ...) that begin in the next rows, in their order."""
    batch = loader.next_rows(num_rows)
    tokens = batch["tokens"][batch["segment_ids"] > 0].tolist()
    starts = [i for i, token in enumerate(tokens[:-5]) if token == 256]
    return [bytes(tokens[i + 1 : i + 6]).decode() for i in starts]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("hosts", [1, 3])
def test_resume_is_exact_at_any_row(make_loader, packing, hosts, monkeypatch):
    monkeypatch.setattr(packing_module, "GROUP_ROWS", 5)
    settings = {"packing": packing, "host": hosts - 1, "hosts": hosts, "weights": {"b": 0.4}}
    loader = make_loader(**settings, prefetch_rows=7)
    states, rows = [loader.state()], []
    for _ in range(200):
        rows += rows_as_bytes(loader.next_rows(hosts))
        states.append(json.loads(json.dumps(loader.state())))
    share = 1 / 1.4 * hosts / len(train_names(texts("a", 40)))
    assert states[-1]["cursors"][0][str(hosts - 1)]["document"] * share > 1.2  # beyond an epoch
    other = make_loader(**settings, prefetch_rows=3)
    for at in random.Random(0).sample(range(190), 25):
        other.restore(states[at])
        assert other.state() == states[at]
        num_rows = min(10, 200 - at)
        assert rows_as_bytes(other.next_rows(num_rows * hosts)) == rows[at : at + num_rows]
        assert other.state() == states[at + num_rows]


def test_state_is_that_of_the_last_row_delivered_not_prefetched(make_loader):
    loader = make_loader(prefetch_rows=50)
    loader.next_rows(2)
    state = loader.state()
    time.sleep(0.05)  # the thread goes on; the state must not
    assert loader.state() == state
    expected = rows_as_bytes(loader.next_rows(3))
    loader.restore(state)
    assert rows_as_bytes(loader.next_rows(3)) == expected


def test_restore_reads_nothing_of_the_past(make_loader, monkeypatch):
    loader = make_loader(prefetch_rows=1)
    state = loader.state()
    state["cursors"] = [{"0": {"document": 10**12, "offset": 0, "row": 0}}]
    loader.restore(state)
    assert loader.next_rows(2)["tokens"].shape == (2, T)


def test_the_size_of_requests_does_not_change_the_stream(make_loader):
    one = make_loader()
    many = make_loader()
    rows = [row for _ in range(12) for row in rows_as_bytes(one.next_rows(1))]
    assert rows_as_bytes(many.next_rows(5)) + rows_as_bytes(many.next_rows(7)) == rows


@pytest.mark.parametrize("packing", PACKINGS)
def test_each_document_once_per_epoch_over_three_hosts(make_loader, packing):
    corpora = {"a": texts("a", 50)}
    loaders = [
        make_loader(corpora, packing=packing, host=host, hosts=3, max_target_length=128)
        for host in range(3)
    ]
    documents = set(train_names(corpora["a"]))
    num = len(documents)
    assert num % 3 != 0  # an epoch ends at another host than it began
    streams = [cursor_documents(loader, num) for loader in loaders]
    order = [name for turn in zip(*streams, strict=True) for name in turn]
    for epoch in range(3):
        names = order[epoch * num : (epoch + 1) * num]
        assert sorted(names) == sorted(documents)
    assert order[:num] != order[num : 2 * num]


def train_names(documents):
    return [
        text[:5].decode() for i, text in enumerate(documents) if not is_heldout(f"{i:04d}.txt", 0.2)
    ]


def cursor_documents(loader, count):
    """The documents of the loader's one stream in the order in which they are read."""
    (documents,) = loader._rows[0]._documents.values()
    stream = itertools.islice(_tokens_from(documents, 0, DOCUMENTS), count)
    return [bytes(tokens[1:6].tolist()).decode() for tokens in stream]


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_hold_each_document_of_an_epoch(make_loader, packing):
    corpora = {"a": texts("a", 30)}
    loader = make_loader(corpora, packing=packing, max_target_length=100)
    names = train_names(corpora["a"])
    found = delivered_documents(loader, 2 * packing_module.GROUP_ROWS)
    assert len(found) > 5 * len(names)
    expected = cursor_documents(loader, len(found))
    if packing == "concat_then_split":
        assert found == expected
    else:  # the same documents in another order within each of the two groups
        assert found != expected
        assert sorted(found) == sorted(expected)


def test_weights_are_shares_of_tokens(make_loader):
    corpora = {"a": texts("a", 30), "b": texts("b", 60, longest=600), "c": texts("c", 10)}
    loader = make_loader(corpora, weights={"a": 5.0, "b": 3.0, "c": 2.0})
    names = cursor_documents(loader, 1000)
    lengths = {text[:5].decode(): len(text) + 2 for texts in corpora.values() for text in texts}
    tokens = collections.Counter()
    for name in names:
        tokens[name[0]] += lengths[name]
    shares = {letter: count / tokens.total() for letter, count in tokens.items()}
    assert shares == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2}, abs=0.02)
    # Within a source no document comes again before all have come.
    for letter, count in (("a", 30), ("b", 60), ("c", 10)):
        num = len(train_names(texts(letter, count)))
        own = [name for name in names if name[0] == letter]
        assert len(set(own[:num])) == num


def test_mixture_is_kept_on_every_host(make_loader):
    counts = [
        collections.Counter(name[0] for name in cursor_documents(loader, 100))
        for loader in (make_loader(host=host, hosts=2) for host in range(2))
    ]
    assert counts[0] == counts[1] and 40 < counts[0]["a"] < 60


def test_seed_and_shuffle_decide_the_order(make_loader):
    corpora = {"a": texts("a", 40)}
    num = len(train_names(corpora["a"]))
    orders = [
        cursor_documents(make_loader(corpora, **settings), 2 * num)
        for settings in ({"seed": 0}, {"seed": 0}, {"seed": 1}, {"shuffle": False})
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[3] == 2 * train_names(corpora["a"])
    assert orders[2][:num] != orders[0][num:]  # seed 1 does not start with seed 0's second epoch


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"packing": "best_fit"}, "packing was 'concat_then_split' and is 'best_fit'"),
        (
            {"packing": "best_fit", "long_dialogs": "split"},
            "long_dialogs was 'cut' and is 'split'; packing was",
        ),
        ({"max_target_length": 25}, "max_target_length was 24 and is 25"),
        ({"num_streams": 2, "hosts": 2}, "num_streams was 1 and is 2"),
        ({"shuffle": False}, "shuffle was True and is False"),
        ({"weights": {"a": 3.0}}, "sources was .*'share': 0.5.* and is .*'share': 0.75"),
        ({"trace_context_loss": True}, "trace_context_loss was False and is True"),
        (
            {"length_buckets": (LengthBucket(max_document_tokens=9), LengthBucket())},
            r"length_buckets was \[\] and is \[9, None\]",
        ),
        ({"corpora": {"a": texts("a", 41), "b": texts("b", 15)}}, "sources was .*tokens_sha256"),
        ({"corpora": {"a": texts("a", 40)}}, "sources was"),
        ({"heldout_fraction": 0.5}, "sources was"),
    ],
)
def test_the_state_of_another_stream_is_refused(make_loader, change, text):
    state = json.loads(json.dumps(make_loader().state()))
    other = make_loader(**change)
    with pytest.raises(ValueError, match=f"another stream: {text}.*restore those settings"):
        other.restore(state)


def test_the_state_of_other_streams_alone_and_no_state_are_refused(make_loader):
    state = make_loader(host=0, hosts=2).state()
    with pytest.raises(ValueError, match=r"expected what .* of every stream that is read"):
        make_loader(host=1, hosts=2).restore(state)
    for broken in (
        {},
        {"fingerprint": 1, "cursors": []},
        {"fingerprint": make_loader().state()["fingerprint"], "cursors": [{"0": {"line": 1}}]},
        {"fingerprint": make_loader().state()["fingerprint"], "cursors": []},
    ):
        with pytest.raises(ValueError, match="expected what"):
            make_loader().restore(broken)


# Batches on any number of processes


def global_batch(loaders, micro_batch_rows, accumulation):
    """Rows of all micro-batches ``[A, R]`` from the loaders of a run's processes."""
    batch = {}
    for loader in loaders:
        rows = iter(rows_as_bytes(loader.next_rows(micro_batch_rows * accumulation)))
        for b in loader._own_rows:
            for a in range(accumulation):
                row = next(rows)
                assert batch.setdefault((a, b), row) == row
    return [[batch[a, b] for b in range(micro_batch_rows)] for a in range(accumulation)]


@pytest.mark.parametrize("packing", ["concat_then_split", "best_fit"])
def test_a_batch_is_the_same_on_any_processes_and_resumes_on_others(make_loader, packing):
    """Eight rows of four streams a step, on 1, 2, 4 and 8 processes, in other micro-batches."""
    layouts = {
        1: [(8, range(8))],
        2: [(4, (0, 1)), (4, (2, 3))],  # with two micro-batches
        4: [(8, (0, 5)), (8, (1, 4)), (8, (2, 7)), (8, (3, 6))],  # rows of two streams each
        8: [(2, (0,)), (2, (1,)), (2, (0,)), (2, (1,))],  # rows that two processes share
    }

    def make(number):
        return [
            make_loader(host=tuple(own), hosts=rows, num_streams=4, packing=packing)
            for rows, own in layouts[number]
        ]

    def step(loaders):
        R = loaders[0]._micro_batch_rows
        return sorted(itertools.chain(*global_batch(loaders, R, 8 // R)))

    uninterrupted = make(1)
    expected = [step(uninterrupted) for _ in range(12)]
    assert len(set(itertools.chain(*expected))) > 40  # of 96: an epoch has fewer
    state = None
    for at, number in enumerate((2, 1, 8, 4, 2, 4)):
        loaders = make(number)
        if state is not None:
            for loader in loaders:
                loader.restore(state)
        assert [step(loaders) for _ in range(2)] == expected[2 * at : 2 * at + 2]
        state = json.loads(json.dumps(merge_states([loader.state() for loader in loaders])))
    assert state == merge_states([uninterrupted[0].state()])


def test_processes_that_disagree_are_found(make_loader):
    one, other = make_loader().state(), make_loader().state()
    other["cursors"][0]["0"]["document"] = 7
    with pytest.raises(ValueError, match=r"process 1 has other data .*stream 0: .*'document': 7"):
        merge_states([one, other])
    with pytest.raises(ValueError, match="process 1 has other data"):
        merge_states([one, make_loader(seed=1).state()])


def test_a_process_reads_the_streams_of_its_rows_alone(make_loader):
    for rows, own, num_streams, streams in (
        (8, (0, 1), 4, {0}),
        (8, (1, 2), 4, {0, 1}),
        (2, (1,), 8, {4, 5, 6, 7}),
        (3, (1,), 2, {0, 1}),
        (8, (7,), 1, {0}),
    ):
        loader = make_loader(host=own, hosts=rows, num_streams=num_streams)
        assert set(loader._rows[0].cursors) == streams


def test_rows_that_do_not_divide_are_refused(make_loader):
    with pytest.raises(ValueError, match=r"3 rows are no multiple of data\.num_streams 2"):
        make_loader(num_streams=2).next_rows(3)
    with pytest.raises(ValueError, match="3 rows are no multiple of micro_batch_rows 2"):
        make_loader(host=(0, 1), hosts=2, num_streams=1).next_rows(3)


def test_reweighting_keeps_the_shards_but_not_the_stream(make_loader):
    assert make_loader(weights={"a": 1.0}).state() == make_loader().state()
    assert make_loader(weights={"a": 1.5}).state() != make_loader().state()


def test_hosts_and_sources_must_match(make_loader, make_config, tokenizer):
    with pytest.raises(ValueError, match=r"own_rows is \(2,\); expected some of 0 to 1"):
        make_loader(host=2, hosts=2)
    config = make_config({"a": texts("a", 20), "b": texts("b", 20)})
    shards = [prepare(source, config, tokenizer) for source in config.sources]
    shares = source_shares(config.sources, shards, train_tokens=1)
    with pytest.raises(ValueError, match=r"sources \['b', 'a'\]; expected .*\['a', 'b'\]"):
        Loader(shards[::-1], config, shares=shares, max_target_length=T, seed=0)
    with pytest.raises(ValueError, match=r"sources \['a'\]; expected"):
        heldout_rows(shards[:1], config, shares=shares, max_target_length=T, num_rows=1)


@pytest.mark.parametrize("packing", PACKINGS)
def test_heldout_rows_are_the_held_out_documents(make_config, tokenizer, packing):
    corpora = {"a": texts("a", 60), "b": texts("b", 40)}
    config = make_config(corpora, packing=packing)
    shards = [prepare(source, config, tokenizer) for source in config.sources]
    shares = source_shares(config.sources, shards, train_tokens=1)
    rows = heldout_rows(shards, config, shares=shares, max_target_length=T, num_rows=10**6)
    heldout = {t for ts in corpora.values() for t in ts} - {
        t for ts in corpora.values() for t in ts if t[:5].decode() in train_names(ts)
    }
    assert len(heldout) == sum(s.manifest.heldout.documents for s in shards)
    assert int(rows["loss_mask"].sum()) == sum(len(text) + 1 for text in heldout)
    starts = rows["tokens"] == 256
    assert int(starts.sum()) == len(heldout)
    some = heldout_rows(shards, config, shares=shares, max_target_length=T, num_rows=3)
    assert rows_as_bytes(some) == rows_as_bytes(rows)[:3]
    assert some["tokens"].shape == (3, T)


def test_heldout_rows_mix_the_sources_and_give_at_least_one(make_config, tokenizer):
    config = make_config({"a": texts("a", 100), "b": texts("b", 300)}, weights={"a": 2.0})
    shards = [prepare(source, config, tokenizer) for source in config.sources]
    shares = source_shares(config.sources, shards, train_tokens=1)
    rows = heldout_rows(shards, config, shares=shares, max_target_length=200, num_rows=8)
    after_bos = rows["tokens"][:, 1:][rows["tokens"][:, :-1] == 256]
    letters = collections.Counter(chr(token) for token in after_bos[:15])
    assert letters == {"a": 10, "b": 5}
    few = heldout_rows(shards, config, shares=shares, max_target_length=10**5, num_rows=8)
    assert few["tokens"].shape == (1, 10**5)


def test_a_damaged_record_is_an_error_and_leaves_the_state(make_loader, tokenizer):
    loader = make_loader({"a": texts("a", 40)})
    path = Path(loader_shard(loader))
    content = bytearray(path.read_bytes())
    written = [i for i, byte in enumerate(content) if byte]  # the rest is padding of blocks
    content[written[len(written) // 3]] ^= 255
    path.write_bytes(content)
    before = loader.state()
    with pytest.raises(DataError, match="a shard cannot be read"):
        for _ in range(100):
            before = loader.state()
            loader.next_rows(1)
    assert loader.state() == before
    with pytest.raises(DataError, match="a shard cannot be read"):
        loader.next_rows(1)  # it does not hang


def loader_shard(loader):
    (dataset,) = loader._rows[0]._documents.values()
    while dataset.parents:
        (dataset,) = dataset.parents
    return dataset._source._paths[0]


def test_threads_end_with_close_and_with_the_loader(make_config, tokenizer):
    config = make_config({"a": texts("a", 40)}, prefetch_rows=2)
    shards = [prepare(config.sources[0], config, tokenizer)]
    shares = source_shares(config.sources, shards, train_tokens=1)

    def make():
        return Loader(shards, config, shares=shares, max_target_length=T, seed=0)

    def threads():
        return [t for t in threading.enumerate() if t.name == "loader"]

    with make() as loader:
        loader.next_rows(1)
        assert len(threads()) == 1
        state = loader.state()
        loader.close()
        assert not threads() and loader.state() == state
        again = rows_as_bytes(loader.next_rows(2))
    assert not threads()
    loader = make()
    loader.restore(state)
    assert rows_as_bytes(loader.next_rows(2)) == again
    del loader
    gc.collect()
    assert not threads()
