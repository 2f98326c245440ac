"""Turns SIGTERM and SIGINT into a request that the loop reads between two steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


class StopRequest:
    """While entered, a first SIGTERM or SIGINT sets ``name``; a second SIGINT interrupts."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # handlers live there alone
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        text = f"{self.name}: saving after this step; a second Ctrl-C interrupts without a save\n"
        os.write(2, text.encode())  # print is not safe inside a handler
