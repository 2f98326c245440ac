"""The tool view: numbered lines of a file, or the names in a folder."""

from __future__ import annotations

import errno
import os
import posixpath
import shlex

from cwm_jax.rl.envs.swe.tools import ToolReply
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace

_FILE_BYTES = 8 << 20  # assumed, as of the tool edit
_LIST_S = 20.0  # assumed


def view(content: str, workspace: Workspace) -> ToolReply:
    """Shows what a call names: ``PATH``, or ``PATH FIRST LAST`` for some lines of a file.

    Raises:
        EnvironmentFailure: the workspace failed.
    """
    words = content.split()
    numbers = words[1:]
    if len(words) not in (1, 3) or not all(n.isdecimal() and n.isascii() for n in numbers):
        text = "view takes a path, or a path and the numbers of the first and the last line."
        return ToolReply(text=text, worked=False)
    path = posixpath.normpath(posixpath.join(workspace.root, words[0]))
    try:
        found = workspace.read(path, _FILE_BYTES)
    except OSError as error:
        if error.errno == errno.EISDIR:
            return _listing(path, workspace)
        why = os.strerror(error.errno or errno.EIO).lower()
        return ToolReply(text=f"Cannot view {words[0]}: {why}. Check the path.", worked=False)
    if b"\0" in found:
        text = f"Cannot view {words[0]}: it is no text, but {len(found)} bytes."
        return ToolReply(text=text, worked=False)
    lines = found.decode(errors="replace").removesuffix("\n").split("\n") if found else []
    first, last = map(int, numbers) if numbers else (1, len(lines))
    shown = range(max(1, first), min(last, len(lines)) + 1)
    text = "\n".join(f"{number:6}\t{lines[number - 1]}" for number in shown)
    return ToolReply(text=text or f"The file has {len(lines)} lines.", worked=bool(text))


def _listing(path: str, workspace: Workspace) -> ToolReply:
    reply = workspace.run(f"LC_ALL=C command ls -1pA -- {shlex.quote(path)}", _LIST_S)
    return ToolReply(text=reply.output.rstrip("\n"), worked=reply.outcome == "ok")
