"""The two processes of `raysgl bench stream`: an ingress (all of it but Ray) and a made-up engine.

Everything between the model and the client is the real thing: engine loop, scheduler, ZeroMQ with CURVE, dispatcher,
detokeniser, HTTP. Only the runner is made up: its steps end on the beat, and its tokens are the time at which they were sampled.
Run as `python -m raysgl.bench.stream_peer engine|ingress`, with a `Spec` on stdin; each prints a line of JSON when it is up, and
the ingress one more at its end. Both end on SIGTERM.
"""

from __future__ import annotations

import asyncio
import math
import signal
import sys
import threading
import time
from collections.abc import Sequence

import msgspec
import tokenizers

from raysgl.engine.plan import StepPlan, StepResult, ints
from raysgl.messages import KVEvents
from raysgl.routing import ReplicaInfo
from raysgl.routing.messages import Reply

HOST = "127.0.0.1"
MODEL = "clock"
TICK_S = 0.0002
"""What a token id counts."""
VOCAB = 2**16
"""Ids wrap around after 13 s; no token is under way for so long."""
LAG_PROBE_S = 0.01


class Spec(msgspec.Struct):
    """What both processes are told. `engine` is what the engine printed; `keys` a CURVE pair. `streams`: that run at a time; as many may
    wait, or (`max_queue_seconds`) for as long as expected."""

    streams: int
    rate: float
    tokens: int
    port: int
    keys: tuple[str, str]
    engine: ReplicaInfo | None = None
    max_queue_seconds: float = 0.0

    @property
    def max_queued(self) -> int:
        return 10**6 if self.max_queue_seconds else self.streams


def ticks() -> int:
    """The machine's monotonic clock as a token id; all its processes read the same clock."""
    return int(time.monotonic() / TICK_S) % VOCAB


def age_s(tick: int) -> float:
    """Seconds since a token was sampled."""
    return (ticks() - tick) % VOCAB * TICK_S


class ClockStep:
    """A step that is over at `deadline` (time.monotonic())."""

    def __init__(self, deadline: float, samples: int):
        self._deadline = deadline
        self._samples = samples

    def wait(self, timeout: float | None) -> bool:
        left = self._deadline - time.monotonic()
        if left > 0:
            time.sleep(left if timeout is None else min(left, timeout))
        return time.monotonic() >= self._deadline

    def ending(self) -> bool:
        return True

    def result(self) -> StepResult:
        self.wait(None)
        return StepResult([ticks()] * self._samples)


class ClockRunner:
    """Ends a step every `period` seconds, whatever is in it."""

    def __init__(self, num_pages: int, period: float):
        self.num_pages = num_pages
        self._period = period
        self._last = 0.0

    def launch(self, plan: StepPlan) -> ClockStep:
        self._last = max(self._last, time.monotonic()) + self._period
        return ClockStep(self._last, int(ints(plan.samples_S).sum()))

    def sample(self, masks: object) -> None:
        raise AssertionError("none of its requests has a constraint")


class NoCoordinator:
    """Agrees to everything: there is one engine, and the ingress is told of it."""

    def register(self, shard: int) -> Reply:
        return Reply(1)

    def report(self, batch: KVEvents) -> Reply:
        return Reply(1)


def run_engine(spec: Spec) -> None:
    from raysgl.actors.engine_service import EngineService
    from raysgl.actors.transport import KeyPair, Transport
    from raysgl.engine.scheduler import SchedulerConfig

    page = 16
    pages = spec.streams * (spec.tokens // page + 8)
    config = SchedulerConfig(
        page_size=page,
        num_pages=pages,
        context_length=spec.tokens + 256,
        max_running=spec.streams,
        max_queued=spec.max_queued,
        step_tokens=8192,
        max_queue_seconds=spec.max_queue_seconds or math.inf,
    )
    done = threading.Event()

    def fatal(reason: str) -> None:
        print(reason, file=sys.stderr, flush=True)
        done.set()

    transport = Transport(HOST, KeyPair(*(key.encode() for key in spec.keys)))
    service = EngineService(
        "clock#0",
        1,
        config,
        ClockRunner(pages, 1 / spec.rate),
        transport,
        NoCoordinator(),
        fatal=fatal,
    )
    service.start()
    endpoint = service.inbox.endpoint
    info = ReplicaInfo(
        "clock#0", 1, MODEL, endpoint.address, {"curve": endpoint.public_key}, page_size=page, max_queued=spec.max_queued
    )
    _say(info)
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    done.wait()
    service.stop()


async def run_ingress(spec: Spec) -> None:
    from raysgl.actors.dispatcher import Dispatcher
    from raysgl.actors.http import HttpServer, listening_socket
    from raysgl.actors.transport import KeyPair, Transport
    from raysgl.api.app import create_app
    from raysgl.api.served_model import ServedModel
    from raysgl.config import ServerConfig
    from raysgl.routing import CoordinatorState, Mirror

    assert spec.engine is not None
    model = ServedModel(
        name=MODEL,
        model_path="",
        tokenizer=clock_tokenizer(),
        chat_template=None,
        context_length=spec.tokens + 256,
        vocab_size=VOCAB,
        eos_token_ids=(),
        max_total_tokens=spec.streams * (spec.tokens + 128),
    )
    transport = Transport(HOST, KeyPair(*(key.encode() for key in spec.keys)))
    mirror = Mirror("bench")
    state = CoordinatorState(epoch=1, now=time.monotonic(), settle_s=0.0)
    state.register(spec.engine, time.monotonic())
    mirror.apply(state.updates_since(*mirror.cursors[0], time.monotonic()), time.monotonic())
    dispatcher = Dispatcher(transport, "bench", {MODEL: model}, mirror)
    dispatcher.connect(spec.engine)
    config = ServerConfig(port=spec.port, drain_timeout_s=1)
    server = HttpServer(create_app(dispatcher, config), listening_socket(HOST, spec.port), config.drain_timeout_s, config)
    await server.started()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    _say({"port": spec.port})
    lags: list[float] = []
    before = time.process_time()
    while not stopped.is_set():
        due = time.monotonic() + LAG_PROBE_S
        await asyncio.sleep(LAG_PROBE_S)
        lags.append(time.monotonic() - due)
        mirror.take_routed()
    used = time.process_time() - before
    await server.drain()
    dispatcher.close()
    _say({"lags": lags, "cpu_s": used})


def clock_tokenizer():
    """Token n is the text " n"."""
    from raysgl.api.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer(tokenizers.models.BPE({f"Ġ{n}": n for n in range(VOCAB)}, []))
    backend.decoder = tokenizers.decoders.ByteLevel()
    return Tokenizer(backend)


def _say(what: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


def main(arguments: Sequence[str]) -> None:
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=Spec)
    if arguments == ["engine"]:
        run_engine(spec)
    else:
        import uvloop

        uvloop.run(run_ingress(spec))


if __name__ == "__main__":
    main(sys.argv[1:])
