"""When the loop plans: not before a long step is about to end."""

from raysgl.engine.plan import ints
from tests.engine.simulated import Engine, SimulatedRunner, expected


class LongStep:
    """Ends after `looks` looks at it, and is about to end one look before."""

    def __init__(self, step, looks, on_look):
        self._step, self._looks, self._on_look = step, looks, on_look

    def wait(self, timeout):
        self._looks -= 1
        self._on_look(self._looks)
        return self._looks <= 0

    def ending(self):
        return self._looks <= 1

    def result(self):
        return self._step.result()


class LongSteps(SimulatedRunner):
    """Steps with prompt tokens in them are long."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.plans = []
        self.on_look = lambda looks: None

    def launch(self, plan):
        self.plans.append(plan)
        step = super().launch(plan)
        return LongStep(step, 4 if plan.token_ids_T else 1, self.on_look)


def test_a_request_that_comes_during_a_long_step_is_in_the_next_one():
    engine = Engine()
    runner = LongSteps(64, 4, 8)
    engine.runner = engine.loop._runner = runner

    def on_look(looks):
        if looks == 3 and len(runner.plans) == 1:
            engine.submit(2, [7, 8, 9], max_new=4)

    runner.on_look = on_look
    engine.submit(1, [1, 2, 3], max_new=4)
    engine.run()
    assert len(ints(runner.plans[1].slots_S)) == 2
    assert engine.tokens(1) == expected([1, 2, 3], 4)
    assert engine.tokens(2) == expected([7, 8, 9], 4)


def test_what_comes_again_is_not_taken_for_what_was_lost():
    """An ingress learns at once that something of it was lost, and may have sent it again before the loop looks."""
    engine = Engine()
    engine.submit(1, [1, 2, 3], max_new=20)
    engine.loop.run_once()
    receive = engine.loop._receive

    def lossy(timeout):
        engine.loop.ingress_gone("i")
        engine.submit(2, [1, 2, 3], max_new=20)
        engine.loop._receive = receive
        return receive(timeout)

    engine.loop._receive = lossy
    engine.run()
    assert engine.tokens(2) == expected([1, 2, 3], 20)
    assert not engine.tokens(1) or engine.outputs[1][-1].finish is None
