"""Runs untrusted code: nothing of the host readable but the interpreter, no network, bounded use.

`run` starts a program in a sandbox of its own. A `Worker` keeps an interpreter warm and forks it
for each call, a `Pool` has several for many threads. A `Shell` is a bash that lasts from command to
command. `bubblewrap.py` and `seccomp.py` are the walls, `userland.py` is what a shell finds within
them, `zygote.py` and `session.py` are what runs inside.
"""

from cwm_jax.sandbox.limits import Limits, ShellLimits
from cwm_jax.sandbox.outcome import Completed, Outcome, Reply, SandboxError
from cwm_jax.sandbox.pool import Pool
from cwm_jax.sandbox.run import run
from cwm_jax.sandbox.shell import Shell, ShellReply
from cwm_jax.sandbox.worker import Worker

__all__ = [
    "Completed",
    "Limits",
    "Outcome",
    "Pool",
    "Reply",
    "SandboxError",
    "Shell",
    "ShellLimits",
    "ShellReply",
    "Worker",
    "run",
]
