"""Bare repositories on the host: what a sandbox clones from.

git reads objects and writes them; it checks nothing out, and nothing of a repository is run: no
hooks, no filters, no programs that its settings name. What its users and machines have set does not
count either. git of 2.39.4 and later is expected: before, one that was told to could make the
process that it was read by start programs (CVE-2024-32004, CVE-2024-32465).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cwm_jax.forager.images.archive import Member
from cwm_jax.rl.envs.swe.workspaces.checkout import AUTHOR, MESSAGE, let_others_read

BRANCH = "refs/heads/main"
# The same files give the same commit everywhere, on whatever day.
_GIT_S = 1800.0  # assumed: a large history over a network
# Both assumed: what a checkout in a sandbox has room for.
_MOST_FILES = 200_000  # with folders
_MOST_BYTES = 1 << 30
# Of what a user has set, what a machine needs to reach a network at all.
_NETWORK = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
_NETWORK += ("GIT_SSL_CAINFO", "SSH_AUTH_SOCK")


class GitError(ValueError):
    """git is missing, fails or takes too long; the text has what it says."""


def git(
    arguments: Sequence[str], *, folder: Path | None = None, stdin: bytes = b"", protocol: str = ""
) -> bytes:
    """What git writes to stdout.

    Args:
        arguments: after ``git``.
        folder: the bare repository, or the ``.git`` of a checkout.
        stdin: what it reads.
        protocol: the one over which it may fetch; none if empty.

    Raises:
        GitError: it fails.
    """
    line, env = _line_and_variables(arguments, folder, protocol)
    try:
        done = subprocess.run(line, env=env, input=stdin, capture_output=True, timeout=_GIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitError(f"git {arguments[0]} on this host: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise GitError(f"git {arguments[0]} on this host: {said}")
    return done.stdout


def history_up_to(repository: Path, commit: str, target: Path) -> None:
    """Makes a bare repository of a commit and what it comes from.

    Its branch ``main`` is the commit. Tags of earlier commits are there too, as some projects take
    their version from them; nothing that came later, on other branches or to the side is.

    Args:
        repository: a bare repository, or the folder of a checkout.
        commit: full hash.
        target: is made.

    Raises:
        GitError: as of `git`.
    """
    listed = git(
        ["for-each-ref", f"--merged={commit}", "--format=%(refname)", "refs/tags"],
        folder=git_folder(repository),
    )
    tags = [f"+{name}:{name}" for name in listed.decode(errors="surrogateescape").splitlines()]
    refspecs = "\n".join([f"+{commit}:{BRANCH}", *tags, ""]).encode(errors="surrogateescape")
    _init(target)
    line = ["fetch", "--quiet", "--no-tags", "--no-auto-maintenance", "--update-shallow", "--stdin"]
    git([*line, "--", str(repository.resolve())], folder=target, stdin=refspecs, protocol="file")
    (target / "FETCH_HEAD").unlink(missing_ok=True)
    let_others_read(target)


def import_files(files: Mapping[bytes, Member], target: Path) -> str:
    """Makes a bare repository whose ``main`` is one commit of the files; returns its hash.

    Raises:
        GitError: as of `git`; or a path is one that git checks nothing out to.
    """
    _init(target)
    git(["fast-import", "--quiet"], folder=target, stdin=b"".join(_stream(files)))
    index = target / "checked.index"
    try:
        # Nothing is checked out here; this says whether it can be.
        git(["read-tree", f"--index-output={index}", BRANCH], folder=target)
    finally:
        for path in (index, target / "index"):
            path.unlink(missing_ok=True)
    let_others_read(target)
    return resolve(target, BRANCH)


def resolve(repository: Path, name: str) -> str:
    """The full hash of the commit that a name or an abbreviation stands for.

    Raises:
        GitError: as of `git`; there is no such commit.
    """
    line = ["rev-parse", "--verify", "--end-of-options", name + "^{commit}"]
    return git(line, folder=git_folder(repository)).decode().strip()


def is_tree_bounded(repository: Path, commit: str) -> bool:
    """Whether a commit has few enough files and bytes to be listed and checked out.

    A few folders, each of which is in another many times, make any number of files of a few
    objects. So the list is never held, and no more of it is made than is allowed.

    Raises:
        GitError: the commit cannot be read.
    """
    line, env = _line_and_variables(["ls-tree", "-r", "-t", "-l", "-z", commit], repository)
    left_files, left_bytes, rest = _MOST_FILES, _MOST_BYTES, b""
    pipe = subprocess.PIPE
    with subprocess.Popen(line, env=env, stdout=pipe, stderr=subprocess.DEVNULL) as listing:
        assert listing.stdout is not None
        while chunk := listing.stdout.read(1 << 16):
            *entries, rest = (rest + chunk).split(b"\0")
            # Mode, kind, object, size. Source: git-ls-tree(1); what is no file has the size "-".
            sizes = [entry.split(None, 4)[3] for entry in entries]
            left_files -= len(sizes)
            left_bytes -= sum(int(size) for size in sizes if size != b"-")
            if left_files < 0 or left_bytes < 0:
                listing.kill()
                return False
    if listing.returncode:
        raise GitError(f"git ls-tree on this host: cannot read {commit}")
    return True


def git_folder(repository: Path) -> Path:
    """Where a checkout or a bare repository has its objects; no folder above it is looked at."""
    inside = repository / ".git"
    if inside.is_file():  # a work tree beside others: "gitdir: PATH"
        said = inside.read_text(encoding="utf-8", errors="surrogateescape").strip()
        return (repository / said.removeprefix("gitdir:").strip()).resolve()
    return inside if inside.is_dir() else repository


def _line_and_variables(
    arguments: Sequence[str], folder: Path | None, protocol: str = ""
) -> tuple[list[str], dict[str, str]]:
    line = ["git", "-c", "safe.directory=*", *arguments]
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    env |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_NO_LAZY_FETCH": "1"}
    env |= {"GIT_TERMINAL_PROMPT": "0", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_ATTR_NOSYSTEM": "1"}
    env |= {"GIT_ALLOW_PROTOCOL": protocol or "none", "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}
    if protocol in ("https", "ssh"):
        env |= {name: os.environ[name] for name in _NETWORK if name in os.environ}
    if folder is not None:
        env["GIT_DIR"] = str(folder)
    return line, env


def _init(target: Path) -> None:
    git(["init", "--quiet", "--bare", "--initial-branch=main", "--template=", str(target)])


def _stream(files: Mapping[bytes, Member]) -> Iterator[bytes]:
    """For git fast-import. Source: git-fast-import(1)."""
    yield b"commit %s\ncommitter %s\n" % (BRANCH.encode(), AUTHOR.encode())
    yield b"data %d\n%s" % (len(MESSAGE.encode()), MESSAGE.encode())
    for path, member in files.items():
        quoted = path.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
        yield b'M %s inline "%s"\n' % (member.mode.encode(), quoted)
        yield b"data %d\n" % len(member.content)
        yield member.content
        yield b"\n"
