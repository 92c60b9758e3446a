"""From a classifier's numbers to probabilities and scores."""

from __future__ import annotations

import numpy as np

from raysgl.models.pooling import PoolingSpec


def activate(numbers_SR: np.ndarray, spec: PoolingSpec, use: bool | None) -> np.ndarray:
    """As the checkpoint says (`PoolingSpec.activation`); use: false leaves them as they are."""
    if use is False or spec.activation == "identity":
        return numbers_SR
    numbers_SR = numbers_SR.astype(np.float64)
    if spec.activation == "sigmoid":
        return 1 / (1 + np.exp(-numbers_SR))
    return softmax(numbers_SR)


def softmax(numbers_SR: np.ndarray) -> np.ndarray:
    """Of each row."""
    weights_SR = np.exp(numbers_SR - numbers_SR.max(axis=1, keepdims=True))
    return weights_SR / weights_SR.sum(axis=1, keepdims=True)
