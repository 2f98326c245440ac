"""Programs that the policy runs before it answers.

Source: the released math tool: its limits and replies, a program that ends by ``exit()`` has ended
well, standard input is empty. It speaks of scripts, hence each one starts anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cwm_jax.rl.envs.sandboxes import Sandboxes
from cwm_jax.sandbox import Limits, Outcome, Reply

_PROGRAM = Path(__file__).with_name("python_inside.py")
_OUTPUT_BYTES = 1 << 18  # assumed; the message shows less
_MEMORY_BYTES = 1 << 30  # assumed


class PythonTool:
    """Runs programs, for any number of episodes and threads.

    Args:
        call_s: time of a program.
        packages: distributions that it can import.
        unsafe: without bubblewrap.

    Raises:
        ValueError: if a package is not installed.
    """

    def __init__(self, *, call_s: float, packages: Sequence[str] = (), unsafe: bool = False):
        limits = Limits(
            cpu_s=call_s, wall_s=call_s, memory_bytes=_MEMORY_BYTES, output_bytes=_OUTPUT_BYTES
        )
        self._sandboxes = Sandboxes(_PROGRAM, limits=limits, packages=packages, unsafe=unsafe)

    def run(self, code: str) -> str:
        """The text of the tool's message.

        Raises:
            EnvironmentFailure: if there is no sandbox.
        """
        reply = self._sandboxes.call({"code": code})
        if reply.outcome in (Outcome.CPU, Outcome.WALL):
            return "error: Timeout"
        error = _error(reply)
        if error is not None:
            return f"error: {error}".rstrip(": ")
        parts = ["completed."]
        for name, content in (("stdout", reply.stdout), ("stderr", reply.stderr)):
            if content:
                parts.append(f"[{name}]{content.decode(errors='replace')}[/{name}]")
        return " ".join(parts)

    def close(self) -> None:
        """Ends the sandboxes; a later call starts them again."""
        self._sandboxes.close()


def _error(reply: Reply) -> str | None:
    """What went wrong, empty where the program left no trace of it; None: nothing."""
    if reply.outcome is Outcome.EXIT and "status 0 " in reply.detail:  # os._exit(0)
        return None
    try:
        error = json.loads(reply.value or b"")["error"]
    except (ValueError, RecursionError, TypeError, KeyError):  # the program may write there, too
        return ""
    return error if error is None or isinstance(error, str) else ""
