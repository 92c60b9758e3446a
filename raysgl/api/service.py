"""What the endpoints share: the backend, its models, settings, metrics, the gate."""

from __future__ import annotations

from dataclasses import dataclass

from raysgl.api.backend import Backend
from raysgl.api.call import current
from raysgl.api.errors import ApiError, bad_request, model_not_found
from raysgl.api.http import Gate
from raysgl.api.keys import KeyRing
from raysgl.api.limits import Limits
from raysgl.api.metrics import Metrics
from raysgl.api.served_model import ServedModel
from raysgl.config import ServerConfig


@dataclass(slots=True)
class Service:
    backend: Backend
    settings: ServerConfig
    gate: Gate
    metrics: Metrics
    keys: KeyRing
    limits: Limits

    def models(self) -> dict[str, ServedModel]:
        """Those that the caller may use, by name."""
        key = current().key
        return {name: model for name, model in self.backend.models.items() if key is None or key.allows(name)}

    def first_model(self) -> ServedModel:
        """For what is said of the server as a whole."""
        return next(iter(self.backend.models.values()))

    def model(self, name: str | None) -> ServedModel:
        """The model that a request names. ApiError 404 for one that is not there, 403 for one that the caller may not use; 400 for
        none where there are several."""
        models = self.models()
        if name is None:
            if len(models) == 1:
                return next(iter(models.values()))
            raise bad_request(f"model is required; there are {', '.join(models)}", "model", "missing_required_parameter")
        if name not in self.backend.models:
            raise model_not_found(name)
        if name not in models:
            raise ApiError(403, f"The API key may not use the model {name!r}", param="model", code="model_not_allowed")
        return models[name]

    def generator(self, name: str | None) -> ServedModel:
        """`model`, which must be one that generates text. ApiError 400."""
        model = self.model(name)
        if model.pooling is not None:
            raise _wrong_kind(f"{model.name!r} generates no text; {_use(model)}")
        return model

    def pooler(self, name: str | None, *kinds: str) -> ServedModel:
        """`model`, which must be of one of these kinds (`PoolingSpec.kind`). ApiError 400."""
        model = self.model(name)
        if model.pooling is None or model.pooling.kind not in kinds:
            raise _wrong_kind(f"{model.name!r} makes no {MAKES[kinds[0]]}; {_use(model)}")
        return model


MAKES = {"embed": "vectors", "classify": "labels", "score": "scores of two texts"}


def _wrong_kind(message: str) -> ApiError:
    return bad_request(message, "model", "wrong_kind_of_model")


def _use(model: ServedModel) -> str:
    if model.pooling is None:
        return "it generates text: use /v1/chat/completions or /v1/completions"
    if model.pooling.kind == "embed":
        return "it makes vectors: use /v1/embeddings"
    return "it scores texts: use /v1/rerank or /v1/score" if model.pooling.pairs else "it labels texts: use /v1/classify"
