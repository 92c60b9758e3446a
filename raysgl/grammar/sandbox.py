"""Every constraint is compiled in a process of its own first: one that takes too long, or too much memory, or breaks the library,
costs that process and not the engine.

Grammars of llguidance are cheap once they are known to be harmless, so they are compiled again where they are used; those of
xgrammar travel as bytes. One compiles at a time in each process. Frames are msgpack behind four bytes of length, over its pipes.
"""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np

from raysgl.grammar.interface import GrammarError, Matcher
from raysgl.grammar.vocabulary import Vocabulary
from raysgl.sampling.constraint import Constraint

Library = Literal["llguidance", "xgrammar"]

START_S = 120.0
"""For imports and the tokenizer."""
TRIAL_TOKENS = 16
SLOW_MASK_S = 0.5
"""A grammar whose masks take longer on its first tokens holds up everyone."""
MEMORY = 2 << 30
"""Address space beyond what the libraries take."""
TOO_MUCH_MEMORY = "compiling it takes too much memory, or too deep a recursion"


class Setup(msgspec.Struct):
    vocabulary: Vocabulary
    seconds: float


class Job(msgspec.Struct):
    """Compile a constraint; without one, get the library ready."""

    library: Library
    constraint: Constraint | None = None


class Answer(msgspec.Struct):
    """refusal: why the library does not take it, else empty. data: of xgrammar."""

    refusal: str = ""
    data: bytes = b""


class Sandbox:
    """The parent's end of one such process, which starts with the first constraint. Not thread safe."""

    def __init__(self, vocabulary: Vocabulary, seconds: float):
        self._setup = msgspec.msgpack.encode(Setup(vocabulary, seconds))
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: set[Library] = set()

    def start(self) -> None:
        """Unless it runs. RuntimeError where it does not come up."""
        if self._process is not None and self._process.poll() is None:
            return
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raysgl.grammar.sandbox"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._ready.clear()
        self._prepare(self._setup)

    def compile(self, constraint: Constraint, library: Library) -> bytes:
        """What `Answer.data` says. GrammarError, also for what takes too long."""
        self.start()
        if library not in self._ready:
            self._prepare(msgspec.msgpack.encode(Job(library)))
            self._ready.add(library)
        try:
            frame = self._ask(msgspec.msgpack.encode(Job(library, constraint)), self._seconds)
        except TimeoutError:
            self.close()
            raise GrammarError(f"it takes more than {self._seconds:g} s to compile") from None
        except EOFError:
            self.close()
            raise GrammarError(TOO_MUCH_MEMORY) from None
        answer = msgspec.msgpack.decode(frame, type=Answer)
        if answer.refusal:
            raise GrammarError(answer.refusal)
        return answer.data

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _prepare(self, frame: bytes) -> None:
        try:
            self._ask(frame, START_S)
        except (TimeoutError, EOFError) as error:
            self.close()
            raise RuntimeError("the process that compiles grammars does not start") from error

    def _ask(self, frame: bytes, seconds: float) -> bytes:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            _write(process.stdin, frame)
        except BrokenPipeError:
            raise EOFError from None
        if not select.select([process.stdout], [], [], seconds)[0]:
            raise TimeoutError
        return _read(process.stdout)


def _write(pipe: BinaryIO, frame: bytes) -> None:
    pipe.write(struct.pack("<I", len(frame)) + frame)
    pipe.flush()


def _read(pipe: BinaryIO) -> bytes:
    """EOFError at the end."""
    head = pipe.read(4)
    if len(head) < 4:
        raise EOFError
    size = struct.unpack("<I", head)[0]
    frame = pipe.read(size)
    if len(frame) < size:
        raise EOFError
    return frame


# ------------------------------------------------------------------ in the process


class Compilers:
    """Libraries are loaded when they are first needed: xgrammar imports torch."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._libraries: dict[Library, Any] = {}
        self._load("llguidance")

    def answer(self, job: Job) -> Answer:
        try:
            self._load(job.library)
            return Answer(data=self._compile(job.constraint, self._libraries[job.library])) if job.constraint else Answer()
        except GrammarError as error:
            return Answer(refusal=str(error))
        except ImportError as error:
            return Answer(refusal=f"{job.library} is not installed ({error})")
        except MemoryError:
            return Answer(refusal=TOO_MUCH_MEMORY)

    def _load(self, library: Library) -> None:
        if library in self._libraries:
            return
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if library == "llguidance":
            from raysgl.grammar.llguidance_backend import LLGuidance

            self._libraries[library] = LLGuidance(self._vocabulary)
        else:
            from raysgl.grammar.xgrammar_backend import XGrammar

            self._libraries[library] = XGrammar(self._vocabulary)
        with open("/proc/self/statm") as statm:
            taken = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))

    def _compile(self, constraint: Constraint, library: Any) -> bytes:
        data = library.compile(constraint)
        self._try(library, library.load(constraint, data).matcher())
        return data

    def _try(self, library: Any, matcher: Matcher) -> None:
        """Go a few random tokens into the grammar. Some show only then what they cost."""
        bits_1W = np.zeros((1, -(-self._vocabulary.size // 32)), np.int32)
        source, ends = random.Random(0), set(self._vocabulary.eos)
        for _ in range(TRIAL_TOKENS):
            begin = time.perf_counter()
            library.fill([matcher], bits_1W)
            if time.perf_counter() - begin > SLOW_MASK_S:
                raise GrammarError(f"a token of it takes more than {SLOW_MASK_S:g} s")
            if (reason := matcher.error()) is not None:
                raise GrammarError(reason)
            allowed = np.flatnonzero(np.unpackbits(bits_1W.view(np.uint8), bitorder="little"))
            token = int(source.choice(allowed)) if len(allowed) else None
            if token is None:
                raise GrammarError("no text of the vocabulary's tokens fits it")
            if token in ends or not matcher.accept(token) or matcher.ended():
                return


def main() -> None:
    """Serve until the parent closes the pipe. A parent that died without a word is noticed by the alarm."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    os.nice(5)
    setup = msgspec.msgpack.decode(_read(requests), type=Setup)
    compilers = Compilers(setup.vocabulary)
    _write(answers, b"")
    decoder = msgspec.msgpack.Decoder(Job)
    while True:
        try:
            job = decoder.decode(_read(requests))
        except EOFError:
            return
        signal.alarm(int(setup.seconds if job.constraint else START_S) + 10)
        answer = compilers.answer(job)
        signal.alarm(0)
        _write(answers, msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    main()
