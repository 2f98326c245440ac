"""Which requests run, in which pages, and what the next call of the device computes.

Without JAX: it deals in numbers and NumPy arrays. A request waits, is admitted once there are pages
for its prompt, is prefilled in pieces (all but its last token), and then decodes. When the pages
run out the youngest request is put back to the head of the queue; its tokens are kept, and computed
anew later, so that it goes on as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from cwm_jax.inference.pages import PagePool, page_keys
from cwm_jax.inference.requests import Delta, FinishReason, SamplingParams, TokenLogprob
from cwm_jax.inference.text import TextStream


class Layout(Protocol):
    """Of ``cwm_jax.inference.cache.CacheLayout`` what is needed here."""

    @property
    def page_tokens(self) -> int: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    def row_pages(self, kind: str) -> int: ...
    def context_pages(self, kind: str, num_tokens: int) -> int: ...
    def first_context_page(self, kind: str, num_tokens: int) -> int: ...


class Request:
    """One prompt and its continuation; made by ``Engine.submit``."""

    def __init__(
        self, prompt: Sequence[int], sampling: SamplingParams, text: TextStream, limit: int, key
    ):
        self.sampling = sampling
        self.num_prompt_tokens = len(prompt)
        self.tokens: list[int] = [*prompt]
        """The prompt, and what has been generated."""
        self.limit = limit
        """Tokens at which it ends."""
        self.key: np.ndarray = key
        self.finish_reason: FinishReason | None = None
        self.num_cached_tokens = 0
        """Of the prompt, found in pages of earlier requests when it was first admitted."""
        self._text = text
        self._new = _New()

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.num_prompt_tokens :]

    def receive(self, token: TokenLogprob) -> None:
        """Appends a token, and ends the request if it is the last."""
        self.tokens.append(token.token_id)
        self._new.tokens.append(token)
        if token.token_id in self.sampling.stop_token_ids or self._text.push(token.token_id):
            self.finish("stop")
        elif len(self.tokens) >= self.limit:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """The first reason stays."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self._new.finished = True

    def take_delta(self) -> Delta | None:
        """What is new since the last call, if anything."""
        new, self._new = self._new, _New()
        if not new.tokens and not new.finished:
            return None
        text = self._text.take() + (self._text.finish() if new.finished else "")
        return Delta(
            token_ids=[token.token_id for token in new.tokens],
            text=text,
            logprobs=new.tokens,
            finish_reason=self.finish_reason if new.finished else None,
            num_cached_tokens=self.num_cached_tokens,
        )


@dataclasses.dataclass
class _New:
    tokens: list[TokenLogprob] = dataclasses.field(default_factory=list)
    finished: bool = False


