"""The command line of bubblewrap, and what of the host is bound into the sandbox."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from cwm_jax.sandbox import userland
from cwm_jax.sandbox.outcome import SandboxError

SCRATCH = "/tmp"
CODE = "/sandbox"  # where the zygote and the program lie inside
NAMESPACE_UID = 1000
_OWN_PLACES = ("/proc", "/dev", CODE)
_OVERLAY = Path(__file__).with_name("overlay.py")
_LIBRARIES = ("python*", "pypy*", "pypy*/lib/python*")  # in a folder of libraries
# Uids that no account, container or service manager hands out; assumed of every host.
# Source: systemd's UIDS-GIDS.md, "1879048192...2147352575: unused".
_FREE_UIDS = range(0x70000000, 0x7FFE0000)
_CAPABILITIES_TO_DROP_PRIVILEGES = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")


def find_bwrap() -> str:
    """Returns the executable's path.

    Raises:
        SandboxError: if there is none.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError(
            "untrusted code runs under bubblewrap, and there is no `bwrap` on PATH: "
            "`apt-get install bubblewrap`, or pass unsafe=True / --unsafe to run code unprotected"
        )
    return found


def interpreter() -> str:
    """The executable of this interpreter's installation, not of a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def environment(scratch: str | None = None, *, shell: bool = False) -> dict[str, str]:
    """All variables that the code inside sees; ``scratch`` is None but without bubblewrap."""
    found = {
        "PATH": "/usr/bin:/bin",  # the same on every machine; Python is run by its own path
        "HOME": scratch or SCRATCH,
        "TMPDIR": scratch or SCRATCH,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
    }
    if shell:
        python = os.path.dirname(interpreter()) if scratch else userland.PYTHON_FOLDER
        found |= userland.VARIABLES | {"PATH": f"{python}:{found['PATH']}"}
    return found


def unique_uid() -> int | None:
    """A uid for one sandbox alone, so that its processes are counted alone.

    Returns None where this process has no uids to give: an ordinary user's, or a container's root
    that is one outside. They get a user namespace, which kernels from 5.14 on count by itself.
    """
    if os.getuid() != 0:
        return None
    mapped = [range(first, first + count) for first, _, count in _uid_map()]
    if any(_FREE_UIDS[0] in ids and _FREE_UIDS[-1] in ids for ids in mapped):
        return random.SystemRandom().choice(_FREE_UIDS)
    largest = max(mapped, key=len, default=range(0))
    if len(largest) < 1 << 15:
        return None
    return random.SystemRandom().choice(largest[len(largest) // 2 :])


def command(
    *,
    uid: int | None,
    scratch_bytes: int,
    readable: Sequence[Path],
    fds: dict[str, int],
    base: Path | None = None,
    shell: bool = False,
) -> list[str]:
    """Returns the command line up to the ``--``; the program to run comes after it.

    Args:
        uid: what the first process will change to; None for a user namespace.
        scratch_bytes: size of the scratch folder.
        readable: existing absolute paths, bound at the same place.
        fds: contents of files by path, relative to the code folder, and "seccomp".
        base: an absolute path that becomes the scratch folder, as `overlay_prefix` mounts it.
        shell: with what a shell needs of the system.
    """
    line = [find_bwrap(), "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    line += ["--unshare-cgroup-try", "--hostname", "sandbox", "--die-with-parent", "--new-session"]
    line += ["--as-pid-1", "--clearenv"]
    if uid is None:
        inside = str(NAMESPACE_UID)
        line += ["--unshare-user", "--uid", inside, "--gid", inside, "--cap-drop", "ALL"]
    else:
        for name in _CAPABILITIES_TO_DROP_PRIVILEGES:
            line += ["--cap-add", name]
    for name, value in environment(shell=shell).items():
        line += ["--setenv", name, value]
    line += ["--proc", "/proc", "--dev", "/dev"]
    if base:
        line += ["--bind", str(base), SCRATCH]
    else:  # In a user namespace the folder belongs to the uid inside, here to root.
        line += ["--perms", "0700" if uid is None else "1777", "--size", str(scratch_bytes)]
        line += ["--tmpfs", SCRATCH]
    system = _system(shell)
    links = _links(shell)
    files = {os.path.join(CODE, name): fd for name, fd in fds.items() if name != "seccomp"}
    # The uid inside has to pass them, whatever their modes are here.
    places = [*system, *map(str, readable), *files, *links]
    above = {str(folder) for path in places for folder in Path(path).parents}
    above -= {"/", SCRATCH, *links}
    for path in sorted(above):
        line += ["--perms", "0755", "--dir", path]
    for path, target in links.items():
        line += ["--symlink", target, path]
    for path in system:
        line += ["--ro-bind", path, path]
    hidden = _site_packages(system)
    for path in hidden:
        line += ["--tmpfs", path]
    for path in map(str, readable):  # it may lie in one of these
        line += ["--ro-bind", path, path]
    for path in hidden:
        line += ["--remount-ro", path]
    for path, fd in files.items():
        line += ["--perms", "0444", "--file", str(fd), path]
    # Both are tmpfs without a limit, and the uid inside may own them.
    line += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return [*line, "--chdir", SCRATCH, "--seccomp", str(fds["seccomp"]), "--"]


def overlay_prefix(base: Path, scratch_bytes: int) -> list[str]:
    """What goes before the command line where the scratch folder is a copy on write."""
    return [interpreter(), "-I", "-S", str(_OVERLAY), str(base), str(scratch_bytes)]


def bound_in_scratch(readable: Sequence[Path]) -> list[str]:
    """What is bound below the scratch folder, which is not to be emptied."""
    bound = [*map(Path, interpreter_paths()), *readable]
    return [str(path) for path in bound if path.is_relative_to(SCRATCH)]


def check_readable(paths: Sequence[Path]) -> list[Path]:
    """Returns absolute paths.

    Raises:
        ValueError: for one that does not exist or lies where the sandbox has its own files.
    """
    found = [Path(os.path.abspath(path)) for path in paths]
    for path in found:
        if not path.exists():
            raise ValueError(
                f"readable path {path} does not exist: name a file or folder that does"
            )
        if str(path) in ("/", SCRATCH) or any(map(path.is_relative_to, _OWN_PLACES)):
            raise ValueError(
                f"readable path {path} would cover the sandbox's own files; it may not be / or "
                f"{SCRATCH}, nor lie in {', '.join(_OWN_PLACES)}: name what lies below, or copy it"
            )
    return found


@functools.cache
def interpreter_paths() -> tuple[str, ...]:
    """The executable, the standard library, and the folders of the shared libraries they load."""
    python = interpreter()
    names = {"base": sys.base_prefix, "installed_base": sys.base_prefix}
    names |= {"platbase": sys.base_exec_prefix, "installed_platbase": sys.base_exec_prefix}
    library = {sysconfig.get_path(name, vars=names) for name in ("stdlib", "platstdlib")}
    paths = {python, *filter(os.path.exists, {*library, "/etc/ld.so.cache"})}
    for file in _shared_libraries(python, sorted(library)):
        # A folder of the installation holds more than libraries.
        own = sys.base_prefix != "/usr" and Path(file).is_relative_to(sys.base_prefix)
        paths.add(file if own else os.path.dirname(file))
    return tuple(sorted(paths, key=lambda path: (path.count("/"), path)))


def _shared_libraries(python: str, library: Sequence[str]) -> list[str]:
    """What the loader finds for the executable and every extension module, all at once.

    Source: ld.so(8), LD_TRACE_LOADED_OBJECTS; ldd would start one process for each.
    """
    modules = [str(path) for folder in library for path in Path(folder, "lib-dynload").glob("*.so")]
    variables = {"LD_TRACE_LOADED_OBJECTS": "1", "LD_PRELOAD": ":".join(modules)}
    listed = subprocess.run([python], env=variables, capture_output=True, text=True, check=True)
    words = [word for line in listed.stdout.splitlines() for word in line.split()]
    files = {word for word in words if word.startswith("/") and word not in modules}
    if not files:
        raise SandboxError(f"the loader names no shared library of {python}: {listed.stderr}")
    return sorted(files)


def _system(shell: bool) -> list[str]:
    """Folders and files of the host that are bound."""
    if not shell:
        return list(interpreter_paths())
    found = list(userland.folders())
    for path in interpreter_paths():
        if any(map(Path(path).is_relative_to, userland.links())):
            path = os.path.realpath(path)
        if not any(map(Path(path).is_relative_to, found)):
            found.append(path)
    return found


def _links(shell: bool) -> dict[str, str]:
    if not shell:
        return {}
    python = {f"{userland.PYTHON_FOLDER}/{name}": interpreter() for name in userland.PYTHON_NAMES}
    return userland.links() | userland.SCRIPT | python


def _site_packages(system: Sequence[str]) -> list[str]:
    """Folders in the standard library's that are no part of it, of every Python that is bound."""
    names = ("site-packages", "dist-packages")
    patterns = [*names, *(f"{above}/{name}" for above in _LIBRARIES for name in names)]
    found = {folder for path in system for text in patterns for folder in Path(path).glob(text)}
    return sorted(str(folder) for folder in found if folder.is_dir())


def _uid_map() -> list[list[int]]:
    return [
        [int(n) for n in line.split()]
        for line in Path("/proc/self/uid_map").read_text().splitlines()
    ]
