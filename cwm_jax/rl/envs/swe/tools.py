"""The agent's tools in a workspace: bash, edit, create and submit."""

from __future__ import annotations

import dataclasses
import errno
import os
import posixpath

from cwm_jax.rl.envs.swe.actions import Call
from cwm_jax.rl.envs.swe.edit import ToolError, apply_edit, created, parse_create, parse_edit
from cwm_jax.rl.envs.swe.patches import ENCODING
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace

_FILE_BYTES = 8 << 20  # assumed: of a file that is edited
_PATCH_BYTES = 1 << 20  # assumed: of a patch that is submitted
_LOST_SHELL = "A fresh shell has started in the default directory; files are as they were."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolReply:
    """What a call came to.

    Attributes:
        text: for the policy.
        worked: whether the tool did what it was asked; a command of bash may have failed.
        submission: what was submitted, a patch.
    """

    text: str
    worked: bool
    submission: str | None = None


def use_tool(call: Call, workspace: Workspace, *, timeout_s: float) -> ToolReply:
    """Makes a call; what goes wrong with it is told to the policy.

    Args:
        call: as `parse_answer` gives it.
        workspace: of the episode.
        timeout_s: of a command of bash.

    Raises:
        EnvironmentFailure: the workspace failed.
    """
    if call.tool == "bash":
        return _bash(call.content, workspace, timeout_s)
    tools = {"edit": _edit, "create": _create, "submit": _submit}
    try:
        return tools[call.tool](call.content, workspace)
    except ToolError as error:
        return ToolReply(text=str(error), worked=False)


def _bash(command: str, workspace: Workspace, timeout_s: float) -> ToolReply:
    reply = workspace.run(command, timeout_s)
    if reply.outcome == "ok":
        return ToolReply(text=reply.output, worked=True)
    why = {
        "timeout": f"The command ran longer than {timeout_s:g} s and was stopped.",
        "too_long": "The command wrote too much output and was stopped; send it to a file.",
    }.get(reply.outcome, f"The shell ended ({reply.detail}).")
    return ToolReply(text=f"{why} {_LOST_SHELL}", worked=False)


def _edit(content: str, workspace: Workspace) -> ToolReply:
    edit = parse_edit(content)
    path = _absolute(edit.path, workspace)
    try:
        text = workspace.read(path, _FILE_BYTES).decode(**ENCODING)
        changed, report = apply_edit(text, edit)
        workspace.write(path, changed.encode(**ENCODING))
    except OSError as error:
        raise ToolError(_trouble("edit", edit.path, error)) from None
    return ToolReply(text=report.encode(**ENCODING).decode(errors="replace"), worked=True)


def _create(content: str, workspace: Workspace) -> ToolReply:
    name, text = parse_create(content)
    path = _absolute(name, workspace)
    if _kind(path, workspace) is not None:
        raise ToolError(
            f"{name} exists already; create only makes new files. Choose another name, or edit it."
        )
    parent = posixpath.dirname(path)
    if _kind(parent, workspace) != "folder":
        raise ToolError(
            f"The folder of {name} does not exist. Make it first with `mkdir -p`, or choose "
            "another one."
        )
    try:
        workspace.write(path, text.encode(errors="replace"))
    except OSError as error:
        raise ToolError(_trouble("create", name, error)) from None
    return ToolReply(text=created(name, text), worked=True)


def read_submitted(content: str, workspace: Workspace) -> tuple[str, bytes]:
    """(name, content) of the file that a call of submit names.

    Raises:
        ToolError: it cannot be read.
    """
    name = content.strip()
    if "\n" in name:
        raise ToolError("submit takes one line, the path of a file. Give that.")
    try:
        return name, workspace.read(_absolute(name, workspace), _PATCH_BYTES)
    except OSError as error:
        raise ToolError(_trouble("read", name, error)) from None


def _submit(content: str, workspace: Workspace) -> ToolReply:
    name, found = read_submitted(content, workspace)
    patch = found.decode(**ENCODING)
    if not patch.strip():
        raise ToolError(f"{name} is empty. Write your changes to it with `git diff > {name}`.")
    if not patch.startswith("diff"):
        raise ToolError(
            f"{name} does not begin with `diff`. Write your changes to it with `git diff > {name}`."
        )
    shown = found.decode(errors="replace").rstrip()
    text = (
        f"This patch is submitted:\n\n{shown}\n\nReview it. If something is wrong, mend "
        "it and submit again; the last patch counts. If it is right, give your final answer, "
        "without a tool."
    )
    return ToolReply(text=text, worked=True, submission=patch)


def _absolute(path: str, workspace: Workspace) -> str:
    """A relative path is that of the shell's folder, as it would be in a command."""
    if "\0" in path:
        raise ToolError("The path has a NUL in it. Give one without.")
    if posixpath.isabs(path):
        return posixpath.normpath(path)
    reply = workspace.run("\\builtin pwd -P", 10.0)
    folder = reply.output.removesuffix("\n").rpartition("\n")[2]  # a job may have written as well
    if reply.outcome != "ok" or not posixpath.isabs(folder):
        folder = workspace.root
    return posixpath.normpath(posixpath.join(folder, path))


def _kind(path: str, workspace: Workspace) -> str | None:
    try:
        workspace.read(path, 0)
    except OSError as error:
        if error.errno == errno.EISDIR:
            return "folder"
        return None if error.errno in (errno.ENOENT, errno.ENOTDIR) else "other"
    return "file"


def _trouble(verb: str, path: str, error: OSError) -> str:
    number = error.errno or errno.EIO
    what = {
        errno.ENOENT: "there is no such file",
        errno.EISDIR: "it is a folder",
        errno.EFBIG: "it is too long",
        errno.EINVAL: "it is not a regular file",
    }.get(number, os.strerror(number).lower())
    return f"Cannot {verb} {path}: {what}. Check the path."
