"""Which pages of a key-value cache are free and who holds which; integers only, the tensors are the runner's.

A sequence grows page by page, and attention reads a sequence whose pages are one ascending run without copying. So a
new sequence starts in the middle of the largest gap, where it has most room, and grows from its own last page on.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class OutOfPages(RuntimeError):
    """Fewer pages are free than were asked for; nothing has been taken."""


class IntegrityError(RuntimeError):
    """Page bookkeeping contradicts itself: a bug, after which no cache content can be trusted."""


class PagePool:
    """Pages 0…num_pages-1 with a count of holders each."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"a pool of {num_pages} pages cannot hold anything")
        self.num_pages = num_pages
        self._holders = [0] * num_pages
        self._is_free = bytearray(b"\x01" * num_pages)
        self._num_free = num_pages

    @property
    def num_free(self) -> int:
        return self._num_free

    def allocate(self, num: int, after: int | None = None) -> list[int]:
        """Take `num` pages, following page `after` where that is possible.

        Raises:
            OutOfPages: fewer are free.
        """
        if num > self._num_free:
            raise OutOfPages(f"{num} pages wanted, {self._num_free} of {self.num_pages} free")
        start = self._run_start(num) if after is None else after + 1
        pages = self._run_from(start, num)
        for page in pages:
            self._take(page)
        while len(pages) < num:  # the run is blocked: whole pieces first, so that large gaps stay
            rest = num - len(pages)
            start = self._is_free.find(b"\x01" * rest)
            piece = self._run_from(start if start >= 0 else self._is_free.find(1), rest)
            for page in piece:
                self._take(page)
            pages += piece
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add a holder to pages that are held already."""
        for page in pages:
            assert self._holders[page] > 0, f"page {page} is free and cannot be shared"
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Give up one hold on each page; the last one frees it."""
        for page in pages:
            if self._holders[page] <= 0:
                raise IntegrityError(f"page {page} was released but nobody held it")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._is_free[page] = 1
                self._num_free += 1

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Compare with what the holders say they hold.

        Raises:
            IntegrityError: a page has another number of holders than counted, or the free count is wrong.
        """
        counted = Counter(page for pages in held for page in pages)
        wrong = [p for p in range(self.num_pages) if self._holders[p] != counted[p]]
        if wrong:
            page = wrong[0]
            raise IntegrityError(
                f"{len(wrong)} pages miscounted; page {page} has {self._holders[page]} holds, "
                f"its holders name {counted[page]}"
            )
        num_free = sum(self._is_free)
        if num_free != self._num_free or num_free != self._holders.count(0):
            raise IntegrityError(
                f"{num_free} pages marked free, {self._num_free} counted, "
                f"{self._holders.count(0)} without a holder"
            )

    def _take(self, page: int) -> None:
        self._holders[page] = 1
        self._is_free[page] = 0
        self._num_free -= 1

    def _run_from(self, start: int, num: int) -> list[int]:
        """Up to `num` free pages in ascending order from `start` on."""
        used = self._is_free.find(0, start)
        end = min(start + num, self.num_pages if used < 0 else used)
        return list(range(start, end))

    def _run_start(self, num: int) -> int:
        """Where a new sequence has most room to grow: half-way into the largest gap."""
        best_start, best_len = 0, 0
        start = self._is_free.find(1)
        while start >= 0:
            end = self._is_free.find(0, start)
            end = self.num_pages if end < 0 else end
            if end - start > best_len:
                best_start, best_len = start, end - start
            start = self._is_free.find(1, end)
        room = best_len - num
        return best_start if best_start == 0 or room <= 0 else best_start + room // 2


@dataclass(slots=True)
class PrefixCache:
    """Pages of prompt beginnings that many conversations share, by their token ids; least recently used goes first.

    The cache is one more holder of the pages, so a prefix outlives the conversation that computed it.
    """

    pool: PagePool
    page_size: int
    max_entries: int = 16
    _pages: OrderedDict[tuple[int, ...], list[int]] = field(default_factory=OrderedDict)

    def lookup(self, token_ids: Sequence[int]) -> list[int]:
        """The pages of this beginning, with a hold for the caller; empty if it is not known."""
        key = self._key(token_ids)
        pages = self._pages.get(key)
        if pages is None:
            return []
        self._pages.move_to_end(key)
        self.pool.share(pages)
        return list(pages)

    def insert(self, token_ids: Sequence[int], pages: Sequence[int]) -> None:
        """Remember `pages`, which now hold the keys and values of this beginning."""
        key = self._key(token_ids)
        if not key or key in self._pages:
            return
        kept = list(pages[: len(key) // self.page_size])
        self.pool.share(kept)
        self._pages[key] = kept
        while len(self._pages) > self.max_entries:
            self.evict()

    def evict(self) -> bool:
        """Give up the entry that was not used for longest; False if there is none."""
        if not self._pages:
            return False
        _, pages = self._pages.popitem(last=False)
        self.pool.release(pages)
        return True

    def held(self) -> list[list[int]]:
        return list(self._pages.values())

    def _key(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Whole pages only, and never the last token: its hidden state must be computed by someone."""
        whole = (len(token_ids) - 1) // self.page_size * self.page_size
        return tuple(token_ids[:whole])
