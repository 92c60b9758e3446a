"""Every process of the cluster, one file each, and the wires between them. Thin: Ray in, plain Python out.

    ingress.py       Serve deployment: HTTP, routing, token streams         (imports no torch)
    coordinator.py   Ray actor: who serves what, the global prefix index    (imports no torch)
    replica.py       Serve deployment: owns a replica's placement group and shards
    shard.py         Ray actor: one tensor-parallel rank; rank 0 runs the engine loop
    transport.py     authenticated ZeroMQ sockets; engine_link, ingress_link and step_channel are what travels on them

Only this package, `raysgl.app` and `raysgl.launcher` import Ray. Nothing imports this package but those two.
"""
