"""Compiles constraints in threads, and keeps what was compiled: the way from a constraint to masks."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property

import numpy as np

from raysgl.grammar import limits
from raysgl.grammar.interface import CompilerStats, Grammar, GrammarError, Matcher
from raysgl.grammar.llguidance_backend import LLGuidance, LLPosition, threads_for
from raysgl.grammar.sandbox import Library, Sandbox
from raysgl.grammar.vocabulary import Vocabulary
from raysgl.sampling.constraint import Constraint

log = logging.getLogger(__name__)

SANDBOXES = 2
"""Constraints compiled at a time: one that takes long does not hold up all others."""


class GrammarCompiler:
    """See `interface.Grammars`. `compile` and `fill` belong to one thread.

    backend: auto, llguidance or xgrammar. seconds: a constraint that takes longer to compile is refused. Of compiled ones the
    `entries` used last are kept, as long as they take less than `num_bytes`; refused ones are remembered like them.
    """

    def __init__(self, vocabulary: Vocabulary, backend: str, seconds: float, entries: int, num_bytes: int):
        self.eos_token_ids = tuple(vocabulary.eos)
        self.special_token_ids = frozenset(vocabulary.special)
        self.num_words = -(-vocabulary.size // 32)
        self.stats = CompilerStats()
        self._vocabulary, self._backend, self._seconds = vocabulary, backend, seconds
        self._entries, self._num_bytes = entries, num_bytes
        self._compiled: OrderedDict[Constraint, Future[Grammar]] = OrderedDict()
        self._pool = ThreadPoolExecutor(SANDBOXES, thread_name_prefix="grammar")
        self._local = threading.local()
        self._sandboxes: list[Sandbox] = []
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Get ready in the background for the first constraint. llguidance holds Python's lock while it reads a tokenizer, a second
        for 128,000 tokens: whoever has a clock to keep should `wait` before."""
        self._tokenizer_read = self._pool.submit(lambda: self._llguidance)
        self._pool.submit(lambda: self._sandbox.start())

    def wait(self) -> None:
        """Until `warm_up` leaves Python to others. A failure is the first constraint's to tell."""
        wait([self._tokenizer_read])

    def compile(self, constraint: Constraint) -> Future[Grammar]:
        future = self._compiled.get(constraint)
        if future is not None:
            self.stats.hits += 1
            self._compiled.move_to_end(constraint)
            return future
        future = self._compiled[constraint] = self._pool.submit(self._compile, constraint)
        self._evict()
        return future

    def fill(self, matchers: Sequence[Matcher], bits_RW: np.ndarray) -> None:
        ours = [row for row, matcher in enumerate(matchers) if isinstance(matcher, LLPosition)]
        if len(ours) == len(matchers):
            self._llguidance.fill(matchers, bits_RW)
            return
        others = sorted(set(range(len(matchers))) - set(ours))
        for rows, library in ((ours, self._llguidance), (others, self._xgrammar)):
            if rows:
                part = np.empty((len(rows), bits_RW.shape[1]), np.int32)
                library.fill([matchers[row] for row in rows], part)
                bits_RW[rows] = part

    def close(self) -> None:
        """End the processes. Constraints that are being compiled fail."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for sandbox in self._sandboxes:
            sandbox.close()

    # ---------------------------------------------------------------- in the pool's threads

    def _compile(self, constraint: Constraint) -> Grammar:
        begin = time.perf_counter()
        try:
            limits.check(constraint)
            return self._first_that_takes(constraint, libraries_for(self._backend, constraint))
        except GrammarError:
            with self._lock:
                self.stats.refused += 1
            raise
        finally:
            with self._lock:
                self.stats.compiled += 1
                self.stats.seconds += time.perf_counter() - begin

    def _first_that_takes(self, constraint: Constraint, libraries: list[Library]) -> Grammar:
        first, *others = libraries
        try:
            data = self._sandbox.compile(constraint, first)
        except GrammarError:
            if not others:
                raise
            return self._first_that_takes(constraint, others)
        library = self._llguidance if first == "llguidance" else self._xgrammar
        return library.load(constraint, data)

    @property
    def _sandbox(self) -> Sandbox:
        """This thread's."""
        if not hasattr(self._local, "sandbox"):
            self._local.sandbox = Sandbox(self._vocabulary, self._seconds)
            self._sandboxes.append(self._local.sandbox)
        return self._local.sandbox

    @cached_property
    def _llguidance(self) -> LLGuidance:
        with self._lock:
            return LLGuidance(self._vocabulary, threads_for())

    @cached_property
    def _xgrammar(self):
        from raysgl.grammar.xgrammar_backend import XGrammar  # imports torch

        with self._lock:
            return XGrammar(self._vocabulary, threads_for())

    def _evict(self) -> None:
        """The oldest, until the bounds are kept. What is being compiled stays."""
        done = [(constraint, future) for constraint, future in self._compiled.items() if future.done()]
        sizes = [0 if future.exception() else future.result().num_bytes for _, future in done]
        total, count = sum(sizes), len(self._compiled)
        for (constraint, _), size in zip(done, sizes):
            if total <= self._num_bytes and count <= self._entries:
                return
            del self._compiled[constraint]
            total, count = total - size, count - 1


def libraries_for(backend: str, constraint: Constraint) -> list[Library]:
    """Who may compile it, best first. An EBNF that llguidance does not read may still be one for xgrammar."""
    if backend == "llguidance" or constraint.kind == "lark":
        return ["llguidance"]
    if backend == "xgrammar":
        return ["xgrammar"]
    if constraint.kind == "structural_tag":
        return ["llguidance", "xgrammar"]
    return ["llguidance", "xgrammar"] if constraint.kind == "ebnf" and "::=" in constraint.text else ["llguidance"]
