r"""Answers in LaTeX spelt otherwise, and spoilt: what a comparer has to call equal, and what not.

Each rule takes a gold answer and gives what it is made into, or None where it does not apply. They
are the committed lists behind `python -m benchmarks.grader_checks`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from cwm_jax.rl.envs.math.exact import MalformedError, Number, number_of
from cwm_jax.rl.envs.math.latex import enclosed, split, tidy

Rule = Callable[[str], str | None]

_WHOLE = re.compile(r"-?\d+")
_FRACTION = re.compile(r"\\frac\{(-?\d+)\}\{(\d+)\}")
_POWERED = re.compile(r"\\frac\{-?\d+\}\{\d+\}\^")
_INTEGER = re.compile(r"(?<![\d._\\a-zA-Z{^])\d+(?![\d.}])")
_UNIT = re.compile(r"(.*\d)\s*\\(?:text|mbox)\s*\{\s*([a-z]+)\s*\}(\^\d)?", re.DOTALL)
_DEGREES = re.compile(r"(-?\d+)\^\\circ")
_DOLLARS = re.compile(r"\\\$(\d+(?:\.\d+)?)")
_CHOICE = re.compile(r"\\text\{\(([A-Z])\)\}")
_BASED = re.compile(r"(\d+)_(?:(\d)|\{(\d+)\})")
_SEPARATED = re.compile(r"\d{1,3}(?:,(?:\\!\s*)?\d{3})+")
_SYMBOLS = {r"\pi": "π", r"\infty": "∞", r"\cup": "∪", r"\in ": "∈ ", "-": "−"}
_OTHER_UNITS = {"cm": "m", "inches": "feet", "cents": "dollars"}


def rewrites(gold: str) -> Iterator[tuple[str, str]]:
    """(rule, spelling) of the rules that apply, each different from the gold answer."""
    yield "as it is", gold
    yield from _applied(REWRITES, gold)


def near_misses(gold: str) -> Iterator[tuple[str, str, str]]:
    """(rule, gold answer, answer that is wrong); some rules make a gold answer of their own."""
    for rule, wrong in _applied(NEAR_MISSES, gold):
        yield rule, gold, wrong
    if _WHOLE.fullmatch(gold):
        number = int(gold)
        for rule, pair in MADE_PAIRS.items():
            yield rule, *pair(number)


def _applied(rules: dict[str, Rule], gold: str) -> Iterator[tuple[str, str]]:
    for name, rule in rules.items():
        made = rule(gold)
        if made is not None and made != gold:
            yield name, made


# ---------------------------------------------------------------- the same, spelt otherwise


def _replacing(old: str, new: str) -> Rule:
    return lambda gold: gold.replace(old, new) if old in gold else None


def _substituting(pattern: str, new: str | Callable[[re.Match[str]], str]) -> Rule:
    compiled = re.compile(pattern)
    return lambda gold: compiled.sub(new, gold) if compiled.search(gold) else None


def _around(before: str, after: str) -> Rule:
    return lambda gold: f"{before}{gold}{after}"


def _with_sides(gold: str) -> str | None:
    """Brackets of lists that grow with what they hold."""
    found = enclosed(tidy(gold))
    if not found or found[0] not in "([" or r"\left" in gold:
        return None
    return rf"\left{found[0]}{found[1]}\right{found[2]}"


def _without_sides(gold: str) -> str | None:
    return re.sub(r"\\(left|right)\s*", "", gold) if r"\left" in gold else None


def _named(gold: str) -> str | None:
    return None if "=" in gold or r"\in" in gold or r"\text" in gold else f"k = {gold}"


def _unnamed(gold: str) -> str | None:
    name, mark, value = gold.partition("=")
    return value.strip() if mark and name.strip().isalpha() and len(name.strip()) == 1 else None


def _grouped(gold: str, separator: str) -> str | None:
    if not _WHOLE.fullmatch(gold) or len(gold.lstrip("-")) < 4:
        return None
    return f"{int(gold):,}".replace(",", separator)


def _ungrouped(gold: str) -> str | None:
    return re.sub(r"\D", "", gold) if _SEPARATED.fullmatch(gold) else None


def _rational(gold: str) -> Fraction | None:
    number = _number(gold)
    return None if number is None or r"\$" in gold else number.value


def _number(gold: str) -> Number | None:
    try:
        return number_of(tidy(gold))
    except MalformedError:
        return None


def _decimal(gold: str) -> str | None:
    """A fraction that ends, as a decimal."""
    value = _rational(gold)
    if value is None or r"\frac" not in gold or 10**6 % value.denominator:
        return None
    return f"{float(value):.6f}".rstrip("0")


def _with_zero(gold: str) -> str | None:
    return f"{gold}.0" if _WHOLE.fullmatch(gold) else None


def _as_quotient(gold: str) -> str | None:
    value = _rational(gold)
    if value is None or r"\frac" not in gold:
        return None
    return f"{value.numerator}/{value.denominator}"


def _unreduced(gold: str) -> str | None:
    value = _rational(gold)
    if value is None or r"\frac" not in gold:
        return None
    return rf"\frac{{{2 * value.numerator}}}{{{2 * value.denominator}}}"


def _sign_above(gold: str) -> str | None:
    found = re.fullmatch(r"-\\frac\{(\d+)\}\{(\d+)\}", gold)
    return rf"\frac{{-{found[1]}}}{{{found[2]}}}" if found else None


def _mixed(gold: str) -> str | None:
    value = _rational(gold)
    if value is None or r"\frac" not in gold or value.numerator < value.denominator:
        return None
    whole, rest = divmod(value.numerator, value.denominator)
    return rf"{whole}\frac{{{rest}}}{{{value.denominator}}}" if rest else None


def _reversed_sum(gold: str) -> str | None:
    """The terms of a sum of letters in the opposite order."""
    if re.search(r"[\[\](){},=\\]", gold) or not re.search(r"[a-zA-Z]", gold):
        return None
    text = gold.replace(" ", "")
    terms = re.findall(r"[+-]?[^+-]+", text)
    if len(terms) < 2:
        return None
    joined = "".join(t if t[0] in "+-" else f"+{t}" for t in reversed(terms))
    return joined.removeprefix("+")


def _with_dot(gold: str) -> str | None:
    found = re.sub(r"(\d)\s*(\\(?:pi|sqrt)(?![a-zA-Z]))", r"\1 \\cdot \2", gold)
    return found if found != gold else None


def _without_unit(gold: str) -> str | None:
    found = _UNIT.fullmatch(gold)
    return found[1].strip() if found else None


def _unit_in_words(gold: str) -> str | None:
    found = _UNIT.fullmatch(gold)
    if not found:
        return None
    square = "square " if found[3] == "^2" else ""
    return rf"{found[1].strip()} \text{{ {square}{found[2]}}}"


def _degrees(form: str) -> Rule:
    return lambda gold: _DEGREES.sub(form, gold) if _DEGREES.fullmatch(gold) else None


def _dollars(gold: str) -> str | None:
    found = _DOLLARS.fullmatch(gold)
    return found[1] if found else None


def _choice(form: str) -> Rule:
    return lambda gold: _CHOICE.sub(form, gold) if _CHOICE.fullmatch(gold) else None


def _other_base(gold: str) -> str | None:
    found = _BASED.fullmatch(gold)
    if not found:
        return None
    return f"{found[1]}_{{{found[2]}}}" if found[2] else f"{found[1]}_{found[3]}"


def _only_interval(gold: str) -> str | None:
    name, mark, interval = gold.partition(r"\in")
    return interval.strip() if mark and name.strip().isalpha() else None


def _with_signs(gold: str) -> str | None:
    made = gold
    for latex, sign in _SYMBOLS.items():
        made = re.sub(re.escape(latex) + r"(?![a-z])", sign, made)
    return made if made != gold else None


REWRITES: dict[str, Rule] = {
    "dollar signs": _around("$", "$"),
    "display brackets": _around(r"\[", r"\]"),
    "full stop": _around("", "."),
    "blanks around": _around(" ", r" \ "),
    "displaystyle": _around(r"\displaystyle ", ""),
    "thin space at the end": _around("", r"\,"),
    "dfrac": _replacing(r"\frac", r"\dfrac"),
    "tfrac": _replacing(r"\frac", r"\tfrac"),
    "no blanks": lambda g: None if re.search(r"\\[a-zA-Z]+ ", g) else g.replace(" ", ""),
    "blanks around signs": _substituting(r"(?<=[\w)}])\s*([+=])\s*", r" \1 "),
    "growing brackets": _with_sides,
    "plain brackets": _without_sides,
    "name before it": _named,
    "no name before it": _unnamed,
    "thousands by commas": lambda g: _grouped(g, ","),
    "thousands by braced commas": lambda g: _grouped(g, "{,}"),
    "thousands by thin spaces": lambda g: _grouped(g, r"\,"),
    "thousands by commas and backspaces": lambda g: _grouped(g, r",\!"),
    "no separators": _ungrouped,
    "as a decimal": _decimal,
    "zero after the point": _with_zero,
    "zero before the point": _substituting(r"(?<!\d)\.(?=\d)", "0."),
    "as a quotient": _as_quotient,
    "not reduced": _unreduced,
    "sign above the line": _sign_above,
    "mixed number": _mixed,
    "braces of fractions": _substituting(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
    "no braces of fractions": _substituting(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2"),
    "braces of roots": _substituting(r"\\sqrt\s*(\d)(?!\d)", r"\\sqrt{\1}"),
    "no braces of roots": _substituting(r"\\sqrt\{(\d)\}", r"\\sqrt\1"),
    "braces of powers": _substituting(r"\^(\d)(?!\d)", r"^{\1}"),
    "terms reversed": _reversed_sum,
    "times dot": _with_dot,
    "other brackets of a matrix": _replacing("pmatrix", "bmatrix"),
    "no unit": _without_unit,
    "unit in words": _unit_in_words,
    "text for mbox": _replacing(r"\mbox", r"\text"),
    "degrees in braces": _degrees(r"\1^{\\circ}"),
    "degrees by name": _degrees(r"\1\\degree"),
    "degrees in words": _degrees(r"\1 \\text{ degrees}"),
    "no degrees": _degrees(r"\1"),
    "no dollar": _dollars,
    "choice without brackets": _choice(r"\\text{\1}"),
    "choice without text": _choice(r"(\1)"),
    "bare choice": _choice(r"\1"),
    "other spelling of the base": _other_base,
    "no base": lambda g: _BASED.sub(r"\1", g) if _BASED.fullmatch(g) else None,
    "interval alone": _only_interval,
    "signs of Unicode": _with_signs,
    "textbf": _substituting(r"^\\text\{([a-z]+)\}$", r"\\textbf{\1}"),
    "bare word": _substituting(r"^\\text\{([a-z]+)\}$", r"\1"),
    "capital": _substituting(r"^\\text\{([a-z])", lambda m: rf"\text{{{m[1].upper()}"),
}


# ---------------------------------------------------------------- another answer


def _bumped(by: int) -> Rule:
    def rule(gold: str) -> str | None:
        """The last whole number that is no power, index or part of a decimal."""
        found = [*_INTEGER.finditer(gold)]
        if not found:
            return None
        at = found[-1]
        return f"{gold[: at.start()]}{int(at[0]) + by}{gold[at.end() :]}"

    return rule


def _negated(gold: str) -> str | None:
    value = _rational(gold)
    if not value or "_" in gold:
        return None
    return gold[1:] if gold.startswith("-") else f"-{gold}"


def _swapped(gold: str) -> str | None:
    """The first two parts of a tuple, an interval or a list."""
    found = enclosed(tidy(gold))
    opening, content, closing = found if found and found[0] in "([" else ("", tidy(gold), "")
    parts = split(content, [","])
    if len(parts) < 2 or parts[0] == parts[1] or _SEPARATED.fullmatch(gold) or r"\cup" in gold:
        return None
    return f"{opening}{','.join([parts[1], parts[0], *parts[2:]])}{closing}"


def _other_bracket(gold: str) -> str | None:
    found = enclosed(tidy(gold))
    if not found or found[0] not in "([" or len(split(found[1], [","])) != 2:
        return None
    return f"{'[' if found[0] == '(' else '('}{found[1]}{found[2]}"


def _inverted(gold: str) -> str | None:
    found = _FRACTION.fullmatch(gold)
    if not found or abs(int(found[1])) in (0, int(found[2])):
        return None
    return rf"\frac{{{found[2]}}}{{{found[1]}}}"


def _numerator(by: int) -> Rule:
    def rule(gold: str) -> str | None:
        found = _FRACTION.search(gold)
        if not found or _POWERED.search(gold):
            return None
        return _FRACTION.sub(rf"\\frac{{{int(found[1]) + by}}}{{\2}}", gold, count=1)

    return rule


def _turned_digits(gold: str) -> str | None:
    if not re.fullmatch(r"-?\d{2,}", gold) or gold[-1] == gold[-2]:
        return None
    return f"{gold[:-2]}{gold[-1]}{gold[-2]}"


def _tenfold(gold: str) -> str | None:
    return f"{gold}0" if _WHOLE.fullmatch(gold) and gold != "0" else None


def _percent(gold: str) -> str | None:
    return rf"{gold}\%" if _WHOLE.fullmatch(gold) and gold != "0" else None


def _nearly(gold: str) -> str | None:
    """A decimal, off by a ten-thousandth of it."""
    number = _number(gold)
    if number is None or not number.is_decimal or r"\$" in gold:
        return None
    return f"{float(number.value) * 1.0001:.9f}"


def _other_unit(gold: str) -> str | None:
    found = _UNIT.fullmatch(gold)
    if not found or found[2] not in _OTHER_UNITS:
        return None
    return rf"{found[1]} \text{{ {_OTHER_UNITS[found[2]]}}}{found[3] or ''}"


def _other_dimension(gold: str) -> str | None:
    found = _UNIT.fullmatch(gold)
    return rf"{found[1]} \text{{ {found[2]}}}^3" if found and found[3] == "^2" else None


def _without_factor(gold: str) -> str | None:
    found = re.fullmatch(r"(-?\d+)\s*(\\(?:pi|sqrt\s*\{?\d+\}?))", gold)
    return found[1] if found else None


def _one_more(gold: str) -> str | None:
    return f"{gold}, {int(gold) + 1}" if _WHOLE.fullmatch(gold) else None


def _a_choice_of(gold: str) -> str | None:
    return rf"{gold} \text{{ or }} {int(gold) + 1}" if _WHOLE.fullmatch(gold) else None


def _one_less(gold: str) -> str | None:
    found = enclosed(tidy(gold))
    parts = split(found[1] if found and found[0] in "([" else tidy(gold), [","])
    return parts[0] if len(parts) > 1 and not _SEPARATED.fullmatch(gold) else None


def _other_choice(gold: str) -> str | None:
    found = _CHOICE.fullmatch(gold)
    return rf"\text{{({chr(ord(found[1]) + 1)})}}" if found else None


def _other_word(gold: str) -> str | None:
    return r"\text{west}" if gold == r"\text{east}" else None


def _other_digits_of_base(gold: str) -> str | None:
    found = _BASED.fullmatch(gold)
    if not found:
        return None
    return f"{int(found[1]) + 1}_{{{found[2] or found[3]}}}"


def _other_base_number(gold: str) -> str | None:
    found = _BASED.fullmatch(gold)
    return f"{found[1]}_{{{int(found[2] or found[3]) + 1}}}" if found else None


def _other_sign_within(gold: str) -> str | None:
    """The last sign between two terms, turned."""
    if re.search(r"[\[\](){},]", gold.replace(r"\frac{", "")):
        return None
    at = max(gold.rfind("+", 1), gold.rfind("-", 1))
    if at < 1 or not gold[:at].strip():
        return None
    return f"{gold[:at]}{'-' if gold[at] == '+' else '+'}{gold[at + 1 :]}"


def _power(gold: str) -> str | None:
    found = re.search(r"([a-zA-Z])\^(\d)(?!\d)", gold)
    if not found:
        return None
    return f"{gold[: found.start()]}{found[1]}^{int(found[2]) + 1}{gold[found.end() :]}"


NEAR_MISSES: dict[str, Rule] = {
    "one more": _bumped(1),
    "one less": _bumped(-1),
    "sign": _negated,
    "parts swapped": _swapped,
    "bracket": _other_bracket,
    "inverted": _inverted,
    "numerator one more": _numerator(1),
    "last digits turned": _turned_digits,
    "tenfold": _tenfold,
    "percent": _percent,
    "a ten-thousandth more": _nearly,
    "unit": _other_unit,
    "dimension": _other_dimension,
    "factor left out": _without_factor,
    "one value more": _one_more,
    "a choice of two": _a_choice_of,
    "first value alone": _one_less,
    "next choice": _other_choice,
    "another word": _other_word,
    "digits in a base": _other_digits_of_base,
    "another base": _other_base_number,
    "sign within": _other_sign_within,
    "power": _power,
}
# Of a whole number n: a gold answer with six digits or a unit, and one beside it.
MADE_PAIRS: dict[str, Callable[[int], tuple[str, str]]] = {
    "six digits, one more": lambda n: (str(100_000 + abs(n)), str(100_001 + abs(n))),
    "six digits after the point": lambda n: (
        f"1.{abs(n) % 1000:03d}001",
        f"1.{abs(n) % 1000:03d}011",
    ),
    "cm for m": lambda n: (rf"{n} \text{{ m}}", rf"{n} \text{{ cm}}"),
    "tuple swapped": lambda n: (f"({n}, {n + 1})", f"({n + 1}, {n})"),
    "open for closed": lambda n: (f"[{n}, {n + 1}]", f"({n}, {n + 1}]"),
    "tuple for interval": lambda n: (f"[{n}, {n + 1})", f"({n}, {n + 1})"),
}
