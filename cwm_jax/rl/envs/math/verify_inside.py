"""Asks math-verify, in a sandbox: it hands what a policy wrote to sympy, whose parser evaluates it.

A self-contained file. Its own limits of time are signals, which work in no thread: they are off,
and the sandbox ends what takes too long. Stricter than its ``parse``: an expression is read as a
whole or not at all, for else the last number of ``1 \\cup 2`` would count.
"""

import dataclasses
import json
import logging

from latex2sympy2_extended import latex2sympy, normalize_latex
from math_verify import verify
from math_verify.parser import LatexExtractionConfig, should_treat_as_complex

logging.disable(logging.CRITICAL)  # it warns that it has no limit of time
# Ours, like everything in an answer, stands without a box of its own.
NORMALIZATION = dataclasses.replace(LatexExtractionConfig().normalization_config, boxed="none")


def handle(request):
    """For each pair of gold answer and answer whether they are equal."""
    return json.dumps([is_same(gold, answer) for gold, answer in json.loads(request)]).encode()


def is_same(gold, answer):
    expected, found = parsed(gold), parsed(answer)
    if expected is None or found is None:
        return False
    return bool(verify(expected, found, timeout_seconds=None))


def parsed(text):
    """The expression; None if it is none."""
    text = normalize_latex(text, config=NORMALIZATION)
    is_real = not should_treat_as_complex(text)
    try:
        return latex2sympy(text, is_real=is_real, convert_degrees=False, normalization_config=None)
    except Exception:  # whatever a parser made by a tool raises
        return None
