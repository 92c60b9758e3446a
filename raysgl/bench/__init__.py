"""Load generator and benchmarks: what `raysgl bench` runs. Commands, not tests: they print the machine they ran on.

    cli.py       the commands
    report.py    machine, versions, tables, JSON
    client.py    an HTTP client for streams that costs little: on small machines client and server share the cores
    load.py      many streams at a time, and their latencies in numbers
    server.py    starts and stops `raysgl serve`
    baseline.py  transformers `generate`, in a process of its own
    cpu.py, startup.py, stream.py   the benchmarks; stream_peer.py has the processes of the last

Ray and torch are imported only in the processes these start.
"""
