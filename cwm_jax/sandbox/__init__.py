"""Runs untrusted code: nothing of the host readable but the interpreter, no network, bounded use.

`run` starts a program in a sandbox of its own; a `Worker` keeps an interpreter warm and forks it
for each call. `bubblewrap.py` and `seccomp.py` are the walls, `zygote.py` is what runs inside.
"""

from cwm_jax.sandbox.limits import Limits
from cwm_jax.sandbox.outcome import Completed, Outcome, Reply, SandboxError
from cwm_jax.sandbox.run import run
from cwm_jax.sandbox.worker import Worker

__all__ = ["Completed", "Limits", "Outcome", "Reply", "SandboxError", "Worker", "run"]
