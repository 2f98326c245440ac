"""Law: an answer is the gold answer exactly, or as math-verify says where ours does not know."""

import pytest
from tiny import VOCAB_SIZE

from cwm_jax.config import EnvironmentConfig
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.kinds import make_environments
from cwm_jax.rl.envs.math.comparison import Comparison, compare
from cwm_jax.rl.envs.math.verifying import MathVerifier
from cwm_jax.tokenizer import END_OF_TURN, train_tokenizer

SAME = [
    ("42", "42"),
    ("1/2", r"\frac{1}{2}"),
    (r"\dfrac12", "0.5"),
    ("1,000,000", "1000000"),
    (r"\sqrt{16}", "4"),
    (r"(1,2)", r"\left( 1, 2 \right)"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
    (r"\text{Yes}", "Yes"),
]
DIFFERENT = [  # Meta's checker takes the first four for equal
    ("100001", "100002"),
    ("12345678", "12345999"),
    ("1,2,3", "3,2,1"),
    (r"50\%", "50"),
    ("1.00001", "1"),
    ("(1,2)", "(2,1)"),
    ("[1,2)", "(1,2)"),
    ("1/3", "0.3333"),
    ("42", "-42"),
    ("42", ""),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_equal_answers(gold, answer):
    assert compare(gold, answer) is Comparison.SAME
    assert compare(answer, gold) is Comparison.SAME


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_answers(gold, answer):
    assert compare(gold, answer) is not Comparison.SAME


def test_math_verify_decides_what_ours_does_not_know_and_is_vetoed_where_ours_does():
    pytest.importorskip("math_verify")
    verifier = MathVerifier(use_math_verify=True, time_s=20.0)
    try:
        opened = verifier.verdict("x^2+2x+1", "(x+1)^2")
        assert opened.ours is Comparison.UNKNOWN and opened.math_verify and opened.passed
        vetoed = verifier.verdict("1,2,3", "3,2,1")
        assert vetoed.math_verify and not vetoed.passed and vetoed.info()["vetoed"]
        agreed = verifier.verdict("7", "7")
        assert agreed.passed and not agreed.info()["disagree"]
        assert not verifier.verdict("x^2", "__import__('os').system('true')").passed
    finally:
        verifier.close()


@pytest.fixture(scope="module")
def tokenizer():
    words = ["\\boxed{7} answer <tool: python>\nprint(1)\n</tool>\n"] * 50
    return train_tokenizer([*words, *map(str, range(3000))], VOCAB_SIZE)


@pytest.fixture(scope="module")
def make(tokenizer):
    configs = [
        EnvironmentConfig(name="math", kind="math", profile="direct"),
        EnvironmentConfig(name="thinks", kind="math", profile="small"),
        EnvironmentConfig(name="python", kind="math_python", profile="direct"),
    ]
    makers = make_environments(configs, tokenizer)
    return lambda name: makers(name, Task(name="t", data={"problem": "3 + 4?", "answer": "7"}))


def action(tokenizer, text):
    return [*tokenizer.encode(text), tokenizer.special_tokens[END_OF_TURN]]


@pytest.mark.parametrize(
    ("name", "text", "passes"),
    [
        ("math", r"It is \boxed{7}.", True),
        ("math", r"\boxed{\frac{14}{2}}", True),
        ("math", r"\boxed{8}", False),
        ("math", "7", False),
        ("math", r"\boxed{7} or \boxed{8}", False),
        ("math", r"\boxed{7} \boxed{7}", False),
        ("math", r"\boxed{7", False),
        ("thinks", "so</think>\\boxed{7}", True),
        ("thinks", r"\boxed{7}", False),
        ("thinks", "</think></think>\\boxed{7}", False),
        ("thinks", "\\boxed{8}</think>\\boxed{7}", True),
    ],
)
def test_one_boxed_answer_counts(make, tokenizer, name, text, passes):
    environment = make(name)
    assert "3 + 4?" in tokenizer.decode(environment.start().tokens)
    step = environment.step(action(tokenizer, text))
    assert step.done and step.info["pass"] is passes and step.reward == (1 if passes else -1)


def test_programs_are_run_between_turns(make, tokenizer):
    environment = make("python")
    environment.start()
    said = []
    for code in ("print(3 + 4)", "x = 1/0", "print(9)"):
        step = environment.step(action(tokenizer, f"<tool: python>\n{code}\n</tool>"))
        assert not step.done and step.reward == 0
        said.append(tokenizer.decode(step.observation.tokens))
    assert "completed. [stdout]7" in said[0] and "error: Traceback" in said[1]
    assert "maximum execution count (2) reached" in said[2]
    step = environment.step(action(tokenizer, r"\boxed{7}"))
    assert step.done and step.reward == 1 and step.info["calls"] == 2


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        ("<tool: python>\nwhile True: pass\n</tool>", "Timeout"),
        ("<tool: ruby>\nputs 1\n</tool>", "No such tool"),
        ("<tool: python>\nimport sys; sys.exit(0)\n</tool>", "completed"),
        ("<tool: python>\nprint(open('/etc/shadow').read())\n</tool>", "error:"),
        ("<tool: python>\nimport os; os.kill(os.getppid(), 9); print('on')\n</tool>", ""),
    ],
)
def test_what_a_program_does_stays_its_own(make, tokenizer, call, reply):
    environment = make("python")
    environment.start()
    step = environment.step(action(tokenizer, call))
    assert not step.done and reply in tokenizer.decode(step.observation.tokens)
    assert environment.step(action(tokenizer, r"\boxed{7}")).reward == 1
