"""Who holds which page of the pool, and which full pages are shared.

A page is free, or held by any number of sequences and readers. A *sealed* page is full, will never change and has a
content id (`content_ids`): sequences with the same beginning hold the same page. A page without a holder is free at
once.
"""

from collections.abc import Iterable


class PagePool:
    """Page numbers 0 to num_pages - 1. Used on the engine's thread alone."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._ids: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Take `count` free pages, each with one holder; that many must be free.

        Ascending, so that neighbours are written at once.
        """
        assert count <= len(self._free), (count, len(self._free))
        pages = sorted(self._free.pop() for _ in range(count))
        for page in pages:
            self._holders[page] = 1
        return pages

    def hold(self, pages: Iterable[int]) -> None:
        for page in pages:
            assert self._holders[page] > 0, page
            self._holders[page] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """One holder less; a page without any is free again."""
        for page in pages:
            self._holders[page] -= 1
            assert self._holders[page] >= 0, page
            if self._holders[page] == 0:
                self._pages.pop(self._ids.pop(page, b""), None)
                self._free.append(page)

    def seal(self, page: int, page_id: bytes) -> int:
        """Make a full page shareable; returns the page to hold, another one if its content is here already."""
        known = self._pages.setdefault(page_id, page)
        if known == page:
            self._ids[page] = page_id
            return page
        self.hold([known])
        self.drop([page])
        return known

    def find(self, page_id: bytes) -> int | None:
        """The page with that content, if it is in memory."""
        return self._pages.get(page_id)
