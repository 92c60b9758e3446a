"""raysgl: serve language models from a Ray cluster behind an OpenAI-compatible API."""

__version__ = "0.1.0"
