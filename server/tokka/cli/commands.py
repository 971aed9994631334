"""The commands. Each imports what it needs when it runs, so that `--help` is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from tokka import __version__
from tokka.cli.bench import bench
from tokka.cli.downtime import app as downtime
from tokka.cli.keys import app as keys
from tokka.cli.options import serve_command
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
app.add_typer(keys, name="keys")
app.add_typer(downtime, name="downtime")
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
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Default: the first one the server has.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_completion_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: always the likeliest word.")] = None,
    api_key: Annotated[str, typer.Option(envvar="TOKKA_API_KEY", help="Sent as a bearer token.")] = "none",
) -> None:
    """Talk to a running server from the terminal."""
    from tokka.cli.chat import Conversation, talk

    raise typer.Exit(talk(Conversation(url, api_key, model, system, max_completion_tokens, temperature)))
