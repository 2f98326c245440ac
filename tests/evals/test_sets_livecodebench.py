"""Oracle and fault: LiveCodeBench's form; its packed tests are read without unpickling anything."""

import base64
import json
import pickle
import zlib

import pytest
from evals.set_files import HOSTILE_FILES, answered, fenced, lines, options, prompt_of, written

from cwm_jax.evals.sets.code.livecodebench import packed_text, read_rows
from cwm_jax.evals.sets.livecodebench import ENTRIES
from cwm_jax.rl.environment import EnvironmentFailure

LOAD = ENTRIES["livecodebench"].load


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def cases(kind, *pairs):
    return json.dumps([{"input": a, "output": b, "testtype": kind} for a, b in pairs])


STDIN = {
    "question_title": "Sums",
    "question_content": "Print the sum of two numbers.",
    "platform": "atcoder",
    "question_id": "own_a",
    "contest_date": "2024-10-05T00:00:00",
    "difficulty": "easy",
    "starter_code": "",
    "public_test_cases": cases("stdin", ("1 2\n", "3\n")),
    "private_test_cases": packed(cases("stdin", ("4 5", "9"), ("1 1", "2"))),
    "metadata": "{}",
}
FUNCTIONAL = STDIN | {
    "question_id": "own_b",
    "contest_date": "2025-03-01T08:00:00",
    "starter_code": "class Solution:\n    def join(self, words: List[str], n: int) -> str:\n"
    "        ",
    "public_test_cases": cases("functional", ('["a", "b"]\n2', '"abab"')),
    "private_test_cases": packed(cases("functional", ("[]\n3", '""'))),
    "metadata": json.dumps({"func_name": "join"}),
}
OLD = STDIN | {"question_id": "own_c", "contest_date": "2023-05-01T00:00:00"}
PROGRAM = "print(sum(map(int, input().split())))"
METHOD = FUNCTIONAL["starter_code"] + "return ''.join(words) * n"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("lcb") / "test.jsonl"
    lines(path, OLD, STDIN, FUNCTIONAL)
    path.write_text(path.read_text().replace("\n", "\n\n", 1))  # a blank line
    return path


@pytest.fixture(scope="module")
def opened(path):
    with (evaluation := LOAD(path, options("v6"))).opened():
        yield evaluation


@pytest.mark.parametrize(
    ("mode", "values", "names"),
    [
        ("v5", {}, ["own_a"]),
        ("v6", {}, ["own_a", "own_b"]),
        ("all", {}, ["own_c", "own_a", "own_b"]),
        ("all", {"last": "2023-05-01"}, ["own_c"]),
        ("all", {"first": "2025-03-01"}, ["own_b"]),
        ("all", {"first": "2023-05-01", "last": "2024-10-05"}, ["own_c", "own_a"]),
    ],
)
def test_a_window_has_its_first_and_last_day(path, mode, values, names):
    evaluation = LOAD(path, options(mode, **values))
    assert [problem.name for problem in evaluation.problems] == names
    assert (evaluation.samples, evaluation.temperature, evaluation.top_p) == (10, 1.0, 0.95)


def test_a_problem_is_asked_as_a_program_or_with_its_beginning(path):
    evaluation = LOAD(path, options("v6"))
    program, function = (prompt_of(evaluation, n) for n in (0, 1))
    assert program.think and program.max_tokens == 64_510 and len(program.messages) == 2
    assert "reads its input from standard input" in program.messages[-1].content
    assert "def join(self" in function.messages[-1].content
    assert "it will be called" in function.messages[-1].content
    assert evaluation.problems[0].labels == {"difficulty": "easy", "platform": "atcoder"}
    assert evaluation.published["CWM"] == 63.5
    plain = LOAD(path, options("v6", think="no"))
    assert not prompt_of(plain).think and not plain.published


@pytest.mark.parametrize(
    ("number", "text", "said", "passed"),
    [
        (0, fenced(PROGRAM), "", 3),
        (0, fenced("a, b = map(int, input().split())\nprint(float(a + b))"), "", 3),
        (0, fenced("print(3)"), "wrong answer", 1),
        (0, fenced("print(9)"), "wrong answer", 0),
        (0, fenced("import os\nos._exit(0)"), "wrong answer", 0),
        (0, PROGRAM, "no code block", None),
        (1, fenced(METHOD), "", 2),
        (1, fenced("def join(words, n):\n    return ''.join(words) * n"), "", 2),
        (1, fenced("def join(words, n):\n    return 'abab'"), "wrong answer", 1),
        (1, fenced("def other():\n    pass"), "runtime error", 0),
    ],
)
def test_public_and_hidden_tests_have_to_pass(opened, number, text, said, passed):
    verdict = answered(opened, number, text)
    assert verdict.passed is (not said) and verdict.reason.startswith(said), verdict
    assert verdict.info.get("tests_passed") == passed


class Hostile:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Hostile(), "its pickle has"),
        ([cases("stdin", ("1", "1")), Hostile()], "its pickle has"),
        ([], "its pickle has EMPTY_LIST"),
        (b"[]", "its pickle has SHORT_BINBYTES"),
        (3, "its pickle has BININT1"),
        (None, "its pickle has NONE"),
    ],
)
def test_a_pickle_of_more_than_a_text_is_refused_and_not_run(tmp_path, capfd, value, said):
    path = lines(tmp_path / "x.jsonl", STDIN | {"private_test_cases": packed(value)})
    with pytest.raises(ValueError) as found:
        read_rows(path, None)
    assert str(found.value).startswith(f"{path}:1: private_test_cases: {said}"), found.value
    assert "unpickled" not in capfd.readouterr().out
    pickle.loads(pickle.dumps(Hostile()))
    assert "unpickled" in capfd.readouterr().out  # it would have been seen


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_packed_text_comes_back(protocol):
    for value in ("[]", "ä\n" * 300, "x" * 70_000):
        content = zlib.compress(pickle.dumps(value, protocol))
        assert packed_text(base64.b64encode(content).decode()) == value


