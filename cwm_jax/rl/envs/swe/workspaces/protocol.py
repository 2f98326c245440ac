"""Where an agent works: a checkout of a repository behind a shell and a few file operations."""

from __future__ import annotations

from typing import Protocol

from cwm_jax.sandbox import ShellReply

# Commands of every shell. Python takes stale bytecode where a file has kept its size and its second
# of change, which fast agents bring about; and its folders would be in what they submit.
SETTINGS = "export PYTHONDONTWRITEBYTECODE=1"


class Workspace(Protocol):
    """A checkout of its own, thrown away at the end; for one thread at a time.

    What runs inside is the agent's or the candidate's. Every method raises ``EnvironmentFailure``
    where the sandbox, the engine or the host fails, and only then.

    Attributes:
        root: absolute path of the checkout inside.
    """

    root: str

    def run(self, command: str, timeout_s: float) -> ShellReply:
        """Runs a command in a shell that lasts; it begins in ``root``.

        After any outcome but ``ok`` the next command finds a new shell there.
        """
        ...

    def read(self, path: str, max_bytes: int) -> bytes:
        """A regular file, by absolute path.

        Raises:
            OSError: as `open` does; with ``EFBIG`` for a longer one, ``EINVAL`` for what is neither
                a file nor a folder.
        """
        ...

    def write(self, path: str, content: bytes) -> None:
        """Writes a regular file, with the folders above it; raises as `read`."""
        ...

    def close(self) -> None:
        """Ends it, with all that runs inside; again, it does nothing."""
        ...
