"""A folder, copied on write: run as a program, it mounts that and becomes bubblewrap.

``python overlay.py FOLDER BYTES LINE...``: in a mount namespace of its own, FOLDER becomes itself
below a layer that takes what is written; the layer lies in memory, of BYTES at most, and is gone
with the namespace. LINE, which then replaces this program, binds FOLDER where it wants it.

Without root this happens in a user namespace. Source: overlayfs.rst of Linux; 5.11 or newer.
"""

import ctypes
import os
import sys

# linux/sched.h, linux/mount.h
_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_RECURSIVE, _SLAVE = 0x4000, 1 << 19
_NO_SETUID, _NO_DEVICES = 0x2, 0x4
_C = ctypes.CDLL(None, use_errno=True)


def main(folder, size, line):
    uid, gid = os.getuid(), os.getgid()
    own = uid == 0 and _C.unshare(_NEW_MOUNTS) == 0
    if not own:
        _check(_C.unshare(_NEW_MOUNTS | _NEW_USER), "a user namespace")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1")):
            _write(f"/proc/self/{name}", text)
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    _mount("none", "/", None, _RECURSIVE | _SLAVE, None)  # the host sees none of what follows
    below = os.open(folder, os.O_PATH)  # still this folder when something is mounted over it
    _mount("tmpfs", folder, "tmpfs", _NO_SETUID | _NO_DEVICES, f"size={size},mode=0755")
    for name in ("upper", "work"):
        os.mkdir(f"{folder}/{name}")
    # Whoever is inside, with root's mount another uid, may write to it.
    os.chmod(f"{folder}/upper", 0o777 if own else 0o700)
    above = os.open(folder, os.O_PATH)
    layers = f"lowerdir=/proc/self/fd/{below},upperdir=/proc/self/fd/{above}/upper"
    layers += f",workdir=/proc/self/fd/{above}/work" + ("" if own else ",userxattr")
    _mount("overlay", folder, "overlay", _NO_SETUID | _NO_DEVICES, layers)
    os.execv(line[0], line)


def _mount(source, target, kind, flags, options):
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    done = _C.mount(*texts, ctypes.c_ulong(flags), options and options.encode())
    _check(done, f"mounting {kind or 'of its own'} over {target}")


def _check(result, what):
    if result:
        error = ctypes.get_errno()
        sys.exit(f"a folder copied on write: {what} fails: {os.strerror(error)}")


def _write(path, text):
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
