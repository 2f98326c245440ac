"""Turns of a policy as text, for environments that read answers."""

from cwm_jax.rl.environment import Task
from cwm_jax.tokenizer import END_OF_TURN, train_tokenizer

WORDS = "def count(x):\n    return x + 7\n<think>\n</think>\n```python\n\\boxed{}<tool: python>\n"


def small_tokenizer():
    return train_tokenizer([WORDS] * 50 + [*map(str, range(500))], 576)


def turn(tokenizer, text, *, end=True):
    ids = tokenizer.encode(text)
    return [*ids, tokenizer.special_tokens[END_OF_TURN]] if end else ids


def fenced(code):
    return f"so\n</think>\nHere it is:\n```python\n{code}\n```\n"


def task(**data):
    return Task(name="t", data={"problem": "Add two numbers.", **data})
