"""What of a Unix a shell finds inside: programs and their data, and stand-ins for a few files."""

from __future__ import annotations

import functools
import glob
import os

PYTHON_FOLDER = "/sandbox/bin"  # first in PATH; links to the interpreter
PYTHON_NAMES = ("python", "python3")
SCRIPT = {"/sandbox/bash": "/dev/fd/3"}  # as session.py has it
# Neither /usr nor /usr/lib as a whole: people install what they like there, packages and data too.
# And few: bubblewrap reads the table of all mounts for each (measured: ten cost a start 20 ms).
_FOLDERS = (
    "/usr/bin",
    "/usr/lib/*-linux-gnu*",  # elsewhere the interpreter's libraries lie beside the others
    "/usr/lib/git-core",
    "/usr/lib/locale",
    "/usr/lib/python3.*",
    "/usr/lib64",
    "/usr/libexec/git-core",
    "/usr/share/git-core",
    "/usr/share/perl",
    "/usr/share/zoneinfo",
    "/etc/alternatives",
)
_LINKS = ("/bin", "/lib", "/lib64")  # into /usr, or folders of their own
VARIABLES = {
    "SHELL": "/bin/bash",
    "TERM": "dumb",
    "USER": "agent",
    "LOGNAME": "agent",
    "EMAIL": "agent@sandbox",  # git takes it, and the name in /etc/passwd, where nothing is set
    "GIT_CONFIG_SYSTEM": "/etc/gitconfig",  # some are built to look elsewhere
}
# Source: git-config(1). What is bound from the host belongs to another uid.
GIT_CONFIG = b"[safe]\n\tdirectory = *\n[init]\n\tdefaultBranch = main\n"
_HOSTS = b"127.0.0.1 localhost\n::1 localhost\n"


@functools.cache
def links() -> dict[str, str]:
    """Links and what they hold, of folders that this system has in /usr."""
    found = {path: os.readlink(path) for path in _LINKS if os.path.islink(path)}
    return {path: to for path, to in found.items() if to.startswith("usr/")}


@functools.cache
def folders() -> tuple[str, ...]:
    """Folders to be bound, of those that this system has."""
    found = [path for pattern in (*_LINKS, *_FOLDERS) for path in sorted(glob.glob(pattern))]
    return tuple(path for path in found if os.path.isdir(path) and path not in links())


def files(uid: int) -> dict[str, bytes]:
    """Contents of files by absolute path; nothing of them is the host's."""
    users = f"root:x:0:0:root:/root:/bin/bash\nagent:x:{uid}:{uid}:agent:/tmp:/bin/bash\n"
    groups = f"root:x:0:\nagent:x:{uid}:\n"
    return {
        "/etc/passwd": users.encode(),
        "/etc/group": groups.encode(),
        "/etc/hosts": _HOSTS,
        "/etc/gitconfig": GIT_CONFIG,
    }
