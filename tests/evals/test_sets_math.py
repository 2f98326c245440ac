"""Law and fault: answers of math sets by committed rules of spelling and of near misses."""

import pytest
from evals.set_files import HOSTILE_FILES, answered, lines, options, prompt_of, written

from cwm_jax.evals.answer_rules import MADE_PAIRS, NEAR_MISSES, REWRITES, near_misses, rewrites
from cwm_jax.evals.sets.math_problems import (
    ENTRIES,
    canonical,
    completed_answer,
    read_aime,
    read_gsm8k,
    read_math500,
)
from cwm_jax.rl.envs.answers import NoAnswerError
from cwm_jax.rl.envs.math.comparison import Comparison, compare
from cwm_jax.rl.envs.math.verifying import MathVerifier

GSM8K = {"question": "What are 3 dozens?", "answer": "A dozen is 12.\n3 * 12 = 36.\n#### 1,036"}
MATH = {
    "problem": "What is half of a third?",
    "solution": r"\boxed{\frac{1}{6}}",
    "answer": r"\frac{1}{6}",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "own/1.json",
}
AIME = {"id": 7, "problem": "What is 6 times 7?", "answer": "042"}
ROWS = {"gsm8k": GSM8K, "math500": MATH, "aime24": AIME, "aime25": AIME}
# One of each form that the rules know.
GOLDS = [
    *["7", "-12", "4096", "0", r"11,\! 232", "3.25", ".625", r"\frac{3}{8}", r"-\frac{5}{7}"],
    *[
        r"\frac{9}{4}",
        r"\frac57",
        r"\frac 35",
        r"5\sqrt{3}",
        r"2 \sqrt3",
        r"9\pi",
        r"\frac{\pi}{3}",
    ],
    *["(2,5]", r"\left(\frac{1}{2},7\right)", "(-3,8)", "2,-7", r"[1, \infty)", r"x \in [-4,9]"],
    *[r"(-\infty, 1) \cup (4, \infty)", "y=8", "p - q", "3x^2 - 5x + 1", "4 - 3i", "6r^3"],
    *[r"\begin{pmatrix} -2 \\ 1/3 \end{pmatrix}", r"70^\circ", r"24\mbox{ cm}^2", r"\$12.50"],
    *[r"7.5 \text{ cents}", r"90 \mbox{ inches}^2", "132_5", "4210_{7}", r"\text{(B)}"],
    r"\text{east}",
]


@pytest.fixture(scope="module")
def verifier():
    """As the sets have it."""
    pytest.importorskip("math_verify")
    verifier = MathVerifier(use_math_verify=True, time_s=5.0)
    yield verifier
    verifier.close()


def is_same(verifier, gold, answer):
    ours = compare(gold, answer)
    if ours is not Comparison.UNKNOWN:
        return ours is Comparison.SAME
    return verifier.verdict(gold, answer).passed


def test_every_rule_has_an_answer_to_show_it():
    spelt = {rule for gold in GOLDS for rule, _ in rewrites(gold)}
    spoilt = {rule for gold in GOLDS for rule, _, _ in near_misses(gold)}
    assert spelt == {"as it is", *REWRITES}
    assert spoilt == {*NEAR_MISSES, *MADE_PAIRS}


def test_answers_match_in_every_spelling(verifier):
    cases = [(gold, *case) for gold in GOLDS for case in rewrites(gold)]
    wrong = [case for case in cases if not is_same(verifier, case[0], case[2])]
    assert len(cases) > 350 and not wrong


def test_near_misses_do_not_match(verifier):
    cases = [case for gold in GOLDS for case in near_misses(gold)]
    wrong = [case for case in cases if is_same(verifier, case[1], case[2])]
    assert len(cases) > 130 and not wrong


def loaded(tmp_path, name, mode, *rows, **values):
    path = lines(tmp_path / f"{name}.jsonl", *(rows or [ROWS[name]]))
    return ENTRIES[name].load(path, options(mode, **values))


@pytest.mark.parametrize("name", ROWS)
def test_every_mode_loads_and_asks(tmp_path, name):
    for mode in ENTRIES[name].modes:
        evaluation = loaded(tmp_path, name, mode, math_verify="no")
        prompt = prompt_of(evaluation)
        assert evaluation.name == f"{name}/{mode}" and prompt.think == (mode == "reasoning")
        asked = ROWS[name].get("problem") or ROWS[name]["question"]
        shown = prompt.text or prompt.messages[-1].content
        assert asked in shown and ("boxed" in shown) == (mode != "completion")
        thinks_much = mode == "reasoning" and name != "gsm8k"
        assert evaluation.samples == (20 if thinks_much else 1)
        assert prompt.max_tokens == {"reasoning": 65_536, "chat": 4_096}.get(mode, 1_024)
        assert "1,036" not in shown and "1036" not in shown


