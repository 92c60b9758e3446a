"""A replica of a tiny checkpoint in one thread: scheduler, loop, runner, and what carries out its shards' commands."""

from __future__ import annotations

from raysgl import distributed, models
from raysgl.config import EngineConfig
from raysgl.engine.loop import EngineLoop
from raysgl.engine.occupation import Occupation
from raysgl.engine.runner import ModelRunner
from raysgl.engine.scheduler import Scheduler, SchedulerConfig
from raysgl.engine.weight_update import WeightUpdater
from raysgl.messages import Done, Submit, UpdateWeights, pack_ids
from raysgl.sampling.params import SamplingParams

PAGE = 4


class Replica:
    """events: what was told of the cache. `tell` gives a command's answer, `greedy` a prompt's."""

    def __init__(self, folder, device="cpu", **settings):
        sizes = {"page_size": PAGE, "max_total_tokens": 800, "max_running_requests": 4, "cpu_threads": 1}
        self.config = EngineConfig(model_path=str(folder), **{**sizes, **settings})
        self.group = distributed.single()
        self.runner = ModelRunner(self.config, models.resolve(str(folder)), 0, self.group, device)
        runner, size = self.runner, self.config.page_size
        self.scheduler = Scheduler(
            SchedulerConfig(
                size, runner.num_pages, runner.context_length, runner.max_running, 100, 64, vocab_size=runner.vocab_size
            ),
            self.record,
        )
        self.use(self.group)
        self.events, self.answers, self.inbox, self.outputs = [], [], [], []
        self.loop = EngineLoop(
            self.scheduler,
            runner,
            receive=self._receive,
            emit=lambda news: self.outputs.extend(news["i"]),
            publish=lambda events, load: None,
            answer=lambda ingress, done: self.answers.append(done),
            command=self.carry_out,
            source=self.config.source,
        )

    def record(self, event):
        self.events.append(event)

    def use(self, group, lender=None):
        """What carries the commands out, of a rank of this group."""
        self.occupation = Occupation(self.runner, group, lender)
        checkpoint = models.resolve(self.config.model_path)
        self.updater = WeightUpdater(self.runner, group, self.occupation, self.config, checkpoint, lender)

    def carry_out(self, message):
        if isinstance(message, UpdateWeights):
            return self.updater.update(message.update)
        change = message.change
        return self.occupation.release(change.tags) if change.release else self.occupation.resume(change.tags)

    def _receive(self, timeout):
        messages, self.inbox = self.inbox, []
        return messages

    def tell(self, command) -> Done:
        self.inbox.append(command)
        self.loop.run_once()
        return self.answers.pop()

    def submit(self, prompt, count=12, uid=1, **more) -> None:
        sampling = SamplingParams(max_new_tokens=count, temperature=0.0, seed=0, ignore_eos=True, **more)
        self.inbox.append(Submit(uid, "r", "i", pack_ids(prompt), sampling, []))

    def run(self) -> list:
        """Until it is idle. What came out."""
        self.loop.run_once()
        while not self.loop.idle:
            self.loop.run_once()
            self.scheduler.check()
        outputs, self.outputs = self.outputs, []
        return outputs

    def greedy(self, prompt, count=12, **more) -> list[int]:
        self.submit(prompt, count, **more)
        return [token for output in self.run() for token in output.token_ids]

    def refusal(self, prompt):
        """Its `Finish`."""
        self.submit(prompt)
        (output,) = self.run()
        assert not output.token_ids
        return output.finish
