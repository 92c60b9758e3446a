"""Load generator and benchmarks: what `raysgl bench` runs. Commands, not tests: they print the machine they ran on.

    cli.py, load_commands.py, engine_commands.py, show.py    the commands: options in, a report out
    report.py, progress.py, plot.py      machine, versions, tables, JSON; what is being done; pictures
    client.py     an HTTP client for streams that costs little: on small machines client and server share the cores
    dialects.py   how each kind of server is asked and read
    prompts.py, sharegpt.py, workloads.py    what is asked: random, from a file, the workloads of docs/performance.md
    load.py, fleet.py     many requests at a time, from this process or from several
    figures.py    from what requests took to throughput, percentiles, goodput
    serve.py      a running server, one point or a sweep
    local_engine.py, offline.py    the engine in this process
    server.py     starts and stops `raysgl serve`
    baseline.py   transformers `generate`, in a process of its own
    cpu.py, startup.py, stream.py   the benchmarks; stream_peer.py has the processes of the last

Ray and torch are imported only in the processes these start.
"""
