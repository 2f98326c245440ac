"""Files of JSON objects: one on each line, or an array of them; read and checked as a whole."""

from __future__ import annotations

import codecs
import contextlib
import gc
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from cwm_jax.rl.envs.fields import short

T = TypeVar("T")
_GZIP = b"\x1f\x8b"  # how such a file begins


def read_records(
    path: Path,
    read: Callable[[Any], tuple[str, T]],
    *,
    form: str,
    what: str,
    owner: str = "",
    whose: str = "the",
) -> list[T]:
    """What ``read`` makes of the lines of a file; blank ones are skipped.

    Args:
        path: of lines of JSON, or of one array, which begins the file; gzipped or not.
        read: of a line's value: its name, which no other line has, and what is kept of it; raises
            ValueError for what it cannot use.
        form: of a line, in words: what is expected of the file.
        what: a line is, in a word.
        owner: of the file, in words that messages begin with.
        whose: path it is that is to be mended, in words.

    Raises:
        ValueError: with owner, path and line: the file cannot be read or is empty, a line is no
            JSON or has the name of another, or ``read`` says so.
    """
    kept: list[T] = []
    names: dict[str, str] = {}
    owner, at = f"{owner}: " if owner else "", f"{path}:1"
    try:
        with _opened(path) as file, _without_collecting():
            for place, at, value in _values(file, path, form):  # noqa: B007
                name, item = read(value())
                if (other := names.setdefault(name, place)) != place:
                    raise ValueError(
                        f"the name {name!r} is that of {other}, too; expected each its own: rename "
                        "one"
                    )
                kept.append(item)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{owner}{_unreadable(path, error)}; expected a file, {form}: mend {whose} path"
        ) from None
    except ValueError as error:
        raise ValueError(f"{owner}{at}: {error}") from None
    if not kept:
        raise ValueError(
            f"{owner}{path} has no {what}; expected {form}: write the file again, or name another"
        )
    return kept


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(len(_GZIP)) == _GZIP
    return cast(IO[bytes], gzip.open(path, "rb")) if zipped else path.open("rb")


def _values(file: IO[bytes], path: Path, form: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(place in words, path with place, what reads the value there)."""
    first = file.readline()
    if first.lstrip().startswith(b"["):
        items = parsed(first + file.read(), form=form, is_first=True)
        for number, item in enumerate(items, 1):
            yield f"item {number}", f"{path}: item {number}", lambda item=item: item
        return
    number, line = 1, first
    while line:
        if line.strip():

            def value(line: bytes = line, number: int = number) -> Any:
                return parsed(line, form=form, is_first=number == 1)

            yield f"line {number}", f"{path}:{number}", value
        number, line = number + 1, file.readline()


def parsed(line: bytes, *, form: str, is_first: bool = False) -> Any:
    """A line's value.

    Args:
        line: of JSON.
        form: in words: what is expected.
        is_first: of the file, where a byte order mark may stand.

    Raises:
        ValueError: it is none.
    """
    if is_first and line.startswith(codecs.BOM_UTF8):
        raise ValueError(
            "the file begins with a byte order mark (BOM); expected UTF-8 without one: save it so"
        )
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1} of the line is no UTF-8; expected UTF-8: save the file so"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON ({error}); expected {form}: mend it") from None


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Nothing here has cycles, and looking for some takes most of the time (measured: 5 of 7 s)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} is not there"
    if path.is_dir():
        return f"{path} is a folder"
    return f"{path} cannot be read ({getattr(error, 'strerror', None) or short(str(error))})"
