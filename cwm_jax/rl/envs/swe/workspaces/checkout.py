"""Repositories as the host keeps them: bare, with one branch, without anything after its commit.

A checkout inside borrows their objects, read-only, so that its working tree is all that is copied.
What is not fetched cannot be found: later commits, other branches, tags, reflogs, dropped objects.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.swe.patches import ENCODING

_BRANCH = "refs/heads/main"
# The same files give the same commit everywhere.
AUTHOR = "Project <project@localhost> 1735689600 +0000"
MESSAGE = "The project as it is\n"
_GIT_S = 600.0  # assumed: fetching a large history from disk
_FILE_MODES = (b"100644", b"100755")
_TREE_BYTES = 64 << 20  # assumed: the sandbox of calls has 512 MiB for everything
_PREFIX = "repositories-"
_lock = threading.Lock()
_making: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)  # by repository
_folders: dict[int, str] = {}  # by process: a fork has none of its own


def bare_repository(source: Mapping[str, Any]) -> Path:
    """A bare repository of the source, made once by each process.

    Args:
        source: ``files``, their texts by path, which become one commit; or ``git``, the path of a
            repository, or ``built``, of an image's folder, and ``commit``, the full hash of one of
            its commits; with ``change``, a patch, this one changed is the only commit.

    Raises:
        EnvironmentFailure: git is missing or fails, or there is no such commit.
    """
    name = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:32]
    with _lock:
        target, making = Path(_folder(), name), _making[name]
    with making:
        if not target.exists():
            draft = Path(tempfile.mkdtemp(dir=target.parent))
            _git(["init", "--quiet", "--bare", "--initial-branch=main", "--template=", str(draft)])
            if "files" in source:
                _git(["fast-import", "--quiet"], folder=draft, stdin=_commit(source["files"]))
            elif "change" in source:
                with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                    changed = _changed(source, Path(folder))
                    _fetch(folder, changed, draft)
            else:
                _fetch(_history(source), source["commit"], draft)
            let_others_read(draft)
            draft.rename(target)
    return target


def files_of(source: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a source's commit by path, without links and submodules.

    Args:
        source: as of `bare_repository`.

    Raises:
        EnvironmentFailure: as of `bare_repository`, or there are too many bytes for a sandbox.
    """
    if "files" in source:
        return {path: text.encode() for path, text in source["files"].items()}
    folder = bare_repository(source)
    # Mode, kind, object, size, a tab, path. Source: git-ls-tree(1).
    entries = _git(["ls-tree", "-r", "-l", "-z", _BRANCH], folder=folder).split(b"\0")[:-1]
    found = [(entry.split(b"\t", 1)[1], entry.split()[:4]) for entry in entries]
    files = [(path, head) for path, head in found if head[0] in _FILE_MODES]
    size = sum(int(head[3]) for _, head in files)
    if size > _TREE_BYTES:
        raise EnvironmentFailure(
            f"{_history(source)} has {size} bytes of files; expected at most {_TREE_BYTES} where "
            "calls are the tests: test it with a suite"
        )
    stdin = b"".join(head[2] + b"\n" for _, head in files)
    content = _git(["cat-file", "--batch"], folder=folder, stdin=stdin)
    return dict(_contents(content, [path for path, _ in files]))


def image_root(source: Mapping[str, Any]) -> Path | None:
    """What an image has below its scratch folder; None for sources that are no image's.

    Raises:
        EnvironmentFailure: it is not there.
    """
    if "built" not in source:
        return None
    root = Path(source["built"], "root")
    if not root.is_dir():
        raise EnvironmentFailure(
            f"{source['built']} is no image on this machine; expected a folder that `forage "
            "images` has made, which can be made again from the task's repository"
        )
    _check_interpreter(Path(source["built"]))
    return root


