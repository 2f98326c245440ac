"""The command line: programs are traced and shown, bad input is refused with what to do."""

import json

import pytest

from cwm_jax.__main__ import main
from cwm_jax.trace import TraceEvent, TraceFrame
from cwm_jax.trace.episodes import episode_from_json
from cwm_jax.trace.table import format_table

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


def test_a_script_is_decoded_as_python_does(capsys, script):
    script.write_bytes(b"\xef\xbb\xbfx = 1\r\ny = 2\r\n")
    status, out, err = run(capsys, "run", script)
    assert (status, err) == (0, "")
    assert "y = 2" in out
    script.write_bytes(b"# coding: latin-1\nx = '\xe9'\n")
    status, out, err = run(capsys, "run", script)
    assert (status, err) == (0, "")
    assert "x = 'é'" in out
    script.write_bytes(b"x = '\xe9'\n")
    status, _, err = run(capsys, "run", script)
    assert status == 2
    assert "missing encoding declaration" in err
    assert "declare it, or convert the file" in err


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (SCRIPT, ("--max-events", 0), "max_events is 0; expected more than 0"),
        (SCRIPT, ("--call", "collatz(2)", "--stdin"), "expected none with --call or a marked line"),
        ("x = 1  # << START_OF_TRACE\n", ("--stdin",), "expected none with --call or a marked"),
        ("def main():\n    return 1\n", ("--call", "main()"), "rename it"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(capsys, script, source, options, message):
    script.write_text(source)
    options = (*options, script) if options[-1] == "--stdin" else options
    status, out, err = run(capsys, "run", script, *options)
    assert (status, out) == (2, "")
    assert message in err


def test_a_marker_in_a_string_marks_nothing(capsys, script):
    script.write_text("mark = '  # << START_OF_TRACE'\nlast = len(mark)\npass\n")
    status, out, _ = run(capsys, "run", script)
    assert status == 0
    assert "last=21" in out


def test_lines_of_the_context_have_the_numbers_of_the_table(capsys, script):
    script.write_text("\n\ndef f(x):\n\n    y = x\n    return y\n")
    status, out, _ = run(capsys, "run", script, "--call", "f(1)")
    assert status == 0
    context, table = out.split("\n\n#")
    assert context.splitlines()[:4] == ["3  def f(x):", "4", "5      y = x", "6      return y"]
    assert ["line", "5", "y", "=", "x"] in [row.split()[1:6] for row in table.splitlines()[1:]]


def test_what_a_repr_holds_breaks_no_row_and_moves_no_column():
    frames = [
        TraceFrame(TraceEvent.CALL, "def f():\n", {}, None, 1),
        TraceFrame(
            TraceEvent.LINE, "\t\tx = 'a much longer line'\n", {"x": "a\n\x1b[31mb"}, None, 2
        ),
        TraceFrame(TraceEvent.RETURN, "\treturn x\n", {}, "\u2028\t'", 3),
    ]
    rows = format_table(frames, width=100).splitlines()
    assert len(rows) == 4
    assert rows[2].endswith(r"        x = 'a much longer line'  x=a\n\x1b[31mb")
    assert rows[3].endswith(r"-> \u2028    '")
    column = rows[0].index("locals, value")
    assert rows[2].index("x=a") == rows[3].index("-> ") == column


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("collatz(1) + 2", "expected one call of a function"),
        ("", "expected one call of a function"),
        ("collatz(1", "expected one call of a function"),
        (
            "nothere(3)",
            "is named 'nothere'; expected one of its names: coll",
        ),
    ],
)
def test_what_is_no_call_of_the_file_is_refused(capsys, script, call, complaint):
    status, _, err = run(capsys, "run", script, "--call", call)
    assert status == 2
    assert complaint in err


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 200_000, b"1\n"])
def test_a_file_that_holds_no_trace_is_refused_by_name(capsys, tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    status, _, err = run(capsys, "show", tmp_path / "file")
    assert status == 2
    assert "file" in err and "expected the text of one trace" in err
