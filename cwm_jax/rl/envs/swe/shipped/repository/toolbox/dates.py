"""Days, months and durations, without time zones."""

import re

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def is_leap(year):
    """Whether the year has a 29th of February."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def days_in_month(year, month):
    """28 to 31."""
    if not 1 <= month <= 12:
        raise ValueError("months are 1 to 12")
    if month == 2:
        return 29 if is_leap(year) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def add_months(date, count):
    """The date ``(year, month, day)`` so many months later; a day too late becomes the last one."""
    year, month, day = date
    months = year * 12 + (month - 1) + count
    year, month = months // 12, months % 12 + 1
    return year, month, min(day, days_in_month(year, month))


def parse_duration(text):
    """Seconds of a text like ``1d 2h`` or ``-90m``; the units are d, h, m and s, each once."""
    text = text.strip()
    negative = text.startswith("-")
    if negative:
        text = text[1:]
    parts = re.findall(r"(\d+)\s*([dhms])", text)
    rest = re.sub(r"(\d+)\s*([dhms])", "", text)
    units = [unit for _, unit in parts]
    if not parts or rest.strip() or len(set(units)) < len(units):
        raise ValueError(f"no duration: {text!r}")
    total = sum(int(number) * _SECONDS[unit] for number, unit in parts)
    return -total if negative else total


def format_duration(seconds):
    """The shortest text that `parse_duration` reads as so many seconds."""
    if seconds == 0:
        return "0s"
    sign = "-" if seconds < 0 else ""
    left, parts = abs(seconds), []
    for unit, size in _SECONDS.items():
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number}{unit}")
    return sign + " ".join(parts)
