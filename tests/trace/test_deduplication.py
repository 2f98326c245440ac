"""Near-duplicates and benchmark functions: laws of MinHash, golden cases, and false hits."""

import json

import numpy as np
import pytest
from corpus_work import program

from cwm_jax.trace import TraceEvent, TraceFrame, render_frames
from cwm_jax.trace.corpus.decontamination import MIN_NODES, function_digests, load_benchmarks
from cwm_jax.trace.corpus.deduplication import (
    NearDuplicateIndex,
    NearDuplicates,
    minhash,
    trace_signature,
)

DEFAULT = NearDuplicates()
SUM = '''
def total(words: list[str], start: int = 0) -> int:
    """Adds lengths."""
    result: int = start
    for word in words:
        result += len(word)  # one more
    return result
'''


def frames_text(*lines, values=(), result=0):
    """A trace of those lines, each with the value of ``x`` before it, and a return."""
    values = values or range(len(lines))
    frames = [
        TraceFrame(TraceEvent.LINE, f"    {line}\n", {"x": str(value)})
        for line, value in zip(lines, values, strict=True)
    ]
    return render_frames(
        [*frames, TraceFrame(TraceEvent.RETURN, "    return x\n", arg=str(result))]
    )


def random_elements(count, seed):
    return np.random.default_rng(seed).integers(0, 2**63, count).astype(np.uint64)


@pytest.mark.parametrize(("shared", "each"), [(900, 50), (400, 300), (50, 475), (1, 2)])
def test_equal_minima_estimate_the_similarity(shared, each):
    common, a, b = (random_elements(n, seed) for n, seed in ((shared, 0), (each, 1), (each, 2)))
    minima = [minhash(np.concatenate([common, part]), 1024) for part in (a, b)]
    true = shared / (shared + 2 * each)
    error = 4 * np.sqrt(true * (1 - true) / 1024)
    assert abs(np.mean(minima[0] == minima[1]) - true) < error


def test_a_signature_does_not_change_between_runs_and_versions():
    signature = trace_signature(frames_text("x = 1", "y = x", "return y"), DEFAULT)
    assert signature.dtype == np.uint32
    assert [int(v) for v in signature[:4]] == GOLDEN


GOLDEN = [2799116855, 1064769596, 2301758935, 1451126829]


def test_a_loop_counts_once_and_order_counts():
    body = ["x += 1", "y = x", "z = y"]
    same = [0, 0, 0]
    once = trace_signature(frames_text(*body * 4, values=same * 4), DEFAULT)
    often = trace_signature(frames_text(*body * 40, values=same * 40), DEFAULT)
    turned = trace_signature(frames_text(*body[::-1] * 4, values=same * 4), DEFAULT)
    assert np.mean(once == often) == 1
    assert np.mean(once == turned) < 0.5


def test_values_count_if_asked():
    lines = [f"x += {n}" for n in range(12)]
    texts = [
        frames_text(*lines, values=range(start, start + 12), result=start) for start in (0, 100)
    ]
    for values, similar in ((True, 0.3), (False, 1.0)):
        options = NearDuplicates(values=values)
        first, second = (trace_signature(text, options) for text in texts)
        assert np.mean(first == second) <= similar
        assert (np.mean(first == second) == 1) == (not values)


def test_a_trace_shorter_than_a_shingle_has_a_signature():
    one = trace_signature(frames_text("pass"), NearDuplicates(shingle_frames=50))
    other = trace_signature(frames_text("x = 1"), NearDuplicates(shingle_frames=50))
    assert np.mean(one == other) < 0.1


def test_the_first_of_near_duplicates_stays():
    index = NearDuplicateIndex(DEFAULT)
    base = random_elements(1000, 0)
    assert index.add(minhash(random_elements(1000, 9), 128)) is None
    assert index.add(minhash(base, 128)) is None
    assert index.add(minhash(base[:960], 128)) == 1
    assert index.add(minhash(np.concatenate([base[:300], random_elements(700, 3)]), 128)) is None
    assert len(index) == 3


@pytest.mark.parametrize(
    "options", [DEFAULT, NearDuplicates(jaccard=1.0, permutations=8, bands=1)], ids=["16", "1"]
)
def test_the_index_finds_all_it_holds_after_it_has_grown(options):
    """With one band nothing makes up for a slot that is lost."""
    index = NearDuplicateIndex(options)
    shape = (5000, options.permutations)
    signatures = np.random.default_rng(0).integers(0, 2**32, shape, dtype=np.uint32)
    assert all(index.add(signature) is None for signature in signatures)
    assert [index.add(signature) for signature in signatures] == list(range(5000))


def test_memory_is_as_stated():
    index = NearDuplicateIndex(DEFAULT)
    for signature in np.random.default_rng(0).integers(0, 2**32, (1500, 128), dtype=np.uint32):
        index.add(signature)
    assert 960 <= index.num_bytes / len(index) <= 1920


