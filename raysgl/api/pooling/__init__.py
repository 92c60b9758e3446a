"""Endpoints of models that answer with numbers: embeddings, rerank, score, classify.

`texts` makes token ids, `compute` has an engine compute them; `embeddings`, `ranking` and `classify` are the endpoints.
"""
