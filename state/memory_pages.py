"""Pages: Python objects by key, pickled together with their neighbours and only when changed.

Objects live in one flat dict; pages are for sealing. A page holds the keys of one 16,384th of the
hash space, so it lies in one key group. Promises: a seal pickles only pages that changed since the
last one and reuses the other pages' bytes; all pickling is in seal(), in the caller's thread, so
what is sealed cannot change afterwards.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.errors import StateError
from penstock.elements.keygroup import KeyGroupRange
from penstock.elements.keys import canonical_key

from .clip import clip_to_groups
from .pickling import dump_value, load_value

PAGE_SHIFT = 64 - 14
"""A page number is the top 14 bits of the hash. Coarser pages are cheaper when most keys change
between two cuts, finer ones when few do: at a million keys a page holds 61."""

PAGE_SCHEMA = pa.schema([("_hash", pa.uint64()), ("page", pa.large_binary())])


class Page:
    """Keys that are pickled together, in order of arrival."""

    __slots__ = ("keys", "number", "sealed")

    def __init__(self, number: int) -> None:
        self.number = number
        self.keys: dict[Hashable, None] = {}
        self.sealed: bytes | None = None


class SealedPages:
    """The bytes of all pages at a cut."""

    def __init__(self, numbers: npt.NDArray[np.uint64], pages: list[bytes]) -> None:
        self._numbers = numbers
        self._pages = pages

    def batch(self) -> pa.RecordBatch:
        """One row per page, by hash. One call into Arrow, no Python per row."""
        order = np.argsort(self._numbers, kind="stable")
        pages = pa.array(self._pages, pa.large_binary()).take(pa.array(order))
        hashes = self._numbers[order] << np.uint64(PAGE_SHIFT)
        return pa.RecordBatch.from_arrays([pa.array(hashes), pages], schema=PAGE_SCHEMA)


class PageStore:
    """A dict from key to value that knows which pages changed.

    `values` is what is live, flat; `dirty` holds a 1 for each page in which something was written,
    removed or handed out since the last seal. Both stay the same objects, so that user code's state
    is read and written without a call of ours; only a new key must go through put().
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self.values: dict[Hashable, Any] = {}
        self.dirty = bytearray(1 << (64 - PAGE_SHIFT))
        self._pages: dict[int, Page] = {}
        self._page_of: dict[Hashable, Page] = {}

    def put(self, key: Hashable, hash64: int, value: Any) -> None:
        """Insert or replace."""
        if key not in self.values:
            page = self._page(hash64 >> PAGE_SHIFT)
            page.keys[key] = None
            self._page_of[key] = page
        self.values[key] = value
        self.dirty[hash64 >> PAGE_SHIFT] = 1

    def touch(self, key: Hashable) -> None:
        """The value of this key, if it has one, may have been changed in place."""
        page = self._page_of.get(key)
        if page is not None:
            self.dirty[page.number] = 1

    def remove(self, key: Hashable) -> None:
        """Forget; unknown keys are ignored."""
        page = self._page_of.pop(key, None)
        if page is not None:
            del self.values[key]
            del page.keys[key]
            self.dirty[page.number] = 1

    def stored(self, key: Hashable) -> Any:
        """What is pickled for a live key."""
        return self.values[key]

    def seal_pages(self) -> SealedPages:
        """Pickle what changed; keep the rest."""
        for number in np.flatnonzero(np.frombuffer(self.dirty, np.uint8)).tolist():
            page = self._pages.get(number)
            if page is not None and page.keys:
                page.sealed = self._dump(page)
            elif page is not None:
                del self._pages[number]
            # Not before: a value that cannot be pickled stays to be written.
            self.dirty[number] = 0
        numbers = np.fromiter(self._pages, np.uint64, len(self._pages))
        sealed = [page.sealed for page in self._pages.values()]
        return SealedPages(numbers, sealed)  # type: ignore[arg-type]  # all are sealed by now

    def restore_pages(
        self,
        batch: pa.RecordBatch,
        groups: KeyGroupRange,
        canonical: Callable[[Any], Any] = canonical_key,
    ) -> None:
        """Take the pages that belong to `groups`."""
        batch = clip_to_groups(batch, groups)
        numbers = (batch.column("_hash").to_numpy() >> np.uint64(PAGE_SHIFT)).tolist()
        collects = gc.isenabled()
        gc.disable()  # it would walk all the state again and again while the state grows
        try:
            for number, stored in zip(numbers, batch.column("page"), strict=True):
                body = stored.as_py()
                loaded = {canonical(key): value for key, value in self._load(body).items()}
                self._adopt(self._page(number), loaded, body)
        finally:
            if collects:
                gc.enable()

    def _adopt(self, page: Page, data: dict[Hashable, Any], body: bytes) -> None:
        if page.keys:
            self.dirty[page.number] = 1  # written with finer pages than these
        else:
            page.sealed = body
        page.keys.update(dict.fromkeys(data))
        self.values.update(data)
        self._page_of.update(dict.fromkeys(data, page))

    def _page(self, number: int) -> Page:
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = Page(number)
        return page

    def _dump(self, page: Page) -> bytes:
        content = {key: self.stored(key) for key in page.keys}
        try:
            return dump_value(content)
        except Exception as error:
            raise self._unpicklable(content, error) from error

    def _unpicklable(self, content: dict[Hashable, Any], error: Exception) -> StateError:
        for key, value in content.items():
            try:
                dump_value((key, value))
            except Exception as cause:
                return StateError(
                    f"{self._title}: the value of key {key!r}, a {type(value).__name__}, cannot be "
                    f"pickled: {cause}\n  Keep plain data in state and open connections in open()."
                )
        return StateError(f"{self._title} cannot be pickled: {error}")

    def _load(self, body: bytes) -> dict[Hashable, Any]:
        try:
            loaded = load_value(body)
        except Exception as error:
            raise StateError(
                f"{self._title} cannot be restored: {type(error).__name__}: {error}\n"
                "  The class of a stored value has moved or changed: put it back under its old "
                "name, or start with --fresh."
            ) from error
        assert isinstance(loaded, dict)
        return loaded