def test_an_episode_that_shares_a_band_hides_no_other():
    """Signatures of one equal band and little else: each is still found."""
    index = NearDuplicateIndex(DEFAULT)
    signatures = np.random.default_rng(0).integers(0, 2**32, (20, 128), dtype=np.uint32)
    signatures[:, :8] = signatures[0, :8]
    assert [index.add(signature) for signature in signatures] == [None] * 20
    changed = signatures.copy()
    changed[:, 15::8] += 1  # of every band but the shared one a row: 88 % are equal
    assert [index.add(signature) for signature in changed] == list(range(20))


def test_the_recall_is_that_of_the_bands():
    options = NearDuplicates(jaccard=0.9)
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        index = NearDuplicateIndex(NearDuplicates(jaccard=0.8, permutations=128, bands=16))
        first = rng.integers(0, 2**32, 128, dtype=np.uint32)
        second = np.where(rng.random(128) < 0.9, first, first + np.uint32(1))
        index.add(first)
        keys = index._band_keys(first) == index._band_keys(second)
        found += bool(keys.any())
    assert abs(found / 400 - options.recall(0.9)) < 0.03


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"jaccard": 1.5}, "jaccard is 1.5; expected at most 1"),
        ({"jaccard": 0.5}, "with probability 0.06; expected at least 0.8: take more bands"),
        ({"permutations": 100}, "permutations is 100, bands 16; expected a multiple"),
        ({"bands": 0}, "bands is 0; expected more than 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        NearDuplicates(**options)


@pytest.mark.parametrize(
    "other",
    [
        "def g(a, b=0):\n  c = b\n\n  for d in a: c += len( d )\n  return c",
        "# a comment\nasync_ = 1\ndef total(start, words=0):\n"
        "    words_ = words\n    for x in start:\n        words_ += len(x)\n    return words_\n",
        "class C:\n    def m(list, str=0):\n        int = str\n        for max in list:\n"
        "            int += len(max)\n        return int\n",
    ],
    ids=["names and layout", "swapped names", "a method with names of builtins"],
)
def test_a_function_is_known_whatever_its_names_comments_and_layout(other):
    assert set(function_digests(SUM)) & set(function_digests(other))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("len", "hash"),
        ("+=", "-="),
        ("start: int = 0", "start: int = 1"),
        ("in words", "in result"),
        ("(word)", "(start)"),
        ("return result", "return start"),
    ],
)
def test_a_function_that_does_something_else_is_another(old, new):
    assert old in SUM
    assert not set(function_digests(SUM)) & set(function_digests(SUM.replace(old, new)))


def test_imported_names_and_attributes_stay():
    body = (
        "import {0}\ndef f(xs):\n    out = []\n    for x in xs:\n        out.append({0}.{1}(x))\n"
    )
    digests = [function_digests(body.format(*names)) for names in NAMES]
    assert len({digest for found in digests for digest in found}) == 3


NAMES = [("math", "sqrt"), ("math", "floor"), ("cmath", "sqrt")]


def test_names_that_differ_only_in_their_binding_are_told_apart():
    one = "def f(a, b):\n    g = lambda x, y: x - y\n    return [g(a, b), g(b, a), a]"
    other = "def f(a, b):\n    g = lambda x, y: y - x\n    return [g(a, b), g(b, a), a]"
    assert function_digests(one) != function_digests(other)


@pytest.mark.parametrize(
    "trivial",
    ["def add(a, b):\n    return a + b", "def f(xs):\n    return len(xs)", "def f(): pass"],
)
def test_what_everybody_writes_is_no_evidence(trivial):
    assert function_digests(trivial) == ()


def test_the_entry_of_a_context_is_no_evidence():
    context = program("p", SUM, ["ab"], 3).context
    assert function_digests(context) == function_digests(SUM)


def test_benchmark_files_of_both_kinds_are_read(tmp_path):
    rows = [
        {"code": SUM},
        {"prompt": SUM[: SUM.index("    result")], "canonical_solution": "    return start\n"},
        {"code": "def add(a, b):\n    return a + b"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_benchmarks([path])
    assert found.files == (("rows.jsonl", 3, 1),)
    assert found.digests == set(function_digests(SUM))
    assert found.sha256 != load_benchmarks([]).sha256


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "def f(): pass"}',
        "not JSON",
        '{"code": "def f(:"}',
        '{"code": 3}',
        "[]",
        json.dumps({"code": "-" * 50_000 + "1"}),
    ],
)
def test_a_line_that_is_no_program_is_refused(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"rows.jsonl:1: .*expected an object"):
        load_benchmarks([path])


def test_the_least_size_is_that_of_the_shortest_loop():
    """A loop that adds has more than 10 nodes: it counts."""
    assert MIN_NODES == 11
    assert function_digests("def f(xs):\n    for x in xs:\n        print(x)\n    return xs")
