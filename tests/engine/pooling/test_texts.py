"""Which texts a step computes, and what becomes of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raysgl.engine.pooling.texts import TextScheduler, TextsConfig
from raysgl.messages import Submit, pack_ids
from raysgl.sampling.params import SamplingParams


def submit(uid: int, length: int, ingress: str = "i", **settings) -> Submit:
    ids = pack_ids([uid % 100] * length)
    return Submit(uid, settings.pop("request_id", f"r{uid}"), ingress, ids, SamplingParams(), [], **settings)


def scheduler(**settings) -> TextScheduler:
    return TextScheduler(
        TextsConfig(**{"context_length": 50, "max_running": 4, "max_queued": 100, "step_tokens": 60, **settings})
    )


def run(texts: TextScheduler) -> list[int]:
    """One step; each text's result is its first token."""
    step = texts.schedule()
    texts.process(step, np.array([[ids[0]] for ids in step.plan.token_ids], dtype=np.float32))
    return [text.uid for text in step.texts]


def results(texts: TextScheduler) -> dict[int, float | str]:
    """uid -> its number, or why there is none; of all ingresses."""
    found = {}
    for outputs in texts.outputs.take().values():
        for output in outputs:
            found[output.uid] = np.frombuffer(output.numbers, "<f4")[0] if output.numbers else output.finish.message
    return found


def test_steps_are_filled_up_to_the_budget():
    texts = scheduler()
    for uid, length in enumerate([30, 30, 1, 50, 50, 1, 1, 1, 1]):
        texts.add(submit(uid, length))
    assert [run(texts) for _ in range(3)] == [[0, 1], [2, 3], [4, 5, 6, 7]]
    assert run(texts) == [8] and texts.idle and texts.schedule() is None


def test_a_text_beyond_the_budget_runs_alone():
    texts = scheduler(step_tokens=10)
    for uid, length in enumerate([2, 40, 2]):
        texts.add(submit(uid, length))
    assert [run(texts) for _ in range(3)] == [[0], [1], [2]]


def test_priority_then_arrival():
    texts = scheduler(max_running=1)
    for uid, priority in enumerate([0, 5, 0, 5, -1]):
        texts.add(submit(uid, 1, priority=priority))
    assert [run(texts)[0] for _ in range(5)] == [1, 3, 0, 2, 4]


def test_a_point_of_priority_is_worth_ten_seconds_of_tokens():
    texts = scheduler(max_running=1, context_length=1000)
    texts.measured(20.0)
    for uid in range(3):
        texts.add(submit(uid, 150, request_id="first"))  # turns 0, 150, 300
    texts.add(submit(3, 100, request_id="later", priority=-1))  # turn 0, place 200
    assert [run(texts)[0] for _ in range(4)] == [0, 1, 3, 2]


def test_texts_that_nobody_wants_any_more():
    texts = scheduler()
    texts.add(submit(1, 1, timeout_s=1e-9))
    texts.add(submit(2, 1, timeout_s=100.0))
    assert run(texts) == [2]
    outputs = {output.uid: output.finish.status for output in texts.outputs.take()["i"]}
    assert outputs == {1: 504, 2: 0} and texts.load().queued_tokens == 0


def test_requests_take_turns_by_tokens():
    texts = scheduler(max_running=2)
    for uid in range(6):
        texts.add(submit(uid, 10, request_id="many"))
    assert run(texts) == [0, 1]
    texts.add(submit(6, 10, request_id="late"))
    texts.add(submit(7, 20, request_id="later"))
    texts.add(submit(8, 20, request_id="later"))
    assert [run(texts) for _ in range(3)] == [[6, 7], [2, 3], [8, 4]]
    assert run(texts) == [5]


def test_refusals():
    texts = scheduler(max_queued=1)
    texts.add(submit(1, 1))
    texts.add(submit(2, 1))
    texts.add(submit(3, 51))
    texts.add(submit(4, 0))
    outputs = {output.uid: output.finish for output in texts.outputs.take()["i"]}
    assert {uid: finish.status for uid, finish in outputs.items()} == {2: 429, 3: 400, 4: 400}
    texts.add(submit(5, 1, accepted=True))
    assert texts.outputs.take() == {} and texts.load().waiting == 2


def test_a_queue_that_takes_too_long():
    """New requests are refused; one that is there already gets all its texts in."""
    texts = scheduler(max_queue_seconds=2.0)
    texts.measured(10.0)
    texts.add(submit(1, 15, request_id="a"))
    texts.add(submit(2, 15, request_id="a"))
    texts.add(submit(3, 15, request_id="b"))
    texts.add(submit(4, 15, request_id="a"))
    ((output,),) = texts.outputs.take().values()
    assert output.uid == 3 and output.finish.status == 429 and output.finish.retry_after == 1.5
    assert texts.load().waiting == 3


def test_aborts():
    texts = scheduler(max_running=3)
    for uid in range(1, 7):
        texts.add(submit(uid, 2, ingress="ij"[uid % 2], request_id="same" if uid > 4 else str(uid)))
    step = texts.schedule()  # 1 to 3 run
    texts.abort("j", [1])
    texts.abort("i", [4])
    texts.abort_request("j", "same")  # 5 is the asking ingress's own
    texts.process(step, np.ones((3, 1), dtype=np.float32))
    assert results(texts) == {2: 1.0, 3: 1.0, 6: "the request was aborted"}
    assert run(texts) == [5] and results(texts) == {5: 5.0}
    texts.add(submit(8, 2))
    texts.schedule()
    texts.abort_ingress("i")
    load = texts.load()
    assert (load.running, load.waiting) == (0, 0)


def test_load():
    texts = scheduler(max_running=2)
    for uid in range(3):
        texts.add(submit(uid, 5))
    step = texts.schedule()
    load = texts.load()
    assert (load.running, load.waiting, load.queued_tokens, load.prompt_tokens) == (2, 1, 15, 0)
    texts.process(step, np.ones((2, 1), dtype=np.float32))
    load = texts.load()
    assert (load.running, load.waiting, load.queued_tokens, load.prompt_tokens, load.steps) == (0, 1, 5, 10, 1)


ACTIONS = st.lists(st.one_of(st.tuples(st.just("add"), st.integers(1, 50), st.integers(-1, 1)), st.just("run"), st.just("launch"),
                             st.tuples(st.just("abort"), st.integers(0, 30))), max_size=40)  # fmt: skip


@given(ACTIONS)
def test_every_text_is_answered_once_unless_aborted(actions):
    texts = scheduler()
    launched, answered, aborted, lengths = [], [], set(), {}

    def finish():
        step = launched.pop(0)
        texts.process(step, np.zeros((len(step.texts), 1), dtype=np.float32))
        answered.extend(output.uid for outputs in texts.outputs.take().values() for output in outputs)

    for action in actions:
        if action[0] == "add":
            uid = len(lengths)
            lengths[uid] = action[1]
            texts.add(submit(uid, action[1], priority=action[2]))
        elif action[0] == "abort":
            if action[1] in lengths and action[1] not in answered:
                aborted.add(action[1])
            texts.abort("i", [action[1]])
        elif not texts.idle and (step := texts.schedule()):
            assert step.num_prefill_tokens <= 60 and len(step.texts) <= 4
            launched.append(step)
            if action == "run":
                while launched:
                    finish()
    while launched or not texts.idle:
        if not texts.idle:
            launched.append(texts.schedule())
        finish()
    assert sorted(answered) == sorted(set(lengths) - aborted)
    load = texts.load()
    assert (load.running, load.waiting, load.queued_tokens) == (0, 0, 0)
