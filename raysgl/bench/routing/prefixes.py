"""All prompts of a workload as one tree whose edges are runs of pages.

Prompts of a workload are known before it is simulated, so the tree of everything that could ever be cached is too. A replica's
cache is then "how many pages of which edge", and costs as much per request as its path has edges (two to ten), not pages (hundreds).
"""

from __future__ import annotations

from collections.abc import Sequence


class Edge:
    """A run of pages that no prompt leaves, enters or ends within. depth: pages from the root to its start."""

    __slots__ = ("children", "depth", "hashes", "index", "parent", "size")

    def __init__(self, parent: Edge | None, hashes: list[int], depth: int):
        self.parent = parent
        self.hashes = hashes
        self.size = len(hashes)
        self.depth = depth
        self.index = -1
        self.children: dict[int, Edge] = {}

    @property
    def last_hash(self) -> int:
        """What the pages after it chain on from; 0 at the root."""
        return self.hashes[-1] if self.hashes else 0


class PrefixTree:
    """Add all chains, then ask for their paths."""

    def __init__(self) -> None:
        self.root = Edge(None, [], 0)
        self.edges: list[Edge] = []

    def add(self, chain: Sequence[int], cuts: Sequence[int] = ()) -> int:
        """A chain of page hashes; `cuts` are depths where an edge must end. Returns how many pages were new."""
        new = 0
        for end in (*sorted(cuts), len(chain)):
            new += self._add(chain[:end])
        return new

    def path(self, chain: Sequence[int]) -> list[Edge]:
        """The edges along a chain that was added, root side first. Numbers edges that have none yet."""
        node, depth, path = self.root, 0, []
        while depth < len(chain):
            node = node.children[chain[depth]]
            depth += node.size
            if node.index < 0:
                node.index = len(self.edges)
                self.edges.append(node)
            path.append(node)
        return path

    def _add(self, chain: Sequence[int]) -> int:
        node, depth = self.root, 0
        while depth < len(chain):
            child = node.children.get(chain[depth])
            if child is None:
                node.children[chain[depth]] = Edge(node, list(chain[depth:]), depth)
                return len(chain) - depth
            part = chain[depth : depth + child.size]
            if list(part) != child.hashes:
                same = next((i for i, (a, b) in enumerate(zip(part, child.hashes)) if a != b), len(part))
                child = self._split(child, same)
            node, depth = child, depth + child.size
        return 0

    def _split(self, edge: Edge, size: int) -> Edge:
        assert edge.parent is not None
        upper = Edge(edge.parent, edge.hashes[:size], edge.depth)
        edge.parent.children[upper.hashes[0]] = upper
        edge.hashes = edge.hashes[size:]
        edge.size = len(edge.hashes)
        edge.depth += size
        edge.parent = upper
        upper.children[edge.hashes[0]] = edge
        return upper
