"""Unified diffs: read, applied to files in memory, and compared with each other.

What is submitted is untrusted text: nothing here writes a file or starts a program.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

ENCODING = dict(encoding="utf-8", errors="surrogateescape")  # any bytes survive the way and back

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_NO_LINE_END = "\\"  # begins the line "\ No newline at end of file"
_NO_LINE_END_TEXT = "\\ No newline at end of file\n"
_OTHER_KINDS = ("120000", "160000")  # modes of links and submodules
# Pieces of one text times those of the other. Measured: 10,000 characters against as many spaces
# take 13 s, 5,000 take 0.6 s, and who submits can choose the worst.
_MOST_COMPARED = 25_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hunk:
    """A stretch of lines.

    Attributes:
        header: its first line.
        start: number of the first old line; of the one before it where there are none.
        old, new: lines with their ends, before and after.
        text: as it was written, header included.
    """

    header: str
    start: int
    old: tuple[str, ...]
    new: tuple[str, ...]
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilePatch:
    """What happens to one file; ``old`` is None for a new one, ``new`` for one that is removed."""

    old: str | None
    new: str | None
    hunks: tuple[Hunk, ...]
    binary: bool = False

    @property
    def path(self) -> str:
        """The file's name, afterwards if it still has one."""
        path = self.new if self.new is not None else self.old
        assert path is not None
        return path

    @property
    def text(self) -> str:
        """What is compared with another patch of the file."""
        renamed = self.old is not None and self.new is not None and self.old != self.new
        header = f"rename from {self.old}\nrename to {self.new}\n" if renamed else ""
        return header + "".join(hunk.text for hunk in self.hunks)


def parse_patch(text: str) -> list[FilePatch]:
    """Reads a diff of git, or of ``diff -u``, one entry for each file.

    Raises:
        ValueError: with the line where it is none, or for a file outside of the repository.
    """
    reader = _Reader(text)
    patches = []
    while reader.more():
        if reader.line().startswith(("diff ", "--- ")):
            patches.append(_file(reader))
        else:  # what people write around a patch
            reader.next()
    paths = [patch.path for patch in patches]
    if len(set(paths)) < len(paths):
        raise ValueError("the patch names a file twice; expected each once: make one diff of all")
    return patches


def diff_of_file(path: str, before: str, after: str) -> str:
    """A patch as git writes it, of a file that is there before and after; empty if it is equal."""
    if before == after:
        return ""
    old, new = (re.findall(r"[^\n]*\n|[^\n]+\Z", text) for text in (before, after))
    lines = difflib.unified_diff(old, new, f"a/{path}", f"b/{path}")
    ended = (line if line.endswith("\n") else f"{line}\n{_NO_LINE_END_TEXT}" for line in lines)
    return f"diff --git a/{path} b/{path}\n" + "".join(ended)


def apply_patch(
    patches: Iterable[FilePatch], read: Callable[[str], bytes | None]
) -> dict[str, bytes | None]:
    """The files afterwards by path; None is one that is gone.

    A hunk goes where its header says or, if its old lines are not there, to the nearest place that
    has them, as with ``git apply``; its context has to be right.

    Args:
        patches: of one diff.
        read: gives a file's content before, None where there is no such file.

    Raises:
        ValueError: a hunk has no place, a file is missing or in the way, or it is binary.
    """
    gone: dict[str, bytes | None] = {}
    made: dict[str, bytes | None] = {}
    for patch in patches:
        if patch.binary:
            raise ValueError(f"{patch.path}: binary patches are not applied; submit text")
        content = _content_before(patch, read)
        if patch.old is not None and patch.old != patch.new:
            gone[patch.old] = None
        if patch.new is not None:
            made[patch.new] = _apply(patch, content.decode(**ENCODING)).encode(**ENCODING)
    return {**gone, **made}  # what one moves away another may make anew