def _check_interpreter(image: Path) -> None:
    """Its packages are in a folder that is named after a version, and some are compiled for it."""
    try:
        python = json.loads((image / "manifest.json").read_bytes())["python"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentFailure(f"{image} has no manifest that can be read: {error}") from error
    own = platform.python_version()
    if python.split(".")[:2] != own.split(".")[:2]:
        raise EnvironmentFailure(
            f"{image} is of Python {python} and this is {own}; expected the same minor version, as "
            "the image runs this machine's: make it again here"
        )


def _history(source: Mapping[str, Any]) -> str:
    path = os.path.join(source["built"], "repository.git") if "built" in source else source["git"]
    return os.path.abspath(path)


def _fetch(path: str, commit: str, draft: Path) -> None:
    _git(["fetch", "--quiet", "--no-tags", path, f"{commit}:{_BRANCH}"], folder=draft)
    (draft / "FETCH_HEAD").unlink(missing_ok=True)


def _changed(source: Mapping[str, Any], folder: Path) -> str:
    """Makes a commit without parents of a source's, changed, in a repository of its own there."""
    _git(["init", "--quiet", "--bare", "--template=", str(folder)])
    alternates = folder / "objects" / "info" / "alternates"
    alternates.parent.mkdir(exist_ok=True)
    alternates.write_text(f"{_history(source)}/objects\n")
    _git(["read-tree", source["commit"]], folder=folder)
    apply = ["apply", "--cached", "--whitespace=nowarn"]
    _git(apply, folder=folder, stdin=source["change"].encode(**ENCODING))
    tree = _git(["write-tree"], folder=folder).decode().strip()
    commit = f"tree {tree}\nauthor {AUTHOR}\ncommitter {AUTHOR}\n\n{MESSAGE}"
    written = ["hash-object", "-w", "-t", "commit", "--stdin"]
    name = _git(written, folder=folder, stdin=commit.encode()).decode().strip()
    _git(["update-ref", _BRANCH, name], folder=folder)
    return name


def _contents(batch: bytes, paths: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
    """Each is a line that ends with a size, so many bytes, a line end. Source: git-cat-file(1)."""
    at = 0
    for path in paths:
        start = batch.index(b"\n", at) + 1
        at = start + int(batch[at:start].split()[2])
        yield path.decode(**ENCODING), batch[start:at]
        at += 1


def _folder() -> str:
    pid = os.getpid()
    if pid not in _folders:
        _remove_stale()
        _folders[pid] = tempfile.mkdtemp(prefix=_PREFIX)
        os.chmod(_folders[pid], 0o755)
        lock = _locked(Path(_folders[pid]))
        atexit.register(_remove, _folders[pid], pid, lock)
    return _folders[pid]


def _locked(folder: Path) -> IO[bytes] | None:
    """A file whose lock ends with this process and its forks; None if another holds it."""
    file = (folder / ".lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _remove_stale() -> None:
    """Folders that processes which were killed have left; one without a lock is just begun."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/.lock"):
        with contextlib.suppress(OSError):
            if file := _locked(lock.parent):
                shutil.rmtree(lock.parent, ignore_errors=True)
                file.close()


def _remove(folder: str, pid: int, lock: IO[bytes] | None) -> None:
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
    if lock:  # open as long as the process lives
        lock.close()


def let_others_read(folder: Path) -> None:
    """The uid inside a sandbox is another one."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _commit(files: Mapping[str, str]) -> bytes:
    """A stream for git fast-import. Source: git-fast-import(1)."""
    message = MESSAGE.encode()
    head = f"commit {_BRANCH}\ncommitter {AUTHOR}\ndata {len(message)}\n".encode() + message
    parts = [head]
    for path, text in sorted(files.items()):
        content = text.encode()
        parts.append(f"M 100644 inline {path}\ndata {len(content)}\n".encode() + content + b"\n")
    return b"".join(parts)


def _git(arguments: Sequence[str], *, folder: Path | None = None, stdin: bytes = b"") -> bytes:
    """What it writes to stdout."""
    line = ["git", "-c", "safe.directory=*", *arguments]
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    if folder is not None:
        env["GIT_DIR"] = str(folder)
    try:
        done = subprocess.run(line, env=env, input=stdin, capture_output=True, timeout=_GIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFailure(f"git {arguments[0]} on this host: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise EnvironmentFailure(f"git {arguments[0]} on this host: {said}")
    return done.stdout
