"""A workspace in the local sandbox."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.swe.workspaces.protocol import SETTINGS
from cwm_jax.sandbox import SandboxError, Shell, ShellLimits, ShellReply

_CHECKOUT_S = 300.0  # assumed: a large working tree on a busy machine
# A local clone that borrows the objects; afterwards nothing says where from. What lies there before
# was made by an installation: it is no part of the repository, whose files come over it.
_CLONE = r"""git clone --quiet --shared --no-checkout {repository} {root}.new && mkdir -p {root} &&
mv {root}.new/.git {root} && rmdir {root}.new && cd {root} && mkdir -p .git/info &&
find . -name .git -prune -o ! -type d -print | cut -c2- |
sed 's/[][*?\\]/\\&/g' >> .git/info/exclude &&
git reset --quiet --hard && git remote remove origin && rm -rf .git/logs"""
# Where an image has its environment; assumed of all.
_ENVIRONMENT = "export VIRTUAL_ENV=/tmp/venv PATH=/tmp/venv/bin:$PATH"


class LocalWorkspace:
    """A checkout in a `Shell`'s scratch folder, of a repository that is bound read-only."""

    def __init__(
        self,
        repository: Path,
        *,
        base: Path | None = None,
        limits: ShellLimits | None = None,
        unsafe: bool = False,
    ) -> None:
        """``repository``: bare, as `bare_repository` makes it; ``base``: an image's root."""
        settings = SETTINGS if base is None else f"{SETTINGS}\n{_ENVIRONMENT}"
        with _failures():
            self._shell = Shell(
                readable=[repository],
                base=base,
                limits=limits,
                start=f"{settings}\ncd testbed 2>/dev/null || :",
                unsafe=unsafe,
            )
        self.root = f"{self._shell.folder}/testbed"
        quoted = {"repository": shlex.quote(str(repository)), "root": shlex.quote(self.root)}
        try:
            reply = self.run(_CLONE.format(**quoted), _CHECKOUT_S)
            if reply.outcome != "ok" or reply.exit_code:
                raise EnvironmentFailure(f"the checkout failed: {reply.detail} {reply.output}")
        except BaseException:
            self.close()
            raise

    def run(self, command: str, timeout_s: float) -> ShellReply:
        with _failures():
            return self._shell.run(command, timeout_s=timeout_s)

    def read(self, path: str, max_bytes: int) -> bytes:
        with _failures():
            return self._shell.read(path, max_bytes=max_bytes)

    def write(self, path: str, content: bytes) -> None:
        with _failures():
            self._shell.write(path, content)

    def close(self) -> None:
        self._shell.close()


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except SandboxError as error:
        raise EnvironmentFailure(f"the sandbox failed: {error}") from error
