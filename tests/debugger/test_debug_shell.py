"""The command line: a real tiny engine by subprocess, and the shell's words on a true model."""

import dataclasses
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from oracle import DOUBLES as SOURCE
from tiny import tiny_model

from convert import save_hf
from cwm_jax import init
from cwm_jax.__main__ import main
from cwm_jax.debugger.comparison import run_for_comparison
from cwm_jax.debugger.in_process import EnginePredictor
from cwm_jax.debugger.prediction import PredictionError, PredictionRequest
from cwm_jax.debugger.shell import Shell, uses_colour
from cwm_jax.inference.constraints import ChoicesAfter
from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.inference.pretrained import load_pretrained
from cwm_jax.inference.service import EngineService

ROOT = Path(__file__).parents[2]


@pytest.fixture
def say(debug, tracer):
    """Runs commands on a session; what is said."""

    def run(*commands: str, colour: bool = False, compare: bool = False, **options) -> str:
        session = debug(SOURCE, **options)
        trace = run_for_comparison(session.program, tracer) if compare else None
        out = io.StringIO()
        Shell(
            session,
            name="prog.py",
            run_truly=lambda: run_for_comparison(session.program, tracer),
            trace=trace,
            colour=colour,
            stdin=io.StringIO("\n".join([*commands, "q"]) + "\n"),
            stdout=out,
        ).cmdloop()
        return out.getvalue().replace("(cwm) ", "")

    return run


def test_steps_show_place_line_and_what_changed(say):
    assert say("s", "s", "s", "s").splitlines() == [
        "> prog.py(5)main()",
        "--Call--",
        "-> def main():",
        "> prog.py(6)main()",
        "->     x = double(1)",
        "> prog.py(1)double()",
        "--Call--",
        "-> def double(n):",
        "   n = 1",
        "> prog.py(2)double()",
        "->     m = n * 2",
        "> prog.py(3)double()",
        "->     return m",
        "   m = 2",
    ]


def test_an_empty_line_repeats_the_last_command(say):
    assert say("s", "", "")[-20:] == say("s", "s", "s")[-20:]


def test_next_return_and_the_end_are_said(say):
    said = say("s", "n", "r", "s")
    assert "[stepped over double(): its return was asked for, its lines were not]" in said
    assert "--Return-- -> 6" in said
    assert "[the trace is at its end: the entry has returned]" in said


def test_values_lists_and_the_stack_are_shown(say):
    said = say("b 3", "c", "p", "p m", "p m + n", "p q", "l", "w", "locals", "b")
    for text in (
        "breakpoint at line 3",
        "[breakpoint]",
        "m = 2\n2\n3\n",
        "*** 'q' is no local here; there are: n, m",
        "   3 B->     return m",
        "  prog.py(6)main()  x = double(1)\n  prog.py(3)double()  return m",
    ):
        assert text in said, said


def test_breakpoints_are_set_cleared_and_refused(say):
    said = say("b 3, n > 1", "tbreak 8", "b", "cl 8", "b x", "b 4", "cl 9", "c", "p n")
    for text in (
        "breakpoint at line 3, if n > 1",
        "temporary breakpoint at line 8",
        "cleared: temporary breakpoint at line 8",
        "*** 'x' is no line",
        "*** breakpoint at line 4, which is blank",
        "*** no breakpoint at line 9; there are: [3]",
    ):
        assert text in said, said
    assert said.endswith("\n2\n")


def test_set_back_reset_and_frames(say):
    said = say("s", "s", "set n=7", "p n", "back", "p n", "set n", "frames", "reset", "w")
    assert "\n7\n> prog.py(1)double()" in said
    assert "*** set 'n'; expected NAME=VALUE" in said
    assert "2  call      1    def double(n):   n=1" in said
    assert said.endswith("  prog.py(5)main()  def main():\n")


def test_comparison_marks_the_first_difference_once(say):
    lie = '<|line_sep|>{"n": "1", "m": "3"}<|action_sep|>    return m\n<|frame_sep|>'
    said = say("s", "s", "s", "s", "s", "compare", compare=True, lies={4: lie})
    line = "x    4  line         3  return m  m=3   <- first difference"
    assert said.count(line) == 2  # when it came, and in the table
    assert "         m is predicted 3, truly 2" in said
    assert said.endswith("the first difference is at frame 4\n")
    assert "6 of 6 frames are those of the real run, none differs" in say(
        "s", "s", "s", "s", "s", "compare"
    )


def test_errors_and_control_characters_leave_the_session_usable(say):
    said = say("s", "s", "s", "x", "w", lies={2: "bad\x1b[31m<|frame_sep|>"})
    assert "*** the model wrote no frame" in said
    assert "\x1b" not in said
    assert "*** 'x' is no command" in said
    lie = '<|line_sep|>{"n": "1\\u001b[2J"}<|action_sep|>    m = n * 2\n<|frame_sep|>'
    assert "\x1b" not in say("s", "s", "s", "p n", lies={3: lie})


def test_help_names_every_command(say):
    said = say("h", "h n")
    for name in ("tep", "ext", "eturn", "ut", "ontinue", "ack", "set NAME=VALUE", "compare"):
        assert name in said
    assert "to the next line of this function" in say("h n")


