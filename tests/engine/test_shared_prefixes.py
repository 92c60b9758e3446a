"""Groups of sequences that share a prefix, against the sequences' own page lists."""

from __future__ import annotations

import random

from raysgl.cache.page_pool import PagePool
from raysgl.cache.radix_tree import RadixTree
from raysgl.engine.sequence import Sequence
from raysgl.engine.shared_prefixes import find_groups
from raysgl.sampling.params import SamplingParams

PAGE = 16


def decoding(prompts):
    """Sequences of these prompts as the scheduler holds them: whole pages in the tree, locked."""
    tree, pool, sequences = RadixTree(PAGE), PagePool(100_000), []
    for uid, prompt in enumerate(prompts):
        full = len(prompt) // PAGE * PAGE
        match = tree.match(prompt)
        pages = match.pages + pool.allocate(full // PAGE - len(match.pages))
        node = tree.insert(prompt[:full], pages).node
        tree.lock(node)
        seq = Sequence(uid, "i", "r", SamplingParams(), 0, frozenset(), prompt, len(prompt), 10**6, [])
        seq.node, seq.pages, seq.num_computed, seq.decoding = node, pages, len(prompt), True
        sequences.append(seq)
    return sequences


def tokens(count, seed):
    draw = random.Random(seed)
    return [draw.randrange(1000) for _ in range(count)]


def check(sequences, groups):
    for group, shared in enumerate(groups.pages):
        members = [seq for seq, g in zip(sequences, groups.rows, strict=True) if g == group]
        assert len(members) >= 2
        assert all(seq.pages[:shared] == members[0].pages[:shared] for seq in members)


def test_nothing_shared():
    assert find_groups(decoding([tokens(600, i) for i in range(5)]), PAGE) is None


def test_a_short_prefix_does_not_pay():
    assert find_groups(decoding([tokens(64, 0) + tokens(600, i) for i in range(5)]), PAGE) is None


def test_groups_by_prefix():
    prefixes = [tokens(512, 100 + i) for i in range(3)]
    sequences = decoding([prefixes[i % 3] + tokens(40, i) for i in range(12)] + [tokens(300, 77)])
    groups = find_groups(sequences, PAGE)
    check(sequences, groups)
    assert sorted(groups.pages) == [32, 32, 32]
    assert groups.rows[12] == -1
    assert groups.rows[:12] == [groups.rows[i % 3] for i in range(12)]


def test_the_prefix_that_saves_most_is_taken():
    system = tokens(320, 1)
    documents = [system + tokens(2048, 10 + i) for i in range(2)]
    sequences = decoding([documents[i % 2] + tokens(50, 100 + i) for i in range(8)])
    groups = find_groups(sequences, PAGE)
    check(sequences, groups)
    assert sorted(groups.pages) == [148, 148]
    sequences = decoding([system + tokens(400, 100 + i) for i in range(30)] + [documents[0] + tokens(30, 3)])
    groups = find_groups(sequences, PAGE)
    check(sequences, groups)
    assert groups.pages == [20] and groups.rows == [0] * 31


def test_random_trees():
    draw = random.Random(5)
    for seed in range(30):
        prompts = [tokens(draw.randrange(300, 700), seed)]
        for _ in range(draw.randrange(2, 25)):
            base = draw.choice(prompts)
            prompts.append(base[: draw.randrange(1, len(base))] + tokens(draw.randrange(20, 300), draw.random()))
        sequences = decoding(prompts)
        groups = find_groups(sequences, PAGE)
        if groups is not None:
            check(sequences, groups)
