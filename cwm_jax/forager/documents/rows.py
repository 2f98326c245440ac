"""Rows of foreign files, whose fields are of the types that are asked for or named in an error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_PARQUET_BATCH_ROWS = 256  # assumed: some megabytes of code


@dataclasses.dataclass(frozen=True)
class Row:
    """An object of a file.

    Attributes:
        where: file and place in it, for errors.
        values: by field; more than those that are asked for do no harm.
    """

    where: str
    values: Mapping[str, Any]

    def text(self, name: str, *, null: str | None = None) -> str:
        """A field of text.

        Args:
            name: of the field.
            null: what stands for null; None where null is an error.

        Raises:
            ValueError: it is missing, of another type, or no Unicode.
        """
        value = self._value(name)
        if value is None and null is not None:
            return null
        if not isinstance(value, str):
            raise self.error(name, "text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(name, "text without halves of surrogate pairs") from error
        return value

    def whole(self, name: str) -> int:
        """A field that is a whole number; raises ValueError as `text` does."""
        value = self._value(name)
        if type(value) is not int:
            raise self.error(name, "a whole number")
        return value

    def texts(self, name: str) -> list[str]:
        """A field that is a list of texts, none for null; raises ValueError as `text` does."""
        value = self._value(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, "a list of texts")
        return value

    def rows(self, name: str) -> list[Row]:
        """A field that is a list of objects; raises ValueError as `text` does."""
        value = self._value(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(name, "a list of objects")
        return [Row(f"{self.where}, {name} {at}", item) for at, item in enumerate(value, 1)]

    def error(self, name: str, expected: str) -> ValueError:
        """That a field is not what is expected."""
        found = repr(self.values.get(name))
        return ValueError(
            f"{self.where}: {name} is {found[:80]}; expected {expected}: mend it, or leave it out"
        )

    def _value(self, name: str) -> Any:
        if name not in self.values:
            raise ValueError(
                f"{self.where} has the fields {sorted(self.values)[:20]}; expected {name!r} among "
                "them: mend it, or leave it out"
            )
        return self.values[name]


def read_rows(path: Path) -> Iterator[Row]:
    """Objects of JSONL (a line is a place) or Parquet (a row is one), in the file's order.

    Raises:
        ValueError: a line that is no object, or what ends with .parquet and is none.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _row(f"{path}:{number}", line)


def read_list(path: Path, item: str) -> Iterator[Row]:
    """Objects of a JSON file that is one list; they are read at once.

    Args:
        path: of the file.
        item: what an object of it is called; with its number in the list it is a place.

    Raises:
        ValueError: there is no list of objects in it.
    """
    found = _parsed(f"{path}", path.read_bytes())
    if not isinstance(found, list):
        raise ValueError(f"{path} holds {type(found).__name__}; expected a list: name another file")
    for number, values in enumerate(found, 1):
        yield _checked(f"{path}: {item} {number}", values)


def _row(where: str, line: bytes) -> Row:
    return _checked(where, _parsed(where, line))


def _parsed(where: str, content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is not JSON ({error}); expected UTF-8 text of it: mend it, or leave it out"
        ) from error


def _checked(where: str, values: Any) -> Row:
    if not isinstance(values, dict):
        found = type(values).__name__
        raise ValueError(f"{where} is {found}; expected an object: mend it, or leave it out")
    return Row(where, values)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values)
    except pyarrow.ArrowException as error:
        raise ValueError(
            f"{path} cannot be read as Parquet ({error}); expected a whole file: fetch it again"
        ) from error