def test_colour_is_for_terminals_alone(say):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert uses_colour(Terminal(), ["TERM"])
    assert not uses_colour(Terminal(), ["NO_COLOR"])
    assert not uses_colour(io.StringIO(), [])
    assert "\x1b[32m=" in say("compare", colour=True)
    assert "\x1b" not in say("compare")


@pytest.fixture(scope="module")
def export(tmp_path_factory, tokenizer):
    """A folder with random weights."""
    folder = tmp_path_factory.mktemp("debug") / "export"
    config = tiny_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=512)
    save_hf(folder, config, init(config, jax.random.key(0)), tokenizer=tokenizer)
    return folder


def test_a_real_engine_is_debugged_through_a_pipe(export, tmp_path):
    (tmp_path / "prog.py").write_text(SOURCE)
    command = [sys.executable, "-m", "cwm_jax", "debug", str(tmp_path / "prog.py")]
    command += ["--model", str(export), "--compare", "--max-frame-tokens", "40"]
    done = subprocess.run(
        command,
        input="s\nset x=5\np x\ns\nback\ncompare\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("> prog.py(5)main()\n--Call--\n-> def main():\n(cwm) ")
    assert "*** " in done.stdout  # weights at random write no frame
    assert "(cwm) 5\n" in done.stdout
    assert "none differs" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--server", "http://127.0.0.1:1"], "--tokenizer"),
        (["--model", "x", "--call", "nothing(1)"], "expected one of its names"),
        (["--model", "x", "--temperature", "-1"], "expected 0 (greedy) or more"),
    ],
)
def test_what_cannot_begin_says_why(capsys, tmp_path, arguments, message):
    source = SOURCE.replace("main", "start")
    (tmp_path / "prog.py").write_text(source)
    assert main(["debug", str(tmp_path / "prog.py"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_program_that_does_not_compile_cannot_begin(capsys, tmp_path):
    (tmp_path / "prog.py").write_text("return 1\n")
    assert main(["debug", str(tmp_path / "prog.py"), "--model", "x"]) == 2
    assert "'return' outside function" in capsys.readouterr().err


_INTERRUPTIBLE = """
import signal, sys
from cwm_jax.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
sys.exit(main())
"""


def test_ctrl_c_ends_a_prediction_and_the_session_goes_on(tmp_path, tokenizer):
    (tmp_path / "prog.py").write_text(SOURCE)
    tokenizer.save(tmp_path / "tokenizer")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", _INTERRUPTIBLE, "debug", str(tmp_path / "prog.py")]
        command += ["--server", address, "--tokenizer", str(tmp_path / "tokenizer")]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as process:
            assert process.stdin is not None
            process.stdin.write("step\np\nw\nquit\n")
            process.stdin.flush()
            connection, _ = silent.accept()
            assert connection.recv(1)
            process.send_signal(signal.SIGINT)
            try:
                said, _ = process.communicate(timeout=60)
            finally:
                process.kill()
            assert process.returncode == 0
            connection.close()
    assert "interrupted: the prediction is dropped, the frames before it are kept" in said
    assert "no locals" in said and said.endswith("prog.py(5)main()  def main():\n(cwm) ")


@pytest.fixture(scope="module")
def predictor(export):
    loaded = load_pretrained(export)
    options = EngineOptions(max_length=64, max_rows=1, decode_steps=2)
    engine = Engine(loaded.params, loaded.model_config, loaded.tokenizer, options)
    service = EngineService(engine)
    yield EnginePredictor(service)
    service.close(drain=False)


def test_an_engine_keeps_to_the_constraint_and_stops(predictor):
    free = PredictionRequest(prompt=[1, 2, 3], max_tokens=6, stop_token_ids=(500,))
    first = predictor.predict(free)
    assert len(first) == 6
    after = first[0]
    choices = ((after + 1, after + 2), (after + 1, after + 3, after + 4))
    constraint = ChoicesAfter(after=after, choices=choices, then=(500,))
    request = dataclasses.replace(free, constraint=constraint)
    constrained = predictor.predict(request)
    assert constrained[-1] == 500 and constrained[0] == after
    assert tuple(constrained[1:-1]) in choices


def test_a_trace_that_is_too_long_for_the_engine_is_an_error(predictor):
    request = PredictionRequest(prompt=[1] * 64, max_tokens=6, stop_token_ids=(500,))
    with pytest.raises(PredictionError, match="have 64 tokens; expected fewer than 64"):
        predictor.predict(request)
    short = dataclasses.replace(request, prompt=[1] * 60, max_tokens=600)
    assert 0 < len(predictor.predict(short)) <= 4


def test_a_constraint_that_raises_ends_one_prediction(predictor):
    def broken(generated):
        assert len(generated) < 3

    request = PredictionRequest(
        prompt=[1, 2], max_tokens=40, stop_token_ids=(500,), constraint=broken
    )
    with pytest.raises(PredictionError, match="ended with 'error'"):
        predictor.predict(request)
    free = dataclasses.replace(request, constraint=None, max_tokens=2)
    assert len(predictor.predict(free)) == 2
