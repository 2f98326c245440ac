r"""Law and fault: which boxed answers are right; what a program of the policy is told."""

import dataclasses
import importlib.metadata
import json

import pytest
from rl.turns import small_tokenizer, turn

from cwm_jax.config import EnvironmentConfig
from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.answers import NoAnswerError, ToolCall, only_boxed, tool_calls
from cwm_jax.rl.envs.kinds import make_environments
from cwm_jax.rl.envs.math.comparison import Comparison, compare
from cwm_jax.rl.envs.math.environment import PROFILES, Math, MathPython
from cwm_jax.rl.envs.math.exact import MalformedError, number_of
from cwm_jax.rl.envs.math.latex import tidy
from cwm_jax.rl.envs.math.python_tool import PythonTool
from cwm_jax.rl.envs.math.verifying import MathVerifier

SAME, DIFFERENT, UNKNOWN = Comparison.SAME, Comparison.DIFFERENT, Comparison.UNKNOWN
PROFILE = PROFILES["small"]
TASK = Task(name="t", data={"problem": "What is 6 times 7?", "answer": "42"})


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def verifier():
    """Ours and math-verify."""
    pytest.importorskip("math_verify")
    verifier = MathVerifier(use_math_verify=True, time_s=1.0)
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def tool():
    tool = PythonTool(call_s=1.0)
    yield tool
    tool.close()


OURS = MathVerifier(use_math_verify=False, time_s=1.0)


