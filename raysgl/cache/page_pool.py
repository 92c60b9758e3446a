"""Which pages of the KV pool are free."""

from __future__ import annotations

from collections.abc import Iterable


class OutOfPages(Exception):
    """More pages were asked for than are free; the caller should have evicted or waited."""


class PagePool:
    """Hands out page numbers 1..num_pages. Page 0 is padding and never handed out."""

    def __init__(self, num_pages: int):
        if num_pages < 1:
            raise ValueError(f"num_pages is {num_pages}, but must be at least 1")
        self.num_pages = num_pages
        # A stack whose top is the page freed last: its memory is the likeliest to be warm. Low numbers go out first.
        self._free = list(range(num_pages, 0, -1))
        self._in_use = bytearray(num_pages + 1)

    @property
    def available(self) -> int:
        """Pages that `allocate` could hand out now."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages. Raises `OutOfPages` (and takes none) when fewer are available."""
        if count > len(self._free):
            raise OutOfPages(f"{count} pages were asked for and {len(self._free)} of {self.num_pages} are free")
        if count <= 0:
            return []
        pages = self._free[-count:]
        del self._free[-count:]
        pages.reverse()
        for page in pages:
            self._in_use[page] = 1
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Give pages back. Raises ValueError for a page that is not in use: freed twice, or never handed out."""
        for page in pages:
            if not 0 < page <= self.num_pages or not self._in_use[page]:
                raise ValueError(f"page {page} is freed but not in use")
            self._in_use[page] = 0
            self._free.append(page)

    def in_use(self, page: int) -> bool:
        """Whether this page is handed out."""
        return bool(self._in_use[page])
