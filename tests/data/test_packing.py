import itertools

import numpy as np
import pytest

from cwm_jax.data import packing as packing_module
from cwm_jax.data.packing import Cursor, pack, row_from_pieces

PACKINGS = ("concat_then_split", "first_fit", "best_fit")
LENGTHS_AT_BORDERS = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 2, 2, 21, 5, 4, 3]


def documents_of(lengths):
    """Every token is unique over all documents, and never 0."""
    ends = np.cumsum(lengths) + 1
    return [np.arange(end - n, end, dtype=np.int32) for n, end in zip(lengths, ends, strict=True)]


def random_lengths(seed, num_documents, longest):
    return np.random.default_rng(seed).integers(2, longest, num_documents).tolist()


def rows_of(documents, packing, T, **settings):
    return list(pack(documents, packing=packing, max_target_length=T, **settings))


def segments_of(row):
    """[(tokens, targets, positions)] of each segment, for the checks below."""
    return [
        tuple(row[key][row["segment_ids"] == s] for key in ("tokens", "targets", "positions"))
        for s in range(1, row["segment_ids"].max() + 1)
    ]


def as_lists(row):
    return {key: value.tolist() for key, value in row.items()}


def oracle(documents, packing, T, group_rows):
    """Lists of (token, target) pairs per segment per row, written the slow way."""
    if packing == "concat_then_split":
        pairs = [(d, i) for d, doc in enumerate(documents) for i in range(len(doc) - 1)]
        rows = [pairs[i : i + T] for i in range(0, len(pairs), T)]
        return [
            [
                [(int(documents[d][i]), int(documents[d][i + 1])) for _, i in group]
                for d, group in itertools.groupby(row, key=lambda pair: pair[0])
            ]
            for row in rows
        ]
    pieces = [
        [(int(doc[i]), int(doc[i + 1])) for i in range(start, min(start + T, len(doc) - 1))]
        for doc in documents
        for start in range(0, len(doc) - 1, T)
    ]
    done, group = [], []
    for piece in pieces:
        used = [sum(map(len, row)) for row in group]
        fitting = [i for i, n in enumerate(used) if n + len(piece) <= T]
        if packing == "best_fit":
            # An empty row of the group competes too: it only wins when no other row has room.
            fitting.sort(key=lambda i: -used[i])
        if fitting:
            group[fitting[0]].append(piece)
        elif len(group) < group_rows:
            group.append([piece])
        else:
            done, group = done + group, [[piece]]
    return done + group


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("T", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("group_rows", [1, 3])
@pytest.mark.parametrize(
    "lengths", [LENGTHS_AT_BORDERS, random_lengths(1, 60, 15), [2], [9, 9, 9], [3]]
)
def test_rows_equal_the_oracle(packing, T, group_rows, lengths, monkeypatch):
    monkeypatch.setattr(packing_module, "GROUP_ROWS", group_rows)
    documents = documents_of(lengths)
    found = [
        [list(zip(tokens.tolist(), targets.tolist(), strict=True)) for tokens, targets, _ in row]
        for row in (segments_of(row) for row, _ in rows_of(documents, packing, T))
    ]
    assert found == oracle(documents, packing, T, group_rows)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("T", [1, 3, 4, 7, 64])
def test_every_token_but_the_first_is_a_target_exactly_once(packing, T):
    documents = documents_of(LENGTHS_AT_BORDERS + random_lengths(2, 300, 40))
    rows = [row for row, _ in rows_of(documents, packing, T)]
    targets = np.concatenate([row["targets"][row["loss_mask"] == 1] for row in rows])
    expected = np.concatenate([document[1:] for document in documents])
    np.testing.assert_array_equal(np.sort(targets), expected)
    inputs = np.concatenate([row["tokens"][row["segment_ids"] > 0] for row in rows])
    np.testing.assert_array_equal(np.sort(inputs), np.concatenate([d[:-1] for d in documents]))


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_keep_the_batch_contract(packing):
    T = 11
    for row, _ in rows_of(documents_of(random_lengths(3, 200, 30)), packing, T):
        assert {key: (value.shape, value.dtype) for key, value in row.items()} == {
            "tokens": ((T,), np.int32),
            "targets": ((T,), np.int32),
            "positions": ((T,), np.int32),
            "segment_ids": ((T,), np.int32),
            "loss_mask": ((T,), np.float32),
        }
        ids = row["segment_ids"]
        used = int((ids > 0).sum())
        assert used and (ids[:used] > 0).all() and (ids[used:] == 0).all()
        assert ids[0] == 1 and set(np.diff(ids[:used])) <= {0, 1}
        np.testing.assert_array_equal(row["loss_mask"], (ids > 0).astype(np.float32))
        assert all((row[key][used:] == 0).all() for key in row)
        for tokens, targets, positions in segments_of(row):
            np.testing.assert_array_equal(targets, tokens + 1)  # documents count upwards
            np.testing.assert_array_equal(positions, np.arange(len(tokens)))


def test_concat_then_split_pads_the_last_row_alone():
    rows = [
        row for row, _ in rows_of(documents_of(random_lengths(4, 99, 30)), "concat_then_split", 7)
    ]
    assert all((row["segment_ids"] > 0).all() for row in rows[:-1])


@pytest.mark.parametrize("packing", ["first_fit", "best_fit"])
def test_fits_keep_documents_whole_that_fit_a_row(packing):
    T = 12
    documents = documents_of(random_lengths(5, 200, T + 2))
    starts = {int(document[0]): len(document) - 1 for document in documents}
    segments = [s for row, _ in rows_of(documents, packing, T) for s in segments_of(row)]
    assert {int(tokens[0]): len(tokens) for tokens, _, _ in segments} == starts


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("T", [2, 4, 9])
def test_every_cursor_resumes_the_stream(packing, T, monkeypatch):
    monkeypatch.setattr(packing_module, "GROUP_ROWS", 3)
    documents = documents_of(random_lengths(6, 25, 20))
    rows = rows_of(documents, packing, T)
    expected = [as_lists(row) for row, _ in rows]
    cursors = [Cursor(), *(cursor for _, cursor in rows)]
    assert cursors[-1] == Cursor(len(documents))
    for number, cursor in enumerate(cursors):
        resumed = rows_of(documents[cursor.document :], packing, T, cursor=cursor)
        assert [c for _, c in resumed] == cursors[number + 1 :]
        assert [as_lists(row) for row, _ in resumed] == expected[number:]


def test_row_from_pieces_spells_out_one_row():
    row = row_from_pieces([np.array([7, 8, 9]), np.array([4, 5])], 5)
    assert {key: value.tolist() for key, value in row.items()} == {
        "tokens": [7, 8, 4, 0, 0],
        "targets": [8, 9, 5, 0, 0],
        "positions": [0, 1, 0, 0, 0],
        "segment_ids": [1, 1, 2, 0, 0],
        "loss_mask": [1, 1, 1, 0, 0],
    }


def test_unknown_packing_is_refused():
    with pytest.raises(ValueError, match="'worst_fit'; expected 'concat_then_split'"):
        pack([], packing="worst_fit", max_target_length=4)
