"""The page pool hands out each page once and notices misuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysgl.cache import OutOfPages, PagePool


@given(st.integers(1, 20), st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=40))
def test_pages_are_handed_out_once(size, actions):
    pool = PagePool(size)
    held: list[int] = []
    for take, count in actions:
        if take and count > pool.available:
            before = pool.available
            with pytest.raises(OutOfPages):
                pool.allocate(count)
            assert pool.available == before
        elif take:
            pages = pool.allocate(count)
            assert len(pages) == count and not set(pages) & set(held) and all(1 <= page <= size for page in pages)
            held += pages
        else:
            pool.free(held[:count])
            del held[:count]
        assert pool.available + len(held) == size
        assert all(pool.in_use(page) == (page in held) for page in range(1, size + 1))


def test_misuse_is_noticed():
    pool = PagePool(4)
    (page,) = pool.allocate(1)
    pool.free([page])
    for bad in (page, 0, -1, 5):
        with pytest.raises(ValueError, match="not in use"):
            pool.free([bad])
    with pytest.raises(ValueError):
        PagePool(0)
