"""The tools edit and create as functions on text.

Other than in Meta's tools, the search text is of whole lines at its end, too; an empty replacement
removes lines and leaves none in their place; a file keeps its kind of line ends; and what create
writes ends with a line end.
"""

from __future__ import annotations

import dataclasses

_SEARCH, _BETWEEN, _REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
_CONTEXT_LINES = 8  # of a snippet, on either side. Source: Meta's tool
_MOST_LISTED = 20  # assumed: line numbers in a message


class ToolError(ValueError):
    """A tool cannot do what it is asked; the text is for the policy to read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit:
    """Lines of a file, without their ends, that are to be replaced."""

    path: str
    search: tuple[str, ...]
    replace: tuple[str, ...]


def parse_edit(content: str) -> Edit:
    """Reads the content of a call of edit.

    Raises:
        ToolError: it is not one path and one block.
    """
    path, *lines = content.split("\n")
    if not path.strip() or path.strip() == _SEARCH:
        raise ToolError("No path: the first line of an edit names the file. Put it there.")
    while lines and not lines[-1].strip():
        del lines[-1]
    places = [[n for n, line in enumerate(lines) if line == mark] for mark in _marks()]
    if len(places[0]) > 1 or len(places[2]) > 1:
        raise ToolError("More than one block: an edit replaces one. Make one call for each.")
    if len(places[1]) > 1:
        raise ToolError(
            f"More than one line is `{_BETWEEN}`, so it is not clear where the replacement begins. "
            "Leave such lines out of the block, or change the file with bash."
        )
    if places != [[0], places[1], [len(lines) - 1]] or not places[1]:
        raise ToolError(
            "The edit cannot be read. After the path it is the line "
            f"`{_SEARCH}`, the lines to find, `{_BETWEEN}`, the lines to put in their place, and "
            f"`{_REPLACE}`, with nothing before or after."
        )
    middle = places[1][0]
    edit = Edit(
        path=path.strip(), search=tuple(lines[1:middle]), replace=tuple(lines[middle + 1 : -1])
    )
    if not any(line.strip() for line in edit.search):
        raise ToolError("The search text is empty. Give the lines to find, whole and verbatim.")
    if edit.search == edit.replace:
        raise ToolError(
            "Search text and replacement are the same, so nothing would change. Check what you "
            "meant to replace."
        )
    return edit


def apply_edit(text: str, edit: Edit) -> tuple[str, str]:
    """(the file's text afterwards, what the policy is told).

    Raises:
        ToolError: the search text is not there, or more than once.
    """
    ends = text.endswith("\n")
    lines = text.removesuffix("\n").split("\n")
    bare = [line.removesuffix("\r") for line in lines]
    length = len(edit.search)
    places = [
        n for n in range(len(bare) - length + 1) if tuple(bare[n : n + length]) == edit.search
    ]
    if not places:
        raise ToolError(_not_found(bare, edit))
    if len(places) > 1:
        numbers = _numbers(places)
        raise ToolError(
            f"The search text is in {edit.path} {len(places)} times, from lines {numbers}. Add "
            "lines around it until it is there once."
        )
    start = places[0]
    end = "\r" if lines[start].endswith("\r") else ""
    replaced = [line + end for line in edit.replace]
    after = [*lines[:start], *replaced, *lines[start + length :]]
    return "\n".join(after) + ("\n" if ends and after else ""), _edited(after, start, edit)


def parse_create(content: str) -> tuple[str, str]:
    """(path, text of the file) of a call of create.

    Raises:
        ToolError: there is no path.
    """
    path, _, text = content.partition("\n")
    if not path.strip():
        raise ToolError("No path: the first line of a create names the new file. Put it there.")
    return path.strip(), text + "\n" if text and not text.endswith("\n") else text


def created(path: str, text: str) -> str:
    """What the policy is told of a file that was made."""
    return f"Created {path} with {_count(text.count(chr(10)))}."


def _marks() -> tuple[str, str, str]:
    return _SEARCH, _BETWEEN, _REPLACE


def _not_found(bare: list[str], edit: Edit) -> str:
    message = f"The search text is not in {edit.path}. It has to be whole lines, verbatim."
    first = edit.search[0]
    alike = [n for n, line in enumerate(bare) if line.strip() == first.strip() and first.strip()]
    exact = [n for n in alike if bare[n] == first]
    if exact:
        message += f" Its first line is line {_numbers(exact)}; a later one differs."
    elif alike:
        message += (
            f" Its first line with another indentation is line {_numbers(alike)}: copy the "
            "indentation exactly."
        )
    else:
        message += " Read the file again before the next edit."
    return message


def _edited(after: list[str], start: int, edit: Edit) -> str:
    first = max(0, start - _CONTEXT_LINES)
    last = min(len(after), start + len(edit.replace) + _CONTEXT_LINES)
    snippet = "\n".join(f"{n + 1:6}\t{after[n].removesuffix(chr(13))}" for n in range(first, last))
    done = f"replaced by {_count(len(edit.replace))}" if edit.replace else "removed"
    return (
        f"Edited {edit.path}: {_count(len(edit.search))} at line {start + 1} {done}; the file has "
        f"{_count(len(after))} now.\n{snippet}"
    )


def _numbers(places: list[int]) -> str:
    shown = ", ".join(str(n + 1) for n in places[:_MOST_LISTED])
    return shown + (", ..." if len(places) > _MOST_LISTED else "")


def _count(number: int) -> str:
    return f"{number} line" if number == 1 else f"{number} lines"
