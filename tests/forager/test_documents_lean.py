"""Proofs in Lean as documents, from files as LeanDojo's benchmarks have them."""

import json

import pytest

from cwm_jax.__main__ import main
from cwm_jax.config import SourceConfig
from cwm_jax.data.sources import documents as read_documents
from cwm_jax.forager.documents import Document, Dropped
from cwm_jax.forager.documents.lean import LeanOptions, theorem_names, theorems

START, MIDDLE, END = "a b : Nat\n⊢ a + b = b + a", "a b : Nat\n⊢ b + a = b + a", "no goals"


def step(before, tactic, after):
    return {
        "tactic": tactic,
        "annotated_tactic": [tactic.replace("Nat.add_comm", "<a>Nat.add_comm</a>"), []],
        "state_before": before,
        "state_after": after,
    }


THEOREM = {
    "url": "https://github.com/someone/proofs",
    "commit": "0" * 40,
    "file_path": "Proofs/Sum.lean",
    "full_name": "Proofs.swap",
    "start": [3, 1],
    "end": [5, 6],
    "traced_tactics": [step(START, "rw [Nat.add_comm]", MIDDLE), step(MIDDLE, "rfl", END)],
}


def written(folder, *rows, name="train.json"):
    path = folder / name
    path.write_text(json.dumps(list(rows), ensure_ascii=False))
    return path


def made(folder, options=None, held_out=(), **changes):
    path = written(folder, THEOREM | changes)
    (found,) = theorems(path, options or LeanOptions(), held_out=held_out)
    return found


def test_a_document_is_states_and_the_tactics_between_them(tmp_path):
    assert made(tmp_path) == Document(
        "Proofs/Sum.lean:Proofs.swap",
        "Theorem: Proofs.swap (Proofs/Sum.lean)\n\n"
        f"State:\n{START}\n\nTactic:\nrw [Nat.add_comm]\n\n"
        f"State:\n{MIDDLE}\n\nTactic:\nrfl\n\nState:\nno goals\n",
        {
            "repository": "https://github.com/someone/proofs",
            "commit": "0" * 40,
            "file": "Proofs/Sum.lean",
        },
    )


def test_a_state_that_is_not_the_one_before_is_said(tmp_path):
    """As where a tactic has split a goal, and the next is about the second half."""
    steps = [step(START, "constructor", MIDDLE), step("⊢ True", "trivial", END)]
    document = made(tmp_path, traced_tactics=steps)
    assert isinstance(document, Document)
    assert f"State:\n{MIDDLE}\n\nState:\n⊢ True\n\nTactic:\ntrivial" in document.text


def test_a_statement_is_said_where_the_file_has_one(tmp_path):
    document = made(tmp_path, theorem_statement="theorem swap (a b : Nat) : a + b = b + a")
    assert isinstance(document, Document)
    assert (
        "(Proofs/Sum.lean)\n\ntheorem swap (a b : Nat) : a + b = b + a\n\nState:" in document.text
    )
    assert made(tmp_path, theorem_statement=None) == made(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"traced_tactics": []}, "no tactics"),
        ({"traced_tactics": [step(START, " ", END)]}, "empty state or tactic"),
        ({"traced_tactics": [step("", "rfl", END)]}, "empty state or tactic"),
        ({"traced_tactics": [step(START, "exact (by sorry)", END)]}, "sorry"),
        ({"traced_tactics": [step(START, "admit", END)]}, "sorry"),
        ({"traced_tactics": [step(START, "rfl", END)] * 201}, "too many tactics"),
        ({"traced_tactics": [step("x" * 20_001, "rfl", END)]}, "too long a state"),
        ({"url": "https://github.com/someone/miniF2F-lean4"}, "excluded repository"),
    ],
)
def test_what_teaches_no_proof_is_dropped_with_a_reason(tmp_path, changes, reason):
    assert made(tmp_path, **changes) == Dropped(reason)


def test_sorry_is_a_word(tmp_path):
    steps = [step(START, "exact not_sorry.lemma notsorry sorrynot", END)]
    assert isinstance(made(tmp_path, traced_tactics=steps), Document)


def test_theorems_of_a_test_split_are_left_out(tmp_path):
    held_out = theorem_names(written(tmp_path, THEOREM, name="test.json"))
    assert made(tmp_path, held_out=held_out) == Dropped("held out")


def without(key):
    return {k: v for k, v in THEOREM.items() if k != key}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (without("traced_tactics"), "theorem 2 has the fields"),
        (THEOREM | {"traced_tactics": {}}, "theorem 2: traced_tactics is {}; expected a list"),
        (THEOREM | {"traced_tactics": [["rfl"]]}, "expected a list of objects"),
        (THEOREM | {"traced_tactics": [{"tactic": "rfl"}]}, "theorem 2, traced_tactics 1 has"),
        (THEOREM | {"traced_tactics": [step(START, "rfl", None)]}, "state_after is None"),
        (THEOREM | {"full_name": 1}, "theorem 2: full_name is 1; expected text"),
        (THEOREM | {"theorem_statement": 1}, "theorem_statement is 1; expected text"),
        ("theorem", "theorem 2 is str; expected an object"),
    ],
)
def test_a_theorem_of_another_form_is_refused_with_its_number(tmp_path, row, words):
    with pytest.raises(ValueError, match=r"train\.json: theorem 2\b") as refused:
        list(theorems(written(tmp_path, THEOREM, row), LeanOptions()))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'{"a": 1}', "holds dict; expected a list"), (b"[{", "is not JSON"), (b"\xff", "UTF-8")],
)
def test_a_file_that_is_no_list_is_refused(tmp_path, content, words):
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list(theorems(path, LeanOptions()))


def test_the_command_writes_the_same_bytes_again_as_the_mixture_reads_them(tmp_path, capsys):
    other = THEOREM | {"full_name": "Proofs.again"}
    hidden = THEOREM | {"full_name": "Proofs.hidden"}
    files = [
        str(written(tmp_path, THEOREM, hidden, name="random.json")),
        str(written(tmp_path, other, THEOREM, name="premises.json")),
    ]
    held = str(written(tmp_path, hidden, name="test.json"))
    out, again = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for place in (out, again):
        line = ["forage", "documents", "lean", *files, "--held-out", held, "--out", str(place)]
        assert main(line) == 0
    assert out.read_bytes() == again.read_bytes()
    counts = json.loads((tmp_path / "a.jsonl.counts.json").read_text())
    assert counts["dropped"] == {"duplicate": 1, "held out": 1}
    assert "2 documents of 4 read" in capsys.readouterr().out
    first, second = read_documents(SourceConfig(name="made", kind="jsonl", path=str(out)))
    assert "⊢ a + b = b + a" in first.data.decode() and "Proofs.again" in second.data.decode()


def test_the_command_says_which_theorem_is_wrong_and_writes_nothing(tmp_path, capsys):
    path = written(tmp_path, THEOREM, without("url"))
    line = ["forage", "documents", "lean", str(path), "--out", str(tmp_path / "out.jsonl")]
    assert main(line) == 2
    assert "theorem 2 has the fields" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]
