r"""Whether an answer is the gold answer: yes, no, or a matter of algebra, which others decide.

Numbers are fractions and have to be equal. Where the gold answer is itself written as a decimal
with a fraction, a relative tolerance holds. A percentage is hundredths: 50\% is 1/2, not 50. Tuples
and intervals have their order and their brackets, sets have neither, lists without brackets keep
their order unless the task says otherwise. An answer that names several values is none of them.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from cwm_jax.rl.envs.math.exact import MalformedError, Number, number_of
from cwm_jax.rl.envs.math.latex import depth, enclosed, split, tidy
from cwm_jax.rl.envs.math.units import split_unit

_TOLERANCE = Fraction(1, 10**6)  # assumed; only for gold answers that are decimals
# Assumed: longer or deeper answers are refused before anything is parsed.
_MAX_CHARACTERS, _MAX_DEPTH = 5_000, 40
_NAME = re.compile(r"(?:\\?[a-zA-Z]+(?:_\w|_\{\w+\})?|[a-zA-Z]\([a-zA-Z,]+\))")
_MATRIX = re.compile(
    r"\\begin\{([a-zA-Z]*matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL
)
_BASED = re.compile(r"(-?[0-9A-Za-z]+)_(\d|\{\d+\})")  # a number and its base
_NAME_OF_SOMEBODY = re.compile(r"[A-Z]?[a-z]{3,}")  # math-verify sees a product of letters
_INEQUALITIES = ("<", ">", r"\le", r"\ge", r"\lt", r"\gt")
_WORDS = re.compile(r"\\text\s*\{([^{}]*)\}")
# What joins several values, or makes a statement of one; math-verify reads past some of them.
_JOINING = re.compile(
    r"[<>|:;?]|\\(?:le|ge|ne|lt|gt|approx|equiv|sim|simeq|cong|to|in|cup|cap|vee|wedge|lor|land|mid|"
    r"quad|neg|implies|rightarrow|Rightarrow|leftrightarrow|Leftrightarrow|pm|mp|not|backslash)"
    r"(?![a-zA-Z])|\\\\|&|\b(?:or|and|not)\b"
)


class Comparison(enum.Enum):
    """What comparing came to."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


Decide = Callable[[str, str], bool | None]
"""Of the gold answer and the answer, both scalars: whether they are equal; None: not known."""


@dataclasses.dataclass(frozen=True)
class _List:
    """Several values; without brackets both of them are empty."""

    opening: str
    parts: list[str]
    closing: str

    @property
    def is_set(self) -> bool:
        return self.opening in (r"\{", r"\cup")


def compare(
    gold: str, answer: str, *, ordered: bool = True, decide: Decide = lambda gold, answer: None
) -> Comparison:
    """Compares two answers in LaTeX.

    Args:
        gold: of the task.
        answer: of the policy; what it puts into its box.
        ordered: whether a list without brackets has an order.
        decide: asked about two scalars that are not both rational numbers.
    """
    if is_refused(answer):
        return Comparison.DIFFERENT
    return _Comparer(ordered, decide).statements(tidy(gold), tidy(answer))


def is_refused(answer: str) -> bool:
    """Whether it is not looked at: it is too long or too deep."""
    return len(answer) > _MAX_CHARACTERS or depth(answer) > _MAX_DEPTH


def scalars(answer: str) -> list[str]:
    """What an answer's lists, matrices and names are made of, tidied; an equation is one."""
    _, values = _named(tidy(answer))
    return _scalars_of(values[0]) if len(values) == 1 else [" = ".join(values)]


class _Comparer:
    def __init__(self, ordered: bool, decide: Decide):
        self._ordered, self._decide = ordered, decide

    def statements(self, gold: str, answer: str) -> Comparison:
        """Names before ``=`` are left out; of a chain every part has to be the gold answer."""
        if gold == answer:
            return Comparison.SAME
        gold_name, golds = _named(gold)
        name, answers = _named(answer)
        if len(golds) > 1:  # an equation
            same = gold.replace(" ", "") == answer.replace(" ", "")
            if not same and "=" not in answer:
                return Comparison.DIFFERENT
            return Comparison.SAME if same else self._asked(gold, answer)
        if gold_name and name and gold_name != name:
            return Comparison.DIFFERENT
        return _all([self.values(golds[0], part) for part in answers])

    def values(self, gold: str, answer: str) -> Comparison:
        if _MATRIX.fullmatch(gold) or _MATRIX.fullmatch(answer):
            return self._matrices(gold, answer)
        golds, answers = _listed(gold), _listed(answer)
        if golds and answers:
            return self._lists(golds, answers)
        if golds or answers:
            return self._list_and_scalar(gold, answer)
        return self._scalars(_unwrapped(gold), _unwrapped(answer))

    def _list_and_scalar(self, gold: str, answer: str) -> Comparison:
        """One value against several: only what stands for two can be equal."""
        if r"\pm" in gold + answer and _number(gold) is None and _number(answer) is None:
            return self._asked(gold, answer)
        return Comparison.DIFFERENT

    def _matrices(self, gold: str, answer: str) -> Comparison:
        golds, answers = _cells(gold), _cells(answer)
        if [len(row) for row in golds] != [len(row) for row in answers]:
            return Comparison.DIFFERENT
        pairs = [
            pair for rows in zip(golds, answers, strict=True) for pair in zip(*rows, strict=True)
        ]
        return _all([self.values(a, b) for a, b in pairs])

    def _lists(self, gold: _List, answer: _List) -> Comparison:
        if not _same_brackets(gold, answer) or len(gold.parts) != len(answer.parts):
            return Comparison.DIFFERENT
        if gold.is_set or (not gold.opening and not self._ordered):
            return self._unordered(gold.parts, answer.parts)
        return _all([self.values(a, b) for a, b in zip(gold.parts, answer.parts, strict=True)])

    def _unordered(self, golds: Sequence[str], answers: Sequence[str]) -> Comparison:
        left, open_golds = list(answers), []
        for gold in golds:
            same = [a for a in left if self.values(gold, a) is Comparison.SAME]
            if same:
                left.remove(same[0])
            else:
                open_golds.append(gold)
        for gold in open_golds:
            if all(self.values(gold, a) is Comparison.DIFFERENT for a in left):
                return Comparison.DIFFERENT
        return Comparison.UNKNOWN if open_golds else Comparison.SAME

    def _scalars(self, gold: str, answer: str) -> Comparison:
        gold_words, words = _words(gold), _words(answer)
        if gold_words is not None:
            same = gold_words == (words if words is not None else _plain(answer))
            return Comparison.SAME if same else Comparison.DIFFERENT
        gold, gold_unit = split_unit(gold)
        answer, unit = split_unit(answer, letters=bool(gold_unit))
        if gold_unit and unit and gold_unit != unit:
            return Comparison.DIFFERENT
        gold, answer = (
            f"{text}%" if u == "percent" else text
            for text, u in ((gold, gold_unit), (answer, unit))
        )
        try:
            expected, found = _number(gold), number_of(answer)
        except MalformedError:
            return Comparison.DIFFERENT
        if expected and found:
            return _numbers(expected, found)
        if _plain(gold) == _plain(answer):
            return Comparison.SAME
        if _joining(answer) - _joining(gold) or _NAME_OF_SOMEBODY.fullmatch(gold):
            return Comparison.DIFFERENT
        if based := _BASED.fullmatch(gold):
            # The question names the base, too.
            return Comparison.SAME if answer == based[1] else Comparison.DIFFERENT
        return self._asked(gold, answer)

    def _asked(self, gold: str, answer: str) -> Comparison:
        equal = self._decide(gold, answer)
        if equal is None:
            return Comparison.UNKNOWN
        return Comparison.SAME if equal else Comparison.DIFFERENT


