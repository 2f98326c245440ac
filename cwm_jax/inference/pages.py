"""Which pages of a cache are free, held by requests, or kept for requests that begin alike.

Without JAX: pages are numbers here.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np


def page_keys(tokens: Sequence[int], page_tokens: int, keys: Sequence[bytes] = ()) -> list[bytes]:
    """A key for each whole page of a row: of its tokens and all before them.

    ``keys`` are those of the first pages, if they are known.
    """
    keys = list(keys)
    for start in range(len(keys) * page_tokens, len(tokens) - page_tokens + 1, page_tokens):
        digest = hashlib.blake2b(keys[-1] if keys else b"", digest_size=16)
        digest.update(np.asarray(tokens[start : start + page_tokens], np.int32).tobytes())
        keys.append(digest.digest())
    return keys


class PagePool:
    """The pages of one kind of layer."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages))[::-1]
        self._holders = [0] * num_pages
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        """With a key and without holder; the one that has been so for longest is first."""

    @property
    def num_free(self) -> int:
        """Pages that can be taken, those that are kept included."""
        return len(self._free) + len(self._idle)

    @property
    def num_kept(self) -> int:
        """Pages without holder that a request with the same beginning would find."""
        return len(self._idle)

    def take(self) -> int:
        """A page for new tokens; there must be one."""
        page = self._free.pop() if self._free else self._idle.popitem(last=False)[0]
        self._forget(page)
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One more holder of a page that ``find`` gave."""
        self._idle.pop(page, None)
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """One holder less."""
        self._holders[page] -= 1
        assert self._holders[page] >= 0, f"page {page} was released more often than held"
        if self._holders[page] == 0:
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)

    def held_once(self, page: int) -> bool:
        """Whether its only holder's release would free it."""
        return self._holders[page] == 1

    def publish(self, page: int, key: bytes) -> None:
        """The page is whole: a request with the same beginning may hold it, too."""
        assert page >= 0, "a row without its pages was published"
        if key not in self._page_of and page not in self._key_of:
            self._key_of[page], self._page_of[key] = key, page

    def find(self, key: bytes) -> int | None:
        """The page with that key."""
        return self._page_of.get(key)

    def forget_all(self) -> None:
        """No page is found any more; those who hold one keep it."""
        self._free += self._idle
        self._idle.clear()
        self._key_of.clear()
        self._page_of.clear()

    def _forget(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]
