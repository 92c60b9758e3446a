"""HTTP: request types, endpoints, chat templates, detokenisation. Knows no Ray and imports no torch (so no transformers).

`app.create_app(backend, settings)` makes the FastAPI application over anything that fulfils `backend.Backend`. Imported by
`raysgl.actors`; imports `raysgl.messages`, `raysgl.config` and `raysgl.sampling.params`. This file imports nothing, so that
the contracts (`backend`, `served_model`) are cheap to import.
"""