def _scalars_of(text: str) -> list[str]:
    parts = [cell for row in _cells(text) for cell in row]
    if not parts and (values := _listed(text)):
        parts = [] if values.parts == [""] else values.parts  # the empty set
    elif not parts:
        return [_unwrapped(text)]
    return [scalar for part in parts for scalar in _scalars_of(part)]


def _named(text: str) -> tuple[str, list[str]]:
    r"""(name before ``=`` or ``\in``, what it is equal to)."""
    name, belongs, rest = text.partition(r"\in")
    if belongs and _NAME.fullmatch(name.strip()) and not rest[:1].isalpha():
        return name.strip(), [rest.strip()]
    parts = split(text, ["="])
    if len(parts) > 1 and _NAME.fullmatch(parts[0]):
        return parts[0], parts[1:]
    return "", parts


def _listed(text: str) -> _List | None:
    """The values of a list, a tuple, an interval, a set or a union; None for a scalar."""
    if len(parts := split(text, [r"\cup"])) > 1:
        return _List(r"\cup", parts, "")
    is_number = "," in text and _is_thousands(text)
    if not is_number and len(parts := split(text, [",", ";"])) > 1:
        return _List("", parts, "")
    found = enclosed(text)
    if not found or found[0] == "{":
        return None
    opening, content, closing = found
    parts = split(content, [",", ";"])
    if len(parts) == 1 and opening in ("(", "["):
        return None
    return _List(opening, parts, closing)


def _is_thousands(text: str) -> bool:
    head = split_unit(text)[0].lstrip("+-")
    return bool(re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?%?", head))


def _same_brackets(gold: _List, answer: _List) -> bool:
    """A set's braces may be left out, or put around a list."""
    pair, other = (gold.opening, gold.closing), (answer.opening, answer.closing)
    loose = (("", ""), (r"\{", r"\}"))
    return pair == other or (pair in loose and other in loose)


def _cells(text: str) -> list[list[str]]:
    """Rows of a matrix; none of what is no matrix."""
    match = _MATRIX.fullmatch(text)
    rows = [row for row in match[2].split(r"\\") if row.strip()] if match else []
    return [[cell.strip() for cell in row.split("&")] for row in rows]


def _unwrapped(text: str) -> str:
    """Without brackets around all of it."""
    while (found := enclosed(text)) and found[0] in ("(", "{"):
        text = found[1]
    return text


def _words(text: str) -> str | None:
    """What is words alone, or a choice like (C); None if it is something else."""
    if not (found := _WORDS.fullmatch(text)):
        return None
    return _plain(_unwrapped(found[1].strip()))


def _plain(text: str) -> str:
    bare = _WORDS.sub(r"\1", text)
    bare = bare.casefold() if bare.replace(" ", "").isalpha() and len(bare) > 1 else bare
    return re.sub(r"\s+", "", _unwrapped(bare.strip()))


def _joining(text: str) -> set[str]:
    found = set(_JOINING.findall(text))
    return {"<"} | found - {*_INEQUALITIES} if found & {*_INEQUALITIES} else found


def _number(text: str) -> Number | None:
    try:
        return number_of(text)
    except MalformedError:
        return None


def _numbers(gold: Number, answer: Number) -> Comparison:
    same = gold.value == answer.value
    if not same and gold.is_decimal:
        same = abs(gold.value - answer.value) <= _TOLERANCE * abs(gold.value)
    return Comparison.SAME if same else Comparison.DIFFERENT


def _all(found: Sequence[Comparison]) -> Comparison:
    for outcome in (Comparison.DIFFERENT, Comparison.UNKNOWN):
        if outcome in found:
            return outcome
    return Comparison.SAME