def similarity(submitted: Sequence[FilePatch], gold: Sequence[FilePatch]) -> float:
    """0 to 1: how much alike two patches are, over the files of ``gold`` alone.

    For each of these the ratio of difflib (without its junk rule) of all hunks' texts, 0 where
    ``submitted`` leaves the file alone; then the mean. Source: Meta's reward. Other than there,
    texts of more than about 5,000 characters are compared by words, still longer ones by lines:
    comparing their characters can take minutes.
    """
    gold = [patch for patch in gold if not patch.binary]
    if not gold:
        return 0.0
    ours = {patch.path: patch.text for patch in submitted if not patch.binary}
    return sum(_ratio(ours.get(patch.path, ""), patch.text) for patch in gold) / len(gold)


def _ratio(a: str, b: str) -> float:
    if not a:
        return 0.0
    if a == b:
        return 1.0
    for cut in (list, re.compile(r"\w+|\W").findall, str.splitlines):
        pieces = cut(a), cut(b)
        if len(pieces[0]) * len(pieces[1]) <= _MOST_COMPARED:
            return difflib.SequenceMatcher(None, *pieces, autojunk=False).ratio()
    return 0.0


class _Reader:
    def __init__(self, text: str):
        self._lines = text.split("\n")
        if self._lines[-1] == "":
            del self._lines[-1]
        self.number = 0

    def more(self) -> bool:
        return self.number < len(self._lines)

    def line(self) -> str:
        return self._lines[self.number] if self.more() else ""

    def next(self) -> str:
        self.number += 1
        return self._lines[self.number - 1]

    def error(self, what: str) -> ValueError:
        return ValueError(
            f"line {self.number + 1} of the patch: {what}; expected a unified diff as `git diff` "
            "writes it: write it with that"
        )


def _file(reader: _Reader) -> FilePatch:
    """From ``diff`` or ``---`` to the last hunk."""
    header: dict[str, str] = {}
    binary = False
    first = reader.line()
    if first.startswith("diff "):
        reader.next()
    while reader.more() and not reader.line().startswith(("diff ", "@@ ", "--- ")):
        line = reader.next()
        binary |= line.startswith(("Binary files ", "GIT binary patch"))
        for name in ("new file mode ", "deleted file mode ", "rename from ", "rename to "):
            if line.startswith(name):
                header[name.strip()] = line.removeprefix(name)
        if line.startswith(("new file mode ", "new mode ")) and line.endswith(_OTHER_KINDS):
            raise reader.error("links and submodules are not taken")
    names = _names(reader, first, header)
    hunks = []
    while reader.line().startswith("@@ "):
        hunks.append(_hunk(reader))
    old, new = names
    if old is None and new is None:
        raise reader.error("a file without a name")
    return FilePatch(old=old, new=new, hunks=tuple(hunks), binary=binary)


def _names(reader: _Reader, first: str, header: dict[str, str]) -> tuple[str | None, str | None]:
    if reader.line().startswith("--- "):
        old = reader.next().removeprefix("--- ")
        if not reader.line().startswith("+++ "):
            raise reader.error("no +++ after ---")
        new = reader.next().removeprefix("+++ ")
        return _name(reader, old, strip=True), _name(reader, new, strip=True)
    if "rename from" in header and "rename to" in header:
        return _name(reader, header["rename from"]), _name(reader, header["rename to"])
    # No hunks: an empty file, another mode, or a binary one. Both names are the same.
    both = re.fullmatch(r'diff --git (?:a/(.+) b/\1|"a/(.+)" "b/\2")', first)
    if not both:
        raise reader.error("no names of files")
    name = _name(reader, both[1] or f'"{both[2]}"')
    gone, made = "deleted file mode" in header, "new file mode" in header
    return (None if made else name), (None if gone else name)


