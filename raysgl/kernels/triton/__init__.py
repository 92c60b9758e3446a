"""raysgl's own GPU kernels in Triton. Each has its torch reference elsewhere in `raysgl.kernels` and runs in Triton's interpreter.

    runtime.py      the machine: interpreter or GPU, dependent launches, workspaces
    interpreter.py  mends of Triton's interpreter
    norm.py         RMSNorm, with the residual addition
    activation.py   SiLU times up
    rotary.py       per-head norm, rotary embedding and cache write of a merged projection
    work.py         work lists: who attends what, decided on the device
    blocks.py       attention's inner loop
    decode.py, prefill.py, cascade.py, merge.py   attention over the paged cache
    backend.py      the attention backend made of them
    linear.py, gemv.py, skinny.py   linear layers of few tokens, with what stands before and after them
    prefetch.py     weights asked for ahead of a dependent launch
    argmax.py, draw.py   greedy and filtered sampling
    token_mask.py   masks of grammars

Nothing here synchronises with the host or reads a value from the device: all may be captured in CUDA graphs. Imports torch, triton
and `raysgl.kernels`. Legend of the shape suffixes: `raysgl.kernels.batch`.
"""
