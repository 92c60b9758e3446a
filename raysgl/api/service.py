"""What the endpoints share: the backend, its models, settings, metrics, the gate."""

from __future__ import annotations

from dataclasses import dataclass

from raysgl.api.backend import Backend
from raysgl.api.errors import bad_request, model_not_found
from raysgl.api.http import Gate
from raysgl.api.metrics import Metrics
from raysgl.api.served_model import ServedModel
from raysgl.config import ServerConfig


@dataclass(slots=True)
class Service:
    backend: Backend
    settings: ServerConfig
    gate: Gate
    metrics: Metrics

    def first_model(self) -> ServedModel:
        """For what is said of the server as a whole."""
        return next(iter(self.backend.models.values()))

    def model(self, name: str | None) -> ServedModel:
        """The model that a request names. ApiError 404 for one that is not there; 400 for none where there are several."""
        models = self.backend.models
        if name is None:
            if len(models) == 1:
                return next(iter(models.values()))
            raise bad_request(f"model is required; there are {', '.join(models)}", "model", "missing_required_parameter")
        if name not in models:
            raise model_not_found(name)
        return models[name]
