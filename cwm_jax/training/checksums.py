"""SHA-256 of every file of a folder, written beside them and verified on reading.

Orbax notices truncated arrays only; a flipped or zeroed byte passes (measured with 0.12.8). A
folder with this manifest is whole: it is the last file written before the folder is renamed into
place.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from pathlib import Path

CHECKSUMS_FILE = "checksums.json"
STATE_FOLDER = "state"  # of a checkpoint's arrays; here, for the converters read it without JAX
_NUM_THREADS = 8  # hashing and reading release the GIL


def write_checksums(folder: Path) -> None:
    """Records size and SHA-256 of every file below ``folder`` and flushes all of it to disk."""
    files = _files_below(folder)
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        records = pool.map(lambda path: _record(path, flush=True), files)
        manifest = {str(p.relative_to(folder)): r for p, r in zip(files, records, strict=True)}
    path = folder / CHECKSUMS_FILE
    with open(path, "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path) -> list[str]:
    """What is wrong with the files of ``folder``, one sentence each; empty if nothing is."""
    try:
        manifest = json.loads((folder / CHECKSUMS_FILE).read_text())
        expected = {folder / name: (r["bytes"], r["sha256"]) for name, r in manifest.items()}
    except FileNotFoundError:
        return [f"{CHECKSUMS_FILE} is missing: the save did not finish"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{CHECKSUMS_FILE} is unreadable: {error}"]
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = pool.map(lambda item: _compare(folder, *item), expected.items())
        return [sentence for sentence in found if sentence]


def _compare(folder: Path, path: Path, expected: tuple[int, str]) -> str | None:
    name = path.relative_to(folder)
    try:
        found = _record(path)
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:  # a bad sector, a folder in its place
        return f"{name} cannot be read: {error.strerror}"
    if found["bytes"] != expected[0]:
        return f"{name} has {found['bytes']} bytes, not {expected[0]}"
    if found["sha256"] != expected[1]:
        return f"{name} has other bytes than were written"
    return None


def _files_below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / CHECKSUMS_FILE)


def _record(path: Path, *, flush: bool = False) -> dict[str, int | str]:
    with open(path, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")  # one small buffer, whatever the file
        size = file.tell()
        if flush:
            os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}
