r"""Answers in LaTeX, tidied: what changes only the look is removed, and one spelling is left."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty "}
    | {"≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "∈": r"\in ", "°": r"\degree ", "\xa0": " "}
)
# In this order: (pattern, replacement).
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[()]|\\\[|\\\]|(?<!\\)\$", " "),  # delimiters of formulas
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z])\.?", ""),
        (r",\s*\\!\s*|\{,\}|(?<=\d)\\[,!]\s*(?=\d{3}(?!\d))", ""),  # within one number
        (r"\\!", ""),
        (r"(?<!\\)\\(?:[,;:> ]|q?quad(?![a-zA-Z]))|~", " "),
        (r"\\(?:d|t|c)frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:mbox|textrm|textnormal|mathrm|operatorname|textit)\s*(?=\{)", r"\\text"),
        (r"\\(?:mathbf|boldsymbol|textbf|bm)\s*(?=\{\\text)", ""),
        (r"\\(?:mathbf|boldsymbol|textbf|bm)\s*(?=\{)", r"\\text"),
        (r"\^\s*\{?\s*\\circ(?![a-zA-Z])\s*\}?|\\degree(?![a-zA-Z])", r"\\text{degree}"),
        (r"\\(?:cdot|times)(?![a-zA-Z])", "*"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\(leq|geq|neq)(?![a-zA-Z])", lambda found: f"\\{found[1][:2]} "),
        (r"\\(?:lbrace)(?![a-zA-Z])", r"\\{"),
        (r"\\(?:rbrace)(?![a-zA-Z])", r"\\}"),
        (r"\\%", "%"),
        (r"\\text\s*\{\s*(or|and)\s*\}", ","),
        (r"\\frac\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9a-zA-Z])\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9a-zA-Z])", r"\1{\2}"),
        (r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"([_^])\s*\{\s*([0-9a-zA-Z])\s*\}", r"\1\2"),
        (r"\s+", " "),
        (r"\s*([-+*/^_=<>(){}\[\],:;|%!&])\s*", r"\1"),
    )
)
_OPENING, _CLOSING = "([{", ")]}"


def tidy(text: str) -> str:
    """One spelling of an answer; what it means is not looked at."""
    text = text.translate(_SIGNS)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".").strip()


def depth(text: str) -> int:
    """How deep brackets of any kind lie in each other."""
    deepest = now = 0
    for letter in text:
        now += (letter in _OPENING) - (letter in _CLOSING)
        deepest = max(deepest, now)
    return deepest


def split(text: str, separators: Sequence[str]) -> list[str]:
    """The parts between separators that lie in no brackets; an interval's ends may differ."""
    parts, start, level, at = [], 0, 0, 0
    while at < len(text):
        found = None if level else next((s for s in separators if text.startswith(s, at)), None)
        if found:
            parts.append(text[start:at].strip())
            at = start = at + len(found)
            continue
        level += (text[at] in _OPENING) - (text[at] in _CLOSING)
        at += 1
    return [*parts, text[start:].strip()]


def enclosed(text: str) -> tuple[str, str, str] | None:
    r"""(opening, content, closing) if one pair of brackets holds all of it; ``\{`` is one, too."""
    opening = r"\{" if text.startswith(r"\{") else text[:1]
    closing = r"\}" if text.endswith(r"\}") else text[-1:]
    if opening not in ("(", "[", "{", r"\{") or closing not in (")", "]", "}", r"\}"):
        return None
    if ("{" in opening) != ("}" in closing) or len(opening) != len(closing) or len(text) < 2:
        return None
    level = 0
    for at, letter in enumerate(text):
        level += (letter in _OPENING) - (letter in _CLOSING)
        if not level and letter in _CLOSING:
            content = text[len(opening) : len(text) - len(closing)]
            return (opening, content.strip(), closing) if at == len(text) - 1 else None
    return None
