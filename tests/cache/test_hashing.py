"""Page hashes: the same everywhere, one chain per extra key, whole pages only."""

import json
import subprocess
import sys
from array import array

from hypothesis import given
from hypothesis import strategies as st

from raysgl.cache.hashing import extend_hashes, page_hashes, root_hash
from raysgl.messages import pack_ids

ids = st.lists(st.integers(0, 2**31 - 1), max_size=60)


@given(ids, st.integers(1, 7), st.integers(0, 60), st.sampled_from(["", "lora-a"]))
def test_a_chain_can_be_continued_anywhere(tokens, page_size, cut, extra_key):
    whole = page_hashes(tokens, page_size, extra_key)
    assert len(whole) == len(tokens) // page_size
    pages = min(cut, len(whole))
    parent = whole[pages - 1] if pages else root_hash(extra_key)
    assert whole[:pages] + extend_hashes(parent, tokens[pages * page_size :], page_size) == whole


@given(ids)
def test_every_form_of_tokens_hashes_alike(tokens):
    assert page_hashes(tokens, 4) == page_hashes(pack_ids(tokens), 4) == page_hashes(array("i", tokens), 4)
    assert page_hashes(tokens, 4) == page_hashes(tuple(tokens), 4) == page_hashes(array("q", tokens), 4)


def test_prefix_extra_key_and_order_count():
    a = page_hashes([1, 2, 3, 4, 5, 6, 7, 8], 4)
    assert page_hashes([1, 2, 3, 4, 5, 6, 7, 9], 4)[0] == a[0]
    assert page_hashes([1, 2, 3, 4, 5, 6, 7, 9], 4)[1] != a[1]
    assert page_hashes([1, 2, 3, 5, 5, 6, 7, 8], 4)[1] != a[1]
    assert not set(page_hashes([1, 2, 3, 4, 5, 6, 7, 8], 4, "salt")) & set(a)
    repeated = page_hashes([7] * 64, 4)
    assert len(set(repeated)) == 16 and 0 not in repeated


def test_the_values_are_fixed():
    """They travel between processes of perhaps different versions; changing them empties every index."""
    expected = [11660027832386793900, 2615516339191896381]
    code = "from raysgl.cache.hashing import page_hashes; print(page_hashes(range(8), 4))"
    other_process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert page_hashes(list(range(8)), 4) == expected == json.loads(other_process)
