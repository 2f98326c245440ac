"""The command line: programs are traced and shown, bad input is refused with what to do."""

import json

import pytest

from cwm_jax.__main__ import main
from cwm_jax.trace.episodes import episode_from_json

SCRIPT = """\
def collatz(n):
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


if __name__ == "__main__":
    print(collatz(int(input())))
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    file = tmp_path / "prog.py"
    file.write_text(SCRIPT)
    return file


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main(["trace", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_script_is_traced_with_its_stdin(capsys, script, tmp_path):
    (tmp_path / "in").write_text("3\n")
    status, out, _ = run(capsys, "run", script, "--stdin", tmp_path / "in")
    assert status == 0
    rows = out.split("locals, value\n")[1].splitlines()
    assert rows[0].split()[1:3] == ["call", "1"]
    words = [row.split() for row in rows]
    assert any(w[1:] == ["return", "7", "return", "steps", "->", "7"] for w in words)
    assert any(w[1:3] == ["line", "6"] and w[-1] == "n=10" for w in words)


def test_a_call_is_traced_and_shown_from_its_file(capsys, script, tmp_path):
    status, out, _ = run(capsys, "run", script, "--call", "collatz(2)")
    assert status == 2  # input() has nothing to read: the module ends before the entry
    script.write_text(SCRIPT.replace("int(input())", "1"))
    for form in ("json", "text"):
        status, out, _ = run(capsys, "run", script, "--call", "collatz(2)", "--format", form)
        assert status == 0
        (tmp_path / form).write_text(out)
        status, shown, err = run(capsys, "show", tmp_path / form)
        assert (status, err) == (0, "")
        assert "return collatz(2)" in shown
        assert "-> 1" in shown
    episode = episode_from_json(json.loads((tmp_path / "json").read_text()))
    assert episode.source == "function"
    assert episode.prompt + episode.frames == (tmp_path / "text").read_text()


def test_a_cut_trace_is_shown_and_said(capsys, script):
    script.write_text("while True:\n    pass\n")
    status, out, err = run(capsys, "run", script, "--max-events", 100)
    assert status == 1
    assert "more than 100 events" in err
    assert len(out.splitlines()) > 100


@pytest.mark.parametrize(
    ("source", "message"),
    [("def f(:\n", "SyntaxError"), ("1 / 0\n", None), ("import os\nos._exit(3)\n", "exit")],
)
def test_what_has_no_trace_says_why(capsys, script, source, message):
    script.write_text(source)
    status, out, err = run(capsys, "run", script)
    if message is None:  # its module is the entry: the exception is in the trace
        assert status == 0
        assert "!! ZeroDivisionError" in out
    else:
        assert status == 2
        assert message in err


def test_a_missing_file_is_refused(capsys, tmp_path):
    status, _, err = run(capsys, "run", tmp_path / "no.py")
    assert status == 2
    assert "No such file" in err


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("hello\n", (), "expected the text of one trace, or episodes as JSON lines"),
        ("", (), "has 0 traces; expected more than --episode 0"),
        ("<|begin_of_text|>x", (), "is it the text of a trace"),
    ],
)
def test_a_file_without_traces_is_refused(capsys, tmp_path, text, arguments, message):
    (tmp_path / "file").write_text(text)
    status, _, err = run(capsys, "show", tmp_path / "file", *arguments)
    assert status == 2
    assert message in err


def test_a_damaged_episode_is_refused(capsys, script, tmp_path):
    script.write_text("x = 1\n")
    _, out, _ = run(capsys, "run", script, "--format", "json")
    (tmp_path / "file").write_text(out.replace("x = 1", "x = 2", 1))
    status, _, err = run(capsys, "show", tmp_path / "file")
    assert status == 2
    assert "the file is damaged" in err


def test_a_malformed_trace_is_shown_with_its_problems(capsys, script, tmp_path):
    script.write_text("x = 1\n")
    _, out, _ = run(capsys, "run", script, "--format", "text")
    (tmp_path / "file").write_text(out.replace("<|arg_sep|>", "", 1))
    status, out, err = run(capsys, "show", tmp_path / "file")
    assert status == 1
    assert "malformed: frame" in err
    assert "x = 1" in out
