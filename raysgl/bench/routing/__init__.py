"""`raysgl bench routing`: how good are routing decisions? A discrete-event simulator around the very code that decides.

    workloads  what is asked: synthetic ones, or a trace of one's own
    prefixes   its prompts as paths in one tree, so that caches can be simulated by runs of pages instead of single ones
    calibration, cache, replica   one engine: step times, LRU radix cache, continuous batching
    cluster    the clock, the messages and their delays
    policies, oracle, raysgl_policy   who decides
    sweep      all of it, in processes, as a table or JSON

Nothing of this runs in a server. It imports `raysgl.routing` and `raysgl.messages`; no Ray, no torch.
"""