def test_a_packed_text_that_is_cut_or_too_large_is_refused(monkeypatch):
    content = zlib.compress(pickle.dumps("x" * 1000 + "y"))
    with pytest.raises(ValueError, match="cut, or unpacks to more"):
        packed_text(base64.b64encode(content[:-8]).decode())
    for wrong in ("no base64!", base64.b64encode(b"no zlib").decode()):
        with pytest.raises(ValueError, match="neither JSON nor packed JSON"):
            packed_text(wrong)
    for short in (b"", pickle.dumps("x")[:-3]):
        with pytest.raises(ValueError, match=r"expected a pickle of one text|0 texts"):
            packed_text(base64.b64encode(zlib.compress(short)).decode())
    monkeypatch.setattr("cwm_jax.evals.sets.code.livecodebench._MAX_TESTS_BYTES", 500)
    with pytest.raises(ValueError, match="more than 500 bytes"):
        packed_text(base64.b64encode(content).decode())


def test_tests_that_are_not_packed_are_read(tmp_path):
    row = STDIN | {"private_test_cases": cases("stdin", ("1 1", "2"))}
    (found,) = read_rows(lines(tmp_path / "x.jsonl", row), None)
    assert len(found.tests().cases) == 2


def test_a_folder_has_several_files(tmp_path):
    lines(tmp_path / "test.jsonl", STDIN)
    lines(tmp_path / "test2.jsonl", FUNCTIONAL)
    assert [row.name for row in read_rows(tmp_path, None)] == ["own_a", "own_b"]
    lines(tmp_path / "test3.jsonl", STDIN)
    with pytest.raises(ValueError, match=r"test3.jsonl has the problem 'own_a', and .*test.jsonl"):
        read_rows(tmp_path, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no \*.jsonl"):
        read_rows(tmp_path / "empty", None)


def test_a_file_that_changed_is_a_failure_of_the_environment(tmp_path):
    path = lines(tmp_path / "x.jsonl", STDIN)
    with (evaluation := LOAD(path, options("v5"))).opened():
        path.write_text("")
        with pytest.raises(EnvironmentFailure, match="has changed since it was read"):
            answered(evaluation, 0, fenced(PROGRAM))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (STDIN | {"contest_date": "soon"}, ':1: contest_date is "soon"; expected a date'),
        (STDIN | {"question_content": ""}, ":1: question_content is empty"),
        (STDIN | {"public_test_cases": "[]"}, ":1: public_test_cases is an empty list"),
        (STDIN | {"public_test_cases": "[1]"}, ":1: public_test_cases[0]: the line is 1"),
        (STDIN | {"public_test_cases": cases("both", ("1", "1"))}, ":1: testtype is ['both', "),
        (FUNCTIONAL | {"metadata": "{}"}, ":1: metadata has no func_name"),
        (FUNCTIONAL | {"metadata": "[]"}, ":1: metadata is []; expected an object"),
        (FUNCTIONAL | {"metadata": "{"}, ":1: metadata is no JSON"),
        (FUNCTIONAL | {"metadata": {"func_name": "a b"}}, ":1: metadata.func_name is"),
        (
            FUNCTIONAL | {"public_test_cases": cases("functional", ("a", "1"))},
            ":1: input is no JSON",
        ),
        (STDIN | {"private_test_cases": packed("[")}, ":1: private_test_cases is no JSON"),
        (STDIN | {"private_test_cases": None}, ":1: private_test_cases is null"),
        ({"question_id": "a"}, ":1: the line has no 'question_title'"),
    ],
)
def test_a_line_that_cannot_be_used_is_refused(tmp_path, row, said):
    path = lines(tmp_path / "x.jsonl", row)
    with pytest.raises(ValueError) as found:
        read_rows(path, None)
    assert str(found.value).startswith(f"{path}{said}"), found.value


@pytest.mark.parametrize(("content", "said"), HOSTILE_FILES)
def test_a_file_that_is_none_is_refused(tmp_path, content, said):
    path = written(tmp_path / "x.jsonl", content)
    with pytest.raises(ValueError) as found:
        read_rows(path, None)
    assert str(found.value).startswith(str(path)), found.value
    assert content[:1] == "[" or content == "3" or f"{path}{said}" in str(found.value)


def test_settings_that_do_not_fit_are_refused(path, tmp_path):
    for values, said in (
        ({"first": "yesterday"}, "first=yesterday: expected a day"),
        ({"first": "2025-01-02", "last": "2025-01-01"}, "first=2025-01-02 is after"),
        ({"think": "maybe"}, "think=maybe: expected one of yes and no"),
    ):
        with pytest.raises(ValueError, match=said):
            LOAD(path, options("all", **values))
    with pytest.raises(ValueError, match="first beside the mode v5"):
        LOAD(path, options("v5", first="2025-01-01"))
    old = lines(tmp_path / "x.jsonl", OLD)
    with pytest.raises(ValueError, match="no problem from 2024-10-01 to 2025-02-01: take"):
        LOAD(old, options("v5"))
