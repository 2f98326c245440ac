"""Small languages: sums, records and settings."""

import re


def tokens(text):
    """Numbers as int or float, and the signs + - * / ( ) of a sum."""
    found, position = [], 0
    pattern = re.compile(r"\s*(?:(\d+\.\d+)|(\d+)|([-+*/()]))")
    text = text.rstrip()
    while position < len(text):
        match = pattern.match(text, position)
        if match is None:
            raise ValueError(f"unknown sign at {position}")
        fraction, whole, sign = match.groups()
        if fraction:
            found.append(float(fraction))
        elif whole:
            found.append(int(whole))
        else:
            found.append(sign)
        position = match.end()
    return found


def evaluate(text):
    """The value of a sum with brackets; times and divided bind closer than plus and minus."""
    pending = tokens(text)
    value = _sum(pending)
    if pending:
        raise ValueError(f"unexpected {pending[0]!r}")
    return value


def split_record(line, separator=","):
    """The fields of a line; in double quotes a field has separators, and ``""`` is a quote."""
    fields, field, quoted, index = [], "", False, 0
    while index < len(line):
        letter = line[index]
        if quoted and letter == '"' and line[index + 1 : index + 2] == '"':
            field += '"'
            index += 1
        elif letter == '"':
            quoted = not quoted
        elif letter == separator and not quoted:
            fields.append(field)
            field = ""
        else:
            field += letter
        index += 1
    if quoted:
        raise ValueError("a quote is not closed")
    return [*fields, field]


def settings(text):
    """``{section: {name: value}}``; ``#`` begins a comment, the part before any section is ""."""
    found, section = {"": {}}, ""
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
            found.setdefault(section, {})
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"line {number} is neither a section nor a setting")
        found[section][name.strip()] = value.strip()
    return found


def _sum(pending):
    value = _product(pending)
    while pending and pending[0] in ("+", "-"):
        sign = pending.pop(0)
        other = _product(pending)
        value = value + other if sign == "+" else value - other
    return value


def _product(pending):
    value = _factor(pending)
    while pending and pending[0] in ("*", "/"):
        sign = pending.pop(0)
        other = _factor(pending)
        value = value * other if sign == "*" else value / other
    return value


def _factor(pending):
    if not pending:
        raise ValueError("the sum ends too early")
    token = pending.pop(0)
    if token == "-":
        return -_factor(pending)
    if token == "(":
        value = _sum(pending)
        if not pending or pending.pop(0) != ")":
            raise ValueError("a bracket is not closed")
        return value
    if isinstance(token, str):
        raise ValueError(f"unexpected {token!r}")
    return token