@pytest.mark.parametrize(
    ("gold", "answer", "found"),
    [
        # integers and fractions, exactly
        ("42", "42.", SAME),
        ("42", "42.0", SAME),
        ("42", "42.0000001", DIFFERENT),
        ("100001", "100002", DIFFERENT),
        ("12345678", "12345999", DIFFERENT),
        ("1.00001", "1", DIFFERENT),
        ("1,000", "1000", SAME),
        ("1000", "1{,}000", SAME),
        (r"11,\! 111,\! 111,\! 100", "11111111100", SAME),
        (r"1000000", r"10^6", SAME),
        (r"1500", r"1.5 \times 10^{3}", SAME),
        (r"\frac{1}{2}", "1/2", SAME),
        (r"\frac 59", r"\dfrac{5}{9}", SAME),
        (r"\frac{1}{2}", r"\frac{2}{4}", SAME),
        ("0.5", r"\frac12", SAME),
        (r"\frac13", "0.333333", DIFFERENT),
        (r"2\frac{1}{3}", r"\frac73", SAME),
        (r"-\frac{3}{2}", r"\frac{-3}{2}", SAME),
        ("2", r"\sqrt{4}", SAME),
        # decimals
        ("3.14159265", "3.14159266", SAME),
        ("3.1416", "3.1417", DIFFERENT),
        ("0.0000012", "0.0000011", DIFFERENT),
        # percent
        ("50", r"50\%", DIFFERENT),
        (r"50\%", "50", DIFFERENT),
        (r"50\%", r"\frac12", SAME),
        (r"50\%", r"50 \text{ percent}", SAME),
        # units
        ("5", r"5\text{ cm}", SAME),
        (r"5 \mbox{ inches}", "5", SAME),
        (r"5\text{ cm}", "5 centimeters", SAME),
        (r"5\text{ cm}", r"5\text{ m}", DIFFERENT),
        (r"5\text{ cm}", "5m", DIFFERENT),
        (r"5\text{ m}", "5m", SAME),
        ("5 cm", "5 g", DIFFERENT),
        ("5 sq. ft.", r"5\text{ square feet}", SAME),
        ("5m", "5", UNKNOWN),  # m may be a number
        (r"15\mbox{ cm}^2", r"15 \text{ square centimeters}", SAME),
        (r"90^\circ", "90", SAME),
        ("90", r"90^{\circ}", SAME),
        (r"\$18.90", "18.9", SAME),
        (r"12\pi", r"12 \pi \text{ cm}", SAME),
        # lists, tuples, intervals, sets
        ("1,2,3", "1, 2, 3", SAME),
        ("1,2,3", "3,2,1", DIFFERENT),
        ("12", "1,2", DIFFERENT),
        ("(1,2)", r"\left(1, 2\right)", SAME),
        ("(1,2)", "(2,1)", DIFFERENT),
        ("(1,2)", "[1,2]", DIFFERENT),
        ("(1,2]", "(1,2)", DIFFERENT),
        ("(1,2)", "1,2", DIFFERENT),
        (r"\left(\frac35,\frac83\right]", r"(0.6, \frac{8}{3}]", SAME),
        (r"\{1,2\}", r"\{2,1\}", SAME),
        (r"\{1,2\}", r"\{1,2,2\}", DIFFERENT),
        (r"x \in [-2,7]", "[-2,7]", SAME),
        (r"(-\infty,2) \cup (3,\infty)", r"(3, \infty)\cup(-\infty, 2)", SAME),
        (r"(-\infty,2) \cup (3,\infty)", r"(3, \infty)\cup(-\infty, 2]", DIFFERENT),
        (
            r"\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}",
            r"\begin{bmatrix}-\frac13\\2.0\end{bmatrix}",
            SAME,
        ),
        (
            r"\begin{pmatrix} 1 & 2 \end{pmatrix}",
            r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
            DIFFERENT,
        ),
        (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", "(1,2)", DIFFERENT),
        # names, words, equations
        ("x=5", "5", SAME),
        ("5", "x = 5", SAME),
        ("x=5", "y=5", DIFFERENT),
        (r"\text{(C)}", "C", SAME),
        (r"\text{(C)}", r"\textbf{(C)}", SAME),
        (r"\text{(C)}", "D", DIFFERENT),
        (r"\text{east}", "East", SAME),
        (r"\text{east}", "seat", DIFFERENT),
        ("Evelyn", "Elevyn", DIFFERENT),
        ("p - q", "p-q", SAME),
        ("5x-7y+4 = 0", "5x - 7y + 4=0", SAME),
        ("5x-7y+4 = 0", "4", DIFFERENT),
        ("204_5", "204_{5}", SAME),
        ("204_5", "204", SAME),
        ("204_5", "204_6", DIFFERENT),
        # algebra is left to others
        (r"3\sqrt{2}", r"\sqrt{18}", UNKNOWN),
        ("x^2+1", "1+x^2", UNKNOWN),
        ("x<2", "2>x", UNKNOWN),
        # several values in one box
        ("2", r"1 \text{ or } 2", DIFFERENT),
        ("2", "1=2", DIFFERENT),
        ("2", "x=1=2", DIFFERENT),
        ("0.5", r"x=\frac12=0.5", SAME),
        ("2", "1 2", DIFFERENT),
        ("3", "1 2", DIFFERENT),
        ("2", r"1\cup 2", DIFFERENT),
        ("2", r"1 \vee 2", DIFFERENT),
        ("2", r"\pm 2", DIFFERENT),
        ("2", r"1 \approx 2", DIFFERENT),
        ("2", r"1 \quad 2", DIFFERENT),
        ("2", r"1 ; 2", DIFFERENT),
        ("2", r"\{1,2\}", DIFFERENT),
    ],
)
def test_answers_are_compared(gold, answer, found):
    assert compare(gold, answer) is found
    assert compare(gold, gold) is SAME and compare(answer, answer) is SAME


@pytest.mark.parametrize(("one", "other"), [("1/2", "0.5"), (r"\text{Yes}", "Yes"), ("42", "-42")])
def test_which_answer_is_the_gold_one_makes_no_difference(one, other):
    assert compare(one, other) is compare(other, one)


def test_a_list_has_no_order_where_the_task_says_so():
    assert compare("1,-2", "-2,1", ordered=False) is SAME
    assert compare("1,-2", "-2,1,1", ordered=False) is DIFFERENT
    assert compare("1,-2", "-2,2", ordered=False) is DIFFERENT
    assert compare("(1,-2)", "(-2,1)", ordered=False) is DIFFERENT


@pytest.mark.parametrize("text", ["1 2", "5-", "1..2", "3*", "()", "1/", "2^", "{1"])
def test_signs_that_are_no_number_are_malformed(text):
    with pytest.raises(MalformedError):
        number_of(text)


@pytest.mark.parametrize("text", ["10^{10^{10}}", "1/0", r"\sqrt{2}", "9" * 5000, "x", r"2^{1/2}"])
def test_what_is_not_exact_is_no_number(text):
    assert number_of(tidy(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        *["(" * 5000, "{" * 4000, r"\frac" * 1000, "," * 5000, "1^" * 2000, "-" * 5000],
        *["a " * 2500, "$" * 5000, "=".join("x" * 2000), r"\text{a}" * 700, "[(" * 20],
        r"\begin{matrix}" * 300,
    ],
)
def test_hostile_latex_is_compared_quickly_enough_to_end(text):
    assert compare("5", text) is not SAME and compare("a,b", text) is not SAME


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so $\boxed{42}$.", "42"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed {\left\{ 1 \right\}}", r"\left\{ 1 \right\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        ("42", "0 boxed answers"),
        (r"\boxed{1} and \boxed{1}", "2 boxed answers"),
        (r"\boxed{\boxed{1}}", "2 boxed answers"),
        (r"\boxed 5", "the boxed answer has no braces"),
        (r"\boxed{\frac{1}{2}", "the boxed answer is not closed"),
        (r"\boxed{ }", "the boxed answer is empty"),
        (r"\boxedx{1}", "0 boxed answers"),
    ],
)
def test_one_box_is_the_answer(text, content):
    if content.endswith(("answers", "braces", "closed", "empty")):
        with pytest.raises(NoAnswerError, match=f"^{content}$"):
            only_boxed(text)
    else:
        assert only_boxed(text) == content


