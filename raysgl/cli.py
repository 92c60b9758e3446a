"""The `raysgl` command. Imports little: each command brings what it needs when it runs, so that --help is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from raysgl import __version__
from raysgl.bench.cli import bench

app = typer.Typer(
    name="raysgl",
    help="Serve language models from a Ray cluster behind an OpenAI-compatible API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="a config file, for instance serve_configs/llama.yaml")]
Host = Annotated[str | None, typer.Option(help="address to listen on, instead of the config's server.host")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="port to listen on, instead of the config's server.port")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raysgl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False,
) -> None:
    pass


@app.command()
def serve(config: ConfigPath, host: Host = None, port: Port = None) -> None:
    """Start the models of a config and serve them until Ctrl-C or SIGTERM, then drain and stop."""
    from raysgl.launcher import serve as launch

    raise typer.Exit(launch(config, host=host, port=port))


@app.command()
def check(config: ConfigPath) -> None:
    """Explain what a config would start where, and what it would ask for, without starting anything."""
    from raysgl import check
    from raysgl.config_file import ConfigError, load

    try:
        layout = check.plan(load(config))
    except ConfigError as error:
        fail(str(error))
    except check.CheckError as error:
        fail("\n".join(f"{config}: {problem}" for problem in error.problems))
    typer.echo(check.describe(layout))


@app.command()
def chat(
    url: Annotated[str, typer.Option(help="where the server is")] = "http://127.0.0.1:30000",
    model: Annotated[str | None, typer.Option(help="which model; default: the server's first")] = None,
    system: Annotated[str | None, typer.Option(help="a system message")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="default: the model's")] = None,
) -> None:
    """Chat with a running server. /reset forgets the conversation; Ctrl-C stops an answer; Ctrl-D leaves."""
    from raysgl.chat import run

    problem = run(url, model, system, temperature)
    if problem:
        fail(problem)


@app.command()
def top(
    url: Annotated[str, typer.Option(help="where the server is")] = "http://127.0.0.1:30000",
    interval: Annotated[float, typer.Option(min=0.1, help="seconds between two looks")] = 1.0,
    once: Annotated[bool, typer.Option(help="print once and leave")] = False,
    json: Annotated[bool, typer.Option("--json", help="print /v1/loads as it is, once")] = False,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="where the server wants one")] = None,
) -> None:
    """Watch the replicas of a running server: queues, KV cache, hot prefixes, scaling. Ctrl-C leaves."""
    import contextlib

    from raysgl import top

    try:
        if json:
            import orjson

            typer.echo(orjson.dumps(top.loads(url, api_key), option=orjson.OPT_INDENT_2))
            return
        with contextlib.suppress(KeyboardInterrupt):
            top.run(url, interval, once, api_key)
    except top.TopError as error:
        fail(str(error))


def fail(message: str) -> None:
    """Print to stderr and exit with 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)


def main() -> None:
    """The entry point of the `raysgl` script."""
    sys.exit(app())


if __name__ == "__main__":
    main()
