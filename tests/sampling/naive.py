"""The sampling rules written down row by row, in float64, with nothing clever: what the sampler is compared with."""

from __future__ import annotations

import numpy as np

from raysgl.sampling.params import SamplingParams


def adjusted(logits, params: SamplingParams, prompt=(), output=(), stop_ids=()) -> np.ndarray:
    """[V] logits after penalties, bias and the masks of min_new_tokens, bad words and allowed tokens."""
    logits = np.array(logits.tolist())
    for token in set(prompt) | set(output):
        if logits[token] > 0:
            logits[token] /= params.repetition_penalty
        else:
            logits[token] *= params.repetition_penalty
    for token in set(output):
        logits[token] -= params.frequency_penalty * list(output).count(token) + params.presence_penalty
    for token, bias in (params.logit_bias or {}).items():
        logits[token] += bias
    if len(output) < params.min_new_tokens:
        logits[list(stop_ids)] = -np.inf
    for *beginning, last in params.bad_words:
        if list(output)[len(output) - len(beginning) :] == beginning:
            logits[last] = -np.inf
    if params.allowed_token_ids:
        logits[[token for token in range(len(logits)) if token not in params.allowed_token_ids]] = -np.inf
    return logits


def probabilities(logits, params: SamplingParams) -> np.ndarray:
    """[V] what the next token is drawn from, given adjusted logits."""
    logits = np.array(logits.tolist())
    if params.greedy:
        chosen = np.zeros(len(logits))
        chosen[int(np.argmax(logits))] = 1
        return chosen
    x = logits / params.temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    number = len(p) if params.top_k < 1 else min(params.top_k, len(p))
    if params.top_p < 1:
        number = min(number, int(np.sum(np.cumsum(p[order])[:-1] < params.top_p)) + 1)
    least = max(p[order[number - 1]], params.min_p * p.max())
    p[p < least] = 0
    return p / p.sum()