@pytest.mark.parametrize(
    ("gold", "answer", "passed", "disagree", "vetoed"),
    [
        ("42", "42", True, False, False),
        ("42", "43", False, False, False),
        (r"3\sqrt{2}", r"\sqrt{18}", True, True, False),
        ("x^2+1", "1+x^2", True, True, False),
        ("x<2", "2>x", True, True, False),
        ("120", "5!", True, True, False),
        (r"\{\sqrt8,1\}", r"\{1, 2\sqrt{2}\}", True, True, False),
        (r"\sqrt8,\sqrt2", r"\sqrt{2}, 2\sqrt{2}", False, True, False),  # theirs has no order
        ("50", r"50\%", False, True, True),
        ("2", "1=2", False, True, True),
        ("1,2,3", "3,2,1", False, True, True),
        ("0.0000012", "0.0000011", False, True, True),
        ("(1,2)", "1,2", False, True, True),
        ("3", "1 2", False, True, True),
        ("2x", "3x", False, False, False),
    ],
)
def test_math_verify_decides_what_ours_leaves_open_and_nothing_else(
    verifier, gold, answer, passed, disagree, vetoed
):
    info = verifier.verdict(gold, answer).info()
    assert (info["pass"], info["disagree"], info["vetoed"]) == (passed, disagree, vetoed), info
    assert info["disagree"] == (info["ours_pass"] != info["math_verify_pass"])
    assert OURS.verdict(gold, answer).passed == info["ours_pass"]


def test_math_verify_is_ended_when_it_takes_too_long(verifier):
    verdict = verifier.verdict("2", "10^{10^{10}}")
    assert not verdict.passed and verdict.reason == "math-verify: cpu"
    assert verifier.verdict(r"\sqrt8", r"2\sqrt{2}").passed


