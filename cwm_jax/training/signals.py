"""Turns SIGTERM and SIGINT into a request that the loop reads between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """While entered, a first SIGTERM or SIGINT asks for a stop; a second SIGINT interrupts.

    With several processes JAX's own notifier has SIGTERM: a signal to any of them lets all agree on
    a step to stop after.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, object] = {}
        self._shared = jax.process_count() > 1
        self._asked = 0

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # handlers live there alone
            for number in (signal.SIGINT,) if self._shared else (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reached(self) -> bool:
        """Whether to stop now; several processes all ask at the same points of their work."""
        if not self._shared:
            return self.name is not None
        self._asked += 1  # JAX agrees on the number of a question, usually that of a step
        if multihost_utils.reached_preemption_sync_point(self._asked):
            self.name = "SIGTERM, here or on another host"
            return True
        return False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        text = f"{self.name}: saving after this step; a second Ctrl-C interrupts without a save\n"
        os.write(2, text.encode())  # print is not safe inside a handler
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)