class Row:
    """A running request's place in the cache."""

    def __init__(self, request: Request, layout: Layout):
        self.request = request
        self.num_cached = 0
        self.num_pages = 0
        """Positions that have pages, in pages; of a local layer the last of them are there."""
        self.tables = {kind: np.full(layout.row_pages(kind), -1, np.int32) for kind in layout.kinds}
        self.keys: list[bytes] = []
        self.num_published = 0
        self.allowed: Collection[int] | None = None
        """Of which its next token must be one, if it is restricted."""
        self.shareable = True
        """False once some of it was computed with weights that are not the engine's any more."""

    @property
    def num_uncached(self) -> int:
        """Tokens before its last that are still to be computed."""
        return len(self.request.tokens) - 1 - self.num_cached


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some tokens of a row that one call computes."""

    row: Row
    start: int
    """Its tokens before, which are in the cache."""
    tokens: list[int]
    context: dict[str, np.ndarray]
    """By kind: pages with what they see of the tokens before, the oldest first."""
    pages: dict[str, np.ndarray]
    """By kind: where each token is written; -1 is nowhere."""


class Scheduler:
    """Of one engine."""

    def __init__(self, layout: Layout, pools: dict[str, PagePool], max_rows: int):
        self._layout, self.pools, self._max_rows = layout, pools, max_rows
        self.waiting: deque[Request] = deque()
        self.rows: list[Row] = []
        """Running, in the order of their admission."""
        self.num_preemptions = 0

    # ------------------------------------------------------------ admission and its reverse

    def admit(self) -> None:
        """Lets waiting requests run as long as there are rows and pages for their prompts."""
        while self.waiting and len(self.rows) < self._max_rows:
            row = Row(self.waiting[0], self._layout)
            self._find_prefix(row)
            if self.rows and not self._has_room(row):
                self._release(row)
                return
            request = self.waiting.popleft()
            if not request.generated:
                request.num_cached_tokens = row.num_cached
            self.rows.append(row)

    def remove_finished(self) -> None:
        """Frees the rows of requests that have ended, and forgets those that wait."""
        for row in self.rows:
            if row.request.finish_reason is not None:
                self._release(row)
        self.rows = [row for row in self.rows if row.request.finish_reason is None]
        self.waiting = deque(r for r in self.waiting if r.finish_reason is None)

    def forget_prefixes(self) -> None:
        """After a change of the weights: nothing that was computed before is shared any more."""
        for row in self.rows:
            row.shareable = False
        for pool in self.pools.values():
            pool.forget_all()

    def _has_room(self, row: Row) -> bool:
        """For its prompt and a page more, with what the other rows still need for theirs."""
        for kind, pool in self.pools.items():
            needed = sum(self._pages_to_take(kind, r, len(r.request.tokens)) for r in self.rows)
            needed += self._pages_to_take(kind, row, len(row.request.tokens))
            if pool.num_free <= needed:
                return False
        return True

    def _preempt(self, row: Row) -> None:
        self._release(row)
        self.rows.remove(row)
        self.waiting.appendleft(row.request)
        self.num_preemptions += 1

    def _release(self, row: Row) -> None:
        for kind, table in row.tables.items():
            for page in reversed(table[table >= 0].tolist()):  # the beginning is kept longest
                self.pools[kind].release(page)
            table[:] = -1

    # ------------------------------------------------------------ pages

    def make_room(self, row: Row, num_tokens: int, busy: Collection[Row] = ()) -> bool:
        """Gives a row the pages for so many tokens; False if it was itself put back for it.

        Rows that are ``busy`` are in a call that is being made up: False also if one of them would
        have to be put back.
        """
        while row in self.rows:
            if all(
                pool.num_free + self._num_returned(kind, row, num_tokens)
                >= self._pages_to_take(kind, row, num_tokens)
                for kind, pool in self.pools.items()
            ):
                self._take_pages(row, num_tokens)
                return True
            assert len(self.rows) > 1, "a request that fits alone was refused pages"
            if self.rows[-1] in busy:
                return False
            self._preempt(self.rows[-1])
        return False

    def _new_pages(self, kind: str, row: Row, num_tokens: int) -> range:
        """Numbers of the pages that it needs besides those that it has."""
        end = -(-num_tokens // self._layout.page_tokens)
        return range(max(row.num_pages, end - len(row.tables[kind])), max(end, row.num_pages))

    def _pages_to_take(self, kind: str, row: Row, num_tokens: int) -> int:
        return len(self._new_pages(kind, row, num_tokens))

    def _num_returned(self, kind: str, row: Row, num_tokens: int) -> int:
        table, pool = row.tables[kind], self.pools[kind]
        places = [number % len(table) for number in self._new_pages(kind, row, num_tokens)]
        return sum(table[place] >= 0 and pool.held_once(table[place]) for place in places)

    def _take_pages(self, row: Row, num_tokens: int) -> None:
        end = row.num_pages
        for kind, pool in self.pools.items():
            table, numbers = row.tables[kind], self._new_pages(kind, row, num_tokens)
            for number in numbers:
                if table[number % len(table)] >= 0:
                    pool.release(int(table[number % len(table)]))
                table[number % len(table)] = pool.take()
            end = max(end, numbers.stop)
        row.num_pages = end

    def _find_prefix(self, row: Row) -> None:
        """Holds the pages of the longest beginning that earlier requests share with it."""
        P, tokens = self._layout.page_tokens, row.request.tokens
        keys = page_keys(tokens[:-1], P)
        n = self._num_shared(keys)
        needed = {kind: self._context(kind, n * P) for kind in self._layout.kinds}
        for kind, numbers in needed.items():
            pool, table = self.pools[kind], row.tables[kind]
            for number in numbers:
                page = pool.find(keys[number])
                assert page is not None
                pool.hold(page)
                table[number % len(table)] = page
        row.num_cached, row.num_pages = n * P, n
        row.keys, row.num_published = keys[:n], n

    def _num_shared(self, keys: list[bytes]) -> int:
        """The most pages such that all is there that a token behind them sees."""
        runs = dict.fromkeys(self.pools, 0)  # how many pages in succession are there
        longest = 0
        for n, key in enumerate(keys, start=1):
            for kind, pool in self.pools.items():
                runs[kind] = runs[kind] + 1 if pool.find(key) is not None else 0
            tokens = n * self._layout.page_tokens
            if all(runs[kind] >= len(self._context(kind, tokens)) for kind in self.pools):
                longest = n
        return longest

    def _context(self, kind: str, num_tokens: int) -> range:
        """Numbers of the pages with what a token sees of the tokens before it."""
        first = int(self._layout.first_context_page(kind, num_tokens))
        return range(first, -(-num_tokens // self._layout.page_tokens))

    def publish(self, row: Row) -> None:
        """Lets later requests find the pages that are whole by now."""
        P = self._layout.page_tokens
        known = min(row.num_cached, len(row.request.tokens) - 1) // P
        if not row.shareable or known <= row.num_published:
            return
        row.keys = page_keys(row.request.tokens[: known * P], P, row.keys)
        for kind, pool in self.pools.items():
            table = row.tables[kind]
            first = max(row.num_published, row.num_pages - len(table))
            for number in range(first, known):
                pool.publish(int(table[number % len(table)]), row.keys[number])
        row.num_published = known

    # ------------------------------------------------------------ what to compute

    def next_pieces(self, num_tokens: int, taken: Sequence[Piece] = ()) -> list[Piece]:
        """Pieces of prompts for one row of a call: of them the first alone may have a context.

        ``taken`` are those that other rows of the call have.
        """
        pieces: list[Piece] = []
        others = [piece.row for piece in taken]
        for row in [row for row in self.rows if row.num_uncached > 0 and row not in others]:
            if num_tokens == 0 or (pieces and row.num_cached > 0) or row not in self.rows:
                continue
            count = min(num_tokens, row.num_uncached)
            context = self._context_pages(row)  # before its pages are taken for new tokens
            if self.make_room(row, row.num_cached + count, others):
                pieces.append(self._piece(row, count, context))
                num_tokens -= count
        return pieces

    def _context_pages(self, row: Row) -> dict[str, np.ndarray]:
        numbers = {kind: np.array(self._context(kind, row.num_cached), int) for kind in row.tables}
        return {kind: table[numbers[kind] % len(table)] for kind, table in row.tables.items()}

    def _piece(self, row: Row, count: int, context: dict[str, np.ndarray]) -> Piece:
        start, P = row.num_cached, self._layout.page_tokens
        numbers = np.arange(start, start + count) // P
        pages = {}
        for kind, table in row.tables.items():
            kept = numbers >= row.num_pages - len(table)
            pages[kind] = np.where(kept, table[numbers % len(table)], -1)
        tokens = row.request.tokens[start : start + count]
        row.num_cached += count
        return Piece(row, start, tokens, context, pages)

    def next_rows(self, num_steps: int, *, constrained: bool) -> list[Row]:
        """Rows that decode, with pages for so many steps."""
        for row in [row for row in self.rows if _decodes(row, constrained)]:
            if row in self.rows:
                last = row.request.limit - 1  # the last token is not computed
                self.make_room(row, min(row.num_cached + num_steps, last))
        return [row for row in self.rows if _decodes(row, constrained)]

    @property
    def num_prefilling(self) -> int:
        return sum(row.num_uncached > 0 for row in self.rows)


def _decodes(row: Row, constrained: bool) -> bool:
    wanted = (row.request.sampling.constraint is not None) == constrained
    return wanted and row.num_uncached == 0 and row.request.finish_reason is None
