"""Attention backends and fused ops. Each op has a torch reference in its file. Imports torch and nothing else of raysgl.

Legend of the shape suffixes: `raysgl.kernels.batch`.
"""
