"""The sets there are, by name, and their files; each module is imported when it is asked for."""

from __future__ import annotations

import datetime
import hashlib
import importlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cwm_jax.config.schema import nearest_hint
from cwm_jax.evals.problem import SetEntry
from cwm_jax.storage import file_sha256, write_json

# Each has ENTRIES: dict[str, SetEntry].
MODULES = (
    "cwm_jax.evals.sets.cruxeval",
    "cwm_jax.evals.sets.code_problems",
    "cwm_jax.evals.sets.livecodebench",
    "cwm_jax.evals.sets.math_problems",
    "cwm_jax.evals.sets.swe",
    "cwm_jax.evals.sets.trace_prediction",
    "cwm_jax.evals.sets.halting",
    "cwm_jax.evals.sets.retrieval",
    "cwm_jax.evals.sets.observations",
)
_TIMEOUT_S = 60.0
_PIECE_BYTES = 1 << 20


def entries() -> dict[str, SetEntry]:
    """All sets, in the order of their modules."""
    found: dict[str, SetEntry] = {}
    for module in MODULES:
        for name, entry in _module_entries(module).items():
            assert name not in found, f"two sets are called {name}"
            found[name] = entry
    return found


def entry(name: str) -> SetEntry:
    """The set of that name; raises ValueError with the nearest one there is."""
    found = entries()
    if name not in found:
        raise ValueError(
            f"there is no set {name!r}{nearest_hint(name, found)}; expected one of "
            f"{', '.join(found)}: see --list"
        )
    return found[name]


def check(name: str, path: Path | None, mode: str, values: Mapping[str, str]) -> None:
    """Whether a set can be loaded so.

    Raises:
        ValueError: no such set; a mode or option that it does not have; a file too many, or none.
    """
    chosen = entry(name)
    if mode not in chosen.modes:
        raise ValueError(f"{name} has no mode {mode!r}; expected one of {', '.join(chosen.modes)}")
    for option in values:
        if option not in chosen.options:
            known = ", ".join(chosen.options) or "none at all"
            raise ValueError(f"{name} has no option {option!r}; expected one of: {known}")
    if chosen.needs_path and path is None:
        source = f": {chosen.url} (--download fetches it)" if chosen.url else ""
        raise ValueError(f"{name} needs its official file; expected --data FILE{source}")
    if not chosen.needs_path and path is not None:
        raise ValueError(f"{name} is generated and reads no file; leave out --data")
    if path is not None and not path.exists():
        raise ValueError(f"{path} is not there; expected {name}'s official file: see --download")


def describe() -> Iterator[str]:
    """Lines for ``--list``."""
    for name, found in entries().items():
        file = "reads a file" if found.needs_path else "generated"
        yield f"{name:<20} {found.summary} ({file})"
        yield f"{'':<20}   modes: {', '.join(found.modes)}"
        for option, about in found.options.items():
            yield f"{'':<20}   --option {option}=...: {about}"
        if found.url:
            yield f"{'':<20}   {found.url}"


def download(name: str, path: Path) -> str:
    """Fetches a set's official file unless it is there; one line about it.

    It is written beside and renamed. ``PATH.download.json`` says from where, when, and its SHA-256.

    Raises:
        ValueError: it is not one public file, or cannot be fetched.
    """
    if path.exists():
        return f"{path} is there: sha256 {_sha256(path)}"
    url = entry(name).url
    if url is None:
        raise ValueError(f"{name} has no one public file; expected it in {path}: see docs")
    return fetch(url, path)


def fetch(url: str, path: Path) -> str:
    """Fetches a URL to a path; one line about it. Raises ValueError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply, beside.open("wb") as file:
            expected = reply.headers.get("Content-Length")
            while piece := reply.read(_PIECE_BYTES):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        size = beside.stat().st_size
        if expected is not None and size != int(expected):
            raise OSError(f"{size} bytes came of {expected}")
        about = {
            "url": url,
            "sha256": file_sha256(beside),
            "bytes": size,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        beside.rename(path)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ValueError(
            f"{url} could not be fetched ({error}); expected the file in {path}: fetch it by other "
            "means and name it by --data"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    write_json(path.with_name(f"{path.name}.download.json"), about)
    return f"{path}: {size:,} bytes of {url}, sha256 {about['sha256']}"


def file_identity(path: Path | None) -> dict[str, Any] | None:
    """What ``run.json`` says of a set's file, or folder of files."""
    if path is None:
        return None
    return {"name": path.resolve().name, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = [f"{file.relative_to(path).as_posix()} {file_sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(names).encode()).hexdigest()


def _module_entries(module: str) -> Mapping[str, SetEntry]:
    return importlib.import_module(module).ENTRIES
