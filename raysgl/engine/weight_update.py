"""New weights into a model that is there: into the same memory, so that what holds its addresses stays valid."""

from __future__ import annotations

import dataclasses

from raysgl.config import EngineConfig
from raysgl.distributed import TPGroup
from raysgl.engine.occupation import OTHER, Occupant, Occupation, settle
from raysgl.messages import WeightsUpdate
from raysgl.models import Checkpoint, ModelError, loader, resolve
from raysgl.models.lending import Lender

MAY_DIFFER = ("dtype", "eos_token_ids", "bos_token_id")
"""Of a config: what is stored is converted, and where an answer ends the tokenizer and the scheduler know."""


class WeightUpdater:
    """One shard's. All ranks must be told the same in the same order: they agree, and either all do it or none.

    In the thread of the runner's steps. checkpoint: what the model has been loaded from. lender: lends nothing meanwhile.
    """

    def __init__(
        self,
        runner: Occupant,
        tp: TPGroup,
        occupation: Occupation,
        config: EngineConfig,
        checkpoint: Checkpoint,
        lender: Lender | None = None,
    ):
        self._runner, self._tp, self._occupation = runner, tp, occupation
        self._config, self._checkpoint, self._lender = config, checkpoint, lender

    def update(self, update: WeightsUpdate) -> tuple[bool, str]:
        """Whether all ranks have the new weights, and why not: then they have the old ones. Raises where these cannot be had back."""
        model, why, checkpoint = self._runner.model, "", self._checkpoint
        try:
            checkpoint = resolve(update.model_path, load_format=update.load_format, download=False)
            _check_config(model.config, checkpoint.config())
            loader.check(model, checkpoint)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with its files, this model is untouched
            why = _said(error)
        if not self._agree(why):
            return False, why or OTHER
        settle(self._runner.device)
        lent = self._lender is not None and self._lender.able
        if self._lender is not None:
            self._lender.pause()
        try:
            loader.fill(model, checkpoint, self._config.random_seed)
        except Exception as error:  # noqa: BLE001 - half of the model is new
            why = _said(error)
        if not self._agree(why):
            self._go_back(lent)
            return False, why or OTHER
        self._checkpoint = checkpoint
        self._runner.weights_changed()
        if self._lender is not None and checkpoint.weights != "dummy":
            own = self._config.model_copy(update={"model_path": update.model_path, "revision": None})
            self._lender.become(own, checkpoint)
        if update.recapture and not self._occupation.released:
            self._runner.drop_graphs()
            self._runner.make_graphs()
        if update.empty_cache:
            self._occupation.free()
        return True, ""

    def _go_back(self, lent: bool) -> None:
        """Without the old weights this shard must not live on. lent: they were, so it is known what they are."""
        if lent and self._lender is not None and not self._lender.is_of(self._checkpoint):
            raise ModelError("an update of the weights failed midway, and the files of the old ones have changed or gone")
        loader.fill(self._runner.model, self._checkpoint, self._config.random_seed)
        self._runner.weights_changed()
        if lent and self._lender is not None:
            self._lender.go_on()
        if not self._agree(""):
            raise ModelError("an update of the weights failed midway, and another shard has not got the old ones back")

    def _agree(self, why: str) -> bool:
        return self._tp.agree(not why, self._runner.device)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ModelError | OSError) else f"{type(error).__name__}: {error}"


def _check_config(old, new) -> None:
    """Two of `HFConfig` or `EncoderConfig`. Raises `ModelError` where models of them compute other things."""
    if type(old) is not type(new):
        raise ModelError(f"the checkpoint is a {new.architecture}, not a {old.architecture}")
    names = [field.name for field in dataclasses.fields(old) if field.name not in MAY_DIFFER]
    wrong = [
        f"{name} ({getattr(new, name)} instead of {getattr(old, name)})"
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
    if wrong:
        raise ModelError(f"the checkpoint's config.json is another model's: {', '.join(wrong)}")
