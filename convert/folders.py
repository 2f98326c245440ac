"""Folders that appear whole or not at all, and the config.json in them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert.names import ConversionError
from cwm_jax.config import ModelConfig


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling to fill: flushed and renamed to ``path`` at the end, or removed.

    A killed process leaves the sibling, ``.NAME.tmp-*``, and nothing at ``path``.

    Raises:
        ConversionError: there is something at ``path`` already.
    """
    path = Path(os.path.abspath(path))  # "." has no name
    check_vacant(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)
        temporary.rename(path)  # an empty folder is replaced; one filled meanwhile raises
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_vacant(path: Path) -> None:
    """Raises ConversionError unless ``path`` is free or an empty folder."""
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise ConversionError(
            f"{path} exists and is not an empty folder; choose another destination or remove it"
        )


def read_model_config(folder: Path) -> ModelConfig:
    """The architecture in ``config.json``.

    Raises:
        ConversionError: no such file, not JSON, or not a config of this architecture.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ConversionError(f"{folder} has no config.json; expected the folder of a model")
    try:
        return ModelConfig.from_hf(read_json(file))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConversionError(f"{file}: {str(error).removeprefix('config.json: ')}") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object without repeated keys; raises ConversionError naming the file."""
    try:
        return json_object(file.read_bytes())
    except ValueError as error:
        raise ConversionError(f"{file}: {error}") from error


def json_object(data: bytes) -> dict[str, Any]:
    """Parses UTF-8 JSON; ValueError if it is no object or an object repeats a key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"duplicate name {repeated!r}")
        return result

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"JSON holds a {type(value).__name__}; expected an object")
    return value


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Indented JSON with a final newline."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sync_tree(folder: Path) -> None:
    """Flushes every file and folder below, and the folder itself."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    """Flushes a file's data, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
