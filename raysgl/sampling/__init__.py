"""Sampling: what a client may ask (`params`, no torch) and how tokens are drawn (`sampler`, torch).

This file imports no torch, so that the API can use `raysgl.sampling.params`.
"""
