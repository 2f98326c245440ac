"""Folders in Meta's layout: weights as a distributed checkpoint, params.json, a checklist."""

from __future__ import annotations

import concurrent.futures
import hashlib
import re
from pathlib import Path

import numpy as np

from convert.meta.dcp_files import METADATA_FILE, read_tensors
from convert.meta.params import PARAMS_FILE, read_params
from convert.names import ConversionError, Weight, check_names, weights
from convert.tokenizers import read_tokenizer_of

CHECKLIST_FILE = "checklist.chk"
_CHECKLIST_LINE = re.compile(r"([0-9a-f]{32}) [ *](.+)")  # of md5sum
_NUM_THREADS = 8  # hashing and reading release the GIL


class MetaSource:
    """The weights of a folder in Meta's layout; making one checks names, shapes and checklist."""

    def __init__(self, folder: Path) -> None:
        """Raises ConversionError naming the first thing that is not as it should be."""
        self.folder = folder
        self.model_config = read_params(folder, read_tokenizer_of(folder))
        check_checklist(folder)
        self._tensors = read_tensors(folder)
        expected = {weight.meta_name: weight.hf_shape for weight in weights(self.model_config)}
        check_names(set(self._tensors), set(expected), str(folder))
        for name, shape in expected.items():
            if self._tensors[name].shape != shape:
                raise ConversionError(
                    f"{folder}: {name} has shape {self._tensors[name].shape}; {PARAMS_FILE} makes "
                    f"it {shape}"
                )
        self.dtypes = {
            weight.hf_name: self._tensors[weight.meta_name].dtype
            for weight in weights(self.model_config)
        }

    def read(self, weight: Weight, start: int, stop: int) -> np.ndarray:
        return weight.hf_from_meta(self._tensors[weight.meta_name].read(start, stop))

    def unit_rows(self, weight: Weight) -> int:
        return weight.unit_rows

    def identity_files(self) -> list[Path]:
        files = {chunk.file for tensor in self._tensors.values() for chunk in tensor.chunks}
        return [self.folder / PARAMS_FILE, self.folder / METADATA_FILE, *files]


def is_meta_folder(folder: Path) -> bool:
    """True if it holds weights or parameters in Meta's layout."""
    return (folder / METADATA_FILE).exists() or (folder / PARAMS_FILE).exists()


def write_checklist(folder: Path, name: str) -> None:
    """Writes ``checklist.chk``: MD5 of every file, each path below the folder's final ``name``."""
    files = sorted(p for p in folder.iterdir() if p.name != CHECKLIST_FILE)
    lines = [f"{md5}  {name}/{file.name}\n" for file, md5 in zip(files, _md5s(files), strict=True)]
    (folder / CHECKLIST_FILE).write_text("".join(lines))


def check_checklist(folder: Path) -> None:
    """Verifies what ``checklist.chk`` lists, if there is one; the folder may have been renamed.

    Raises:
        ConversionError: a file that is missing or has other bytes, or lines that are none.
    """
    checklist = folder / CHECKLIST_FILE
    if not checklist.exists():
        return
    expected: dict[Path, str] = {}
    for line in checklist.read_text(errors="replace").splitlines():
        match = _CHECKLIST_LINE.fullmatch(line)
        parts = Path(match[2]).parts[-2:] if match else ()
        if match is None or not parts or parts[-1] in ("..", "/"):
            raise ConversionError(f"{checklist}: odd line {line!r}; expected `MD5  folder/file`")
        expected[folder / parts[-1]] = match[1]
    missing = [file.name for file in expected if not file.is_file()]
    if missing:
        raise ConversionError(f"{folder} is damaged: {missing[0]} of {checklist.name} is missing")
    for file, md5 in zip(expected, _md5s(list(expected)), strict=True):
        if md5 != expected[file]:
            raise ConversionError(
                f"{folder} is damaged: {file.name} has other bytes than {checklist.name} says"
            )


def _md5s(files: list[Path]) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(_md5, files))


def _md5(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