def _name(reader: _Reader, text: str, *, strip: bool = False) -> str | None:
    """A path inside the repository; None for /dev/null."""
    text = text.split("\t")[0].rstrip("\r") if not text.startswith('"') else _unquoted(reader, text)
    if text == "/dev/null":
        return None
    path = PurePosixPath(text)
    parts = path.parts[1:] if strip else path.parts
    if path.is_absolute() or ".." in parts or ".git" in parts or not parts or "\0" in text:
        raise reader.error(f"{text!r} is no file of the repository")
    return "/".join(parts)


def _unquoted(reader: _Reader, text: str) -> str:
    """A name as git quotes it: C's escapes, octal ones for bytes."""
    try:
        return ast.literal_eval("b" + text.strip()).decode(**ENCODING)
    except (ValueError, SyntaxError):
        raise reader.error(f"{text!r} is no quoted name") from None


def _hunk(reader: _Reader) -> Hunk:
    header = reader.line()
    found = _HUNK.match(header)
    if found is None:
        raise reader.error("no header of a hunk")
    reader.next()
    start = int(found[1])
    num_old, num_new = (1 if n is None else int(n) for n in (found[2], found[4]))
    old: list[str] = []
    new: list[str] = []
    written = [header]
    while len(old) < num_old or len(new) < num_new:
        if not reader.more():
            raise reader.error("the last hunk is shorter than its header says")
        line = reader.next()
        written.append(line)
        sign, rest = line[:1] or " ", line[1:] + "\n"
        if sign == _NO_LINE_END:
            _end_without_line_end(old, new, written[-2])
            continue
        if sign not in " +-":
            reader.number -= 1
            raise reader.error("neither context nor change")
        if sign in " -":
            old.append(rest)
        if sign in " +":
            new.append(rest)
    if len(old) > num_old or len(new) > num_new:
        raise reader.error("the hunk is longer than its header says")
    if reader.line().startswith(_NO_LINE_END):
        written.append(reader.next())
        _end_without_line_end(old, new, written[-2])
    text = "\n".join(written) + "\n"
    return Hunk(header=header, start=start, old=tuple(old), new=tuple(new), text=text)


def _end_without_line_end(old: list[str], new: list[str], before: str) -> None:
    for sign, lines in (("-", old), ("+", new)):
        if before[:1] in (sign, " ", "") and lines:
            lines[-1] = lines[-1].removesuffix("\n")


def _content_before(patch: FilePatch, read: Callable[[str], bytes | None]) -> bytes:
    if patch.old is None:
        if read(patch.path) is not None:
            raise ValueError(f"{patch.path}: the patch makes a file that is there already")
        return b""
    content = read(patch.old)
    if content is None:
        raise ValueError(f"{patch.old}: the patch changes a file that is not there")
    if patch.new not in (None, patch.old) and read(patch.path) is not None:
        raise ValueError(f"{patch.path}: the patch renames over a file that is there already")
    return content


def _apply(patch: FilePatch, text: str) -> str:
    lines = re.findall(r"[^\n]*\n|[^\n]+$", text)
    result: list[str] = []
    done = 0  # old lines that are in the result
    for hunk in patch.hunks:
        wanted = hunk.start - 1 if hunk.old else hunk.start
        place = _place(lines, hunk.old, wanted, done)
        if place is None:
            raise ValueError(f"{patch.path}: {hunk.header} does not apply")
        result += [*lines[done:place], *hunk.new]
        done = place + len(hunk.old)
    return "".join([*result, *lines[done:]])


def _place(lines: list[str], old: Sequence[str], wanted: int, first: int) -> int | None:
    """Where the old lines are, from ``first`` on, nearest to where they are wanted."""
    if not old:
        return wanted if first <= wanted <= len(lines) else None
    places = [
        n
        for n in range(first, len(lines) - len(old) + 1)
        if lines[n] == old[0] and tuple(lines[n : n + len(old)]) == tuple(old)
    ]
    return min(places, key=lambda n: abs(n - wanted), default=None)
