"""Words and lines."""

import re
import unicodedata


def wrap(text, width):
    """Lines of whole words, each at most ``width`` long; a longer word is cut."""
    if width < 1:
        raise ValueError("width must be at least 1")
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) <= width:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        while len(word) > width:
            lines.append(word[:width])
            word = word[width:]
        line = word
    if line:
        lines.append(line)
    return lines


def slug(title, longest=40):
    """The title as a part of an address: lower case, words joined by dashes, whole words only."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    words = re.findall(r"[a-z0-9]+", plain.lower())
    result = ""
    for word in words:
        longer = f"{result}-{word}" if result else word
        if len(longer) > longest:
            break
        result = longer
    return result


def distance(a, b):
    """How many characters must be inserted, removed or replaced to turn ``a`` into ``b``."""
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        current = [i]
        for j, right in enumerate(b, start=1):
            removed = previous[j] + 1
            inserted = current[j - 1] + 1
            replaced = previous[j - 1] + (left != right)
            current.append(min(removed, inserted, replaced))
        previous = current
    return previous[-1]


def common_prefix(words):
    """The longest text that all words begin with."""
    if not words:
        return ""
    first, last = min(words), max(words)
    for index, letter in enumerate(first):
        if last[index] != letter:
            return first[:index]
    return first


def abbreviate(text, width, mark="..."):
    """The text, or its two ends around the mark where it is longer than ``width``."""
    if len(text) <= width:
        return text
    room = width - len(mark)
    if room < 2:
        return text[:width]
    tail = room // 2
    head = room - tail
    return text[:head] + mark + text[len(text) - tail :]
