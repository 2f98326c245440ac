"""How far the writing of a corpus is: a bar on a terminal, else a line from time to time."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from cwm_jax.trace.corpus.report import CorpusReport

_PERIOD_S = 10.0


class Progress:
    """A context manager; goes to the standard error.

    Args:
        total: items of work, if it is known.
    """

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._started_s = self._shown_s = time.monotonic()
        self._resumed = 0
        self._bar = tqdm(total=total, unit="item") if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, report: CorpusReport, *, resumed: bool) -> None:
        """After each chunk; ``resumed`` ones do not count in the rates."""
        now = time.monotonic()
        if resumed:
            self._resumed, self._started_s = report.num_items, now
        if self._bar is not None:
            self._bar.set_postfix(kept=report.total.kept, events=report.total.events)
            self._bar.update(report.num_items - self._bar.n)
        elif now - self._shown_s >= _PERIOD_S:
            self._shown_s = now
            print(self._line(report, now - self._started_s), file=sys.stderr, flush=True)

    def _line(self, report: CorpusReport, elapsed_s: float) -> str:
        items = report.num_items
        rate = (items - self._resumed) / max(elapsed_s, 1e-9)
        text = f"{items} items" if self._total is None else f"{items} of {self._total} items"
        text += f", {report.total.kept} episodes kept, {report.total.events} events"
        text += f", {rate:.1f} items/s"
        if self._total is not None and rate:
            text += f", {(self._total - items) / rate:.0f} s to go"
        return text