def test_a_profile_with_math_verify_wants_it_installed(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(ValueError, match=r"'math-verify' is not installed.*pip install"):
        MathVerifier(use_math_verify=True, time_s=1.0)


@pytest.mark.parametrize(
    ("text", "reward", "reason"),
    [
        ("so\n</think>\n$\\boxed{42}$", 1, ""),
        ("so\n</think>\n\\boxed{6 \\cdot 7}", 1, ""),
        ("so\n</think>\n\\boxed{41}", -1, "another answer"),
        ("so \\boxed{42}\n</think>\n42", -1, "0 boxed answers"),
        ("so \\boxed{41}\n</think>\n\\boxed{42}", 1, ""),
        ("so\n</think>\n\\boxed{41} \\boxed{42}", -1, "2 boxed answers"),
        ("so\n\\boxed{42}", -1, "0 </think>"),
        ("</think></think>\\boxed{42}", -1, "2 </think>"),
        ("</think>\\boxed{42}<think>", -1, "<think> is not closed"),
    ],
)
def test_an_episode_is_one_answer(tokenizer, text, reward, reason):
    environment = Math(TASK, tokenizer, PROFILE, OURS)
    start = environment.start()
    prompt = tokenizer.decode(start.tokens)
    assert prompt.endswith("<think>\n") and r"\boxed{}" in prompt and "42" not in prompt
    step = environment.step(turn(tokenizer, text))
    assert step.done and (step.reward, step.info["reason"]) == (reward, reason)
    assert json.loads(json.dumps(step.info)) == step.info
    assert environment.step(turn(tokenizer, text, end=False)).info["reason"] == "not finished"
    environment.close()


def test_without_reasoning_no_tag_is_demanded(tokenizer):
    environment = Math(TASK, tokenizer, PROFILES["direct"], OURS)
    assert environment.step(turn(tokenizer, r"\boxed{42}")).reward == 1
    assert environment.step(turn(tokenizer, r"<think> \boxed{42}")).reward == -1


def test_a_task_whose_answer_is_no_text_is_refused(tokenizer):
    data = {"problem": "x", "answer": 42}
    with pytest.raises(ValueError, match="math task 't': answer is 42; expected text: mend"):
        Math(Task(name="t", data=data), tokenizer, PROFILE, OURS)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<tool: python>\n1\n</tool>", [ToolCall("python", "1\n")]),
        (
            "a <tool: my tool>\n</tool><tool: b>\n1</tool>",
            [ToolCall("my tool", ""), ToolCall("b", "1")],
        ),
        ("<tool: x>\na > b\n<tool: y>\n</tool>", [ToolCall("x", "a > b\n<tool: y>\n")]),
        ("<tool: python>1</tool>", []),
        ("<tool: python>\n1", []),
        ("<tool:python>\n1</tool>", []),
        ("<tool: >\n1</tool>", []),
        ("<tool: " * 30_000, []),
    ],
)
def test_calls_of_tools_are_found(text, calls):
    assert tool_calls(text) == calls


@pytest.mark.parametrize(
    ("code", "reply"),
    [
        ("print(6 * 7)", "completed. [stdout]42\n[/stdout]"),
        ("x = 1", "completed."),
        (
            "import sys\nprint(1)\nprint(2, file=sys.stderr)",
            "completed. [stdout]1\n[/stdout] [stderr]2\n[/stderr]",
        ),
        ("print(__name__)\nexit()\nprint(2)", "completed. [stdout]__main__\n[/stdout]"),
        ("import sys\nsys.exit(3)", "completed."),
        ("import os\nos._exit(0)", "completed."),
        ("import os\nos._exit(1)", "error"),
        ("while True: pass", "error: Timeout"),
        ("import time\ntime.sleep(9)", "error: Timeout"),
        ("print('x' * 10**7)", "error"),
        ("import sys\nsys.modules['program'].reply(b'{\"error\": [[1]]}')", "error"),
        (
            "import os\ntry:\n    os.kill(os.getppid(), 9)\nexcept OSError:\n    pass\nprint('on')",
            "completed. [stdout]on\n[/stdout]",
        ),
    ],
)
def test_a_program_is_answered(tool, code, reply):
    assert tool.run(code) == reply


def test_an_exception_is_answered_with_its_traceback(tool):
    reply = tool.run("def f():\n    return 1 / 0\nf()")
    assert reply.startswith("error: Traceback") and reply.endswith(
        "ZeroDivisionError: division by zero"
    )
    assert "return 1 / 0" in reply and "inside" not in reply and "sandbox" not in reply
    assert tool.run("print(input())").endswith("EOFError: EOF when reading a line")
    assert "SyntaxError" in tool.run("def")


