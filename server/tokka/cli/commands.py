"""The commands of `tokka`. Each imports its dependencies when it runs, so that `--help` is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from tokka import __version__
from tokka.cli.bench import bench
from tokka.cli.downtime import app as downtime
from tokka.cli.fleet import app as fleet
from tokka.cli.keys import app as keys
from tokka.cli.options import serve_command, worker_command
from tokka.cli.plan import plan
from tokka.cli.usage import usage

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="An OpenAI-compatible inference server.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


app.command(name="serve")(serve_command())
app.command(name="worker")(worker_command())
app.add_typer(keys, name="keys")
app.add_typer(downtime, name="downtime")
app.add_typer(fleet, name="fleet")
app.command()(usage)
app.command()(bench)
app.command()(plan)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def chat(
    url: Annotated[str, typer.Option(help="Server URL.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model name. Default: the server's first model.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_completion_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per response.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature. 0: the likeliest token.")] = None,
    api_key: Annotated[str, typer.Option(envvar="TOKKA_API_KEY", help="API key, sent as a bearer token.")] = "none",
) -> None:
    """Talk to a running server from the terminal."""
    from tokka.cli.chat import Conversation, talk

    raise typer.Exit(talk(Conversation(url, api_key, model, system, max_completion_tokens, temperature)))