@pytest.mark.parametrize(
    ("name", "text", "passed", "said"),
    [
        ("gsm8k", r"So \boxed{1036}.", True, ""),
        ("gsm8k", r"So $\boxed{1,036}$", True, ""),
        ("gsm8k", r"So \boxed{1036.0}", True, ""),
        ("gsm8k", r"So \boxed{1037}", False, "another answer"),
        ("gsm8k", r"\boxed{1036} or \boxed{1037}", False, "2 boxed answers"),
        ("gsm8k", "1036", False, "0 boxed answers"),
        ("gsm8k", r"\boxed{}", False, "the boxed answer is empty"),
        ("gsm8k", r"<think>\boxed{1036}", False, "<think> in the answer"),
        ("math500", r"\boxed{\dfrac16}", True, ""),
        ("math500", r"\boxed{0.1666667}", False, "another answer"),
        ("math500", r"\boxed{\frac{2}{12}}", True, ""),
        ("math500", "\\boxed{" + "(" * 3000, False, "the boxed answer is not closed"),
        ("aime24", r"\boxed{042}", True, ""),
        ("aime24", r"\boxed{42}", True, ""),
        ("aime25", r"\boxed{42\%}", False, "another answer"),
        ("aime25", r"\boxed{41,42}", False, "another answer"),
    ],
)
def test_a_boxed_answer_is_judged(tmp_path, name, text, passed, said):
    with (evaluation := loaded(tmp_path, name, "chat", math_verify="no")).opened():
        verdict = answered(evaluation, 0, text)
        assert verdict.passed is passed and verdict.reason.startswith(said), verdict
        assert not answered(evaluation, 0, text, cut=True).passed


def test_a_completion_says_its_answer_after_the_mark(tmp_path):
    with (evaluation := loaded(tmp_path, "gsm8k", "completion", math_verify="no")).opened():
        assert answered(evaluation, 0, " It is so.\n#### 1036\n\nQ", cut=True).passed
        assert answered(evaluation, 0, " #### $1,036.").passed
        assert not answered(evaluation, 0, " #### 1035\n#### 1036").passed
        assert answered(evaluation, 0, " 1036").reason == "nothing after ####"
    with pytest.raises(NoAnswerError):
        completed_answer("#### \n")


def test_what_ours_does_not_know_is_asked(tmp_path):
    pytest.importorskip("math_verify")
    row = MATH | {"answer": "p - q"}
    with (evaluation := loaded(tmp_path, "math500", "reasoning", row)).opened():
        assert answered(evaluation, 0, r"\boxed{-q + p}").passed
        assert not answered(evaluation, 0, r"\boxed{q - p}").passed
    ours = loaded(tmp_path, "math500", "reasoning", row, math_verify="no")
    with ours.opened():
        assert not answered(ours, 0, r"\boxed{-q + p}").passed


def test_right_answers_are_one_answer_and_equal_wrong_ones_too(tmp_path):
    with (evaluation := loaded(tmp_path, "math500", "reasoning", math_verify="no")).opened():
        right = [answered(evaluation, 0, rf"\boxed{{{a}}}").answer for a in (r"\frac16", "2/12")]
        wrong = [answered(evaluation, 0, rf"\boxed{{{a}}}").answer for a in ("0.5", r"\tfrac12")]
        assert right[0] == right[1] != wrong[0] == wrong[1]
    assert canonical("1 2") == canonical(r"\left.1 2") != canonical("12")


@pytest.mark.parametrize(
    ("row", "answer", "name"),
    [
        ({"problem": "?", "answer": 42}, "42", "1"),
        ({"ID": "2024-I-1", "Problem": "?", "Answer": "7"}, "7", "2024-I-1"),
        ({"question": "?", "expected_answer": "000", "solution": "long"}, "0", "1"),
        ({"problem": "?", "solution": r"\boxed{204}", "id": 3}, "204", "3"),
        ({"problem": "?", "answer": r"336^\circ"}, "336", "1"),
    ],
)
def test_spellings_of_aime_s_keys(tmp_path, row, answer, name):
    (found,) = read_aime(lines(tmp_path / "x.jsonl", row))
    assert (found.answer, found.name) == (answer, name)


@pytest.mark.parametrize(
    ("read", "row", "said"),
    [
        (read_gsm8k, GSM8K | {"answer": "36"}, ':1: answer is "36"; expected its end to be ####'),
        (read_gsm8k, GSM8K | {"answer": "#### "}, ":1: answer is"),
        (read_gsm8k, GSM8K | {"question": 3}, ":1: question is 3; expected text"),
        (read_gsm8k, {"answer": "#### 3"}, ":1: the line has no 'question'"),
        (read_math500, MATH | {"answer": r"\boxed{3}"}, ':1: answer is "\\\\boxed{3}", with'),
        (read_math500, MATH | {"answer": "3 apples each"}, ":1: answer is"),
        (read_math500, MATH | {"answer": ""}, ":1: answer is empty"),
        (read_math500, MATH | {"unique_id": True}, ":1: unique_id is true; expected text"),
        (read_math500, MATH | {"problem": "<|eot_id|>"}, ":1: the problem spells the special"),
        (read_aime, AIME | {"answer": "1000"}, ':1: answer is "1000"; expected a whole number'),
        (read_aime, AIME | {"answer": -1}, ':1: answer is "-1"; expected a whole number'),
        (read_aime, AIME | {"answer": 4.5}, ":1: answer is 4.5; expected text"),
        (read_aime, AIME | {"Answer": "3"}, ":1: the line has ['answer', 'Answer'] of the keys"),
        (read_aime, {"problem": "?"}, ":1: the line has none of the keys answer,"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused(tmp_path, read, row, said):
    path = lines(tmp_path / "x.jsonl", row)
    with pytest.raises(ValueError) as found:
        read(path)
    assert str(found.value).startswith(f"{path}{said}"), found.value


@pytest.mark.parametrize("read", [read_gsm8k, read_math500, read_aime])
@pytest.mark.parametrize(("content", "said"), HOSTILE_FILES)
def test_a_file_that_is_none_is_refused(tmp_path, read, content, said):
    path = written(tmp_path / "x.jsonl", content)
    with pytest.raises(ValueError) as found:
        read(path)
    assert str(found.value).startswith(f"{path}{said}"), found.value


def test_one_id_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r":2: the name 'own/1.json' is that of line 1, too"):
        read_math500(lines(tmp_path / "x.jsonl", MATH, MATH))