def test_each_program_starts_anew(tool):
    assert tool.run("x = 1\nopen('left', 'w').write('1')") == "completed."
    assert "NameError" in tool.run("print(x)")
    assert "FileNotFoundError" in tool.run("open('left')")


def episode(tokenizer, tool, **changes):
    profile = dataclasses.replace(PROFILE, **changes)
    environment = MathPython(TASK, tokenizer, profile, OURS, tool=tool)
    prompt = tokenizer.decode(environment.start().tokens)
    assert "<tool: python>" in prompt and f"at most {profile.calls}" in prompt
    return environment


def call(code, name="python"):
    return f"I try\n</think>\n<tool: {name}>\n{code}\n</tool>"


def test_what_a_program_prints_comes_back(tokenizer, tool):
    environment = episode(tokenizer, tool)
    action = turn(tokenizer, call("print(6 * 7)"))
    step = environment.step(action)
    assert not step.done and step.reward == 0 and step.info == {"calls": 1}
    shown = tokenizer.decode(step.observation.tokens)
    assert shown.startswith(
        "<|start_header_id|>tool: python<|end_header_id|>\n\ncompleted. [stdout]42\n"
    )
    assert shown.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n<think>\n")
    left = PROFILE.max_action_tokens - len(action) - len(step.observation.tokens)
    assert step.observation.max_action_tokens == left
    final = environment.step(turn(tokenizer, "as it says\n</think>\n\\boxed{42}"))
    assert final.done and final.reward == 1 and final.info["calls"] == 1


def test_calls_of_a_turn_run_in_order_up_to_their_limit(tokenizer, tool):
    environment = episode(tokenizer, tool, max_action_tokens=2000)
    text = call("print(1)") + call("", "bash").split("</think>")[1]
    text += call("print(2)").split("</think>")[1] + call("print(3)").split("</think>")[1]
    step = environment.step(turn(tokenizer, text))
    shown = tokenizer.decode(step.observation.tokens)
    parts = ["1\n[", "error: No such tool", "2\n[", "error: maximum execution count (2) reached"]
    assert [shown.index(part) for part in parts] == sorted(shown.index(part) for part in parts)
    assert "tool: bash" in shown and step.info["calls"] == 2


def test_a_box_beside_a_call_is_no_answer(tokenizer, tool):
    environment = episode(tokenizer, tool)
    step = environment.step(turn(tokenizer, call("print(1)") + r" \boxed{42}"))
    assert not step.done
    assert environment.step(turn(tokenizer, "</think>\nI said so")).reward == -1


def test_long_output_is_cut_and_tokens_run_out(tokenizer, tool):
    environment = episode(tokenizer, tool, max_action_tokens=200)
    step = environment.step(turn(tokenizer, call("print('1 ' * 2000)")))
    shown = tokenizer.decode(step.observation.tokens)
    assert "[...]" in shown and len(step.observation.tokens) < 64 + 20
    step = environment.step(turn(tokenizer, call("print('1 ' * 2000)")))
    assert step.done and (step.reward, step.info["reason"]) == (-1, "no tokens are left")


def test_a_turn_with_a_broken_form_ends_the_episode(tokenizer, tool):
    for text in ("<tool: python>\n1\n</tool>", "</think>\n<tool: python>\n1\n"):
        assert episode(tokenizer, tool).step(turn(tokenizer, text)).reward == -1


def test_kinds_make_them(tokenizer, monkeypatch):
    config = EnvironmentConfig(name="m", kind="math")
    environment = make_environments([config], tokenizer)("m", TASK)
    assert environment.step(turn(tokenizer, "</think>\\boxed{42}")).reward == 1
    monkeypatch.setenv("PATH", "/nowhere")
    config = EnvironmentConfig(name="m", kind="math_python")
    environment = make_environments([config], tokenizer)("m", TASK)
    with pytest.raises(EnvironmentFailure, match="bwrap"):
        environment.step(turn(tokenizer, call("print(1)")))
