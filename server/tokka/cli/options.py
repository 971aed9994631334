"""The command-line options of `tokka serve`, generated from the settings."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from tokka.settings import WORKER_SETTINGS, Settings

_JOIN = "HOST:PORT of a gateway. Repeat it to serve several gateways."
_TOKEN_FILE = "The gateway's token file, from its state folder. The worker reads it again at each connection."  # noqa: S105
_TIMEOUT = "Seconds without any gateway after which the worker ends with code 1. (default: 300)"
_WORKER_ID = "Id of this worker, for the gateway's lists. Default: host name and process id."


def serve_command() -> Callable[..., None]:
    """Return the function of `tokka serve`, with one parameter per setting."""

    def serve(**values: Any) -> None:
        from tokka.cli.start import run

        config = values.pop("config")
        raise typer.Exit(run(given(values), config))

    model = Settings.model_fields["model"]
    parameters = [
        _parameter("model", str | None, typer.Argument(help=model.description, show_default=False)),
        _CONFIG,
        *(_option(name, field) for name, field in Settings.model_fields.items() if name != "model"),
    ]
    serve.__doc__ = (
        "Serve one model in the foreground.\n\n"
        "Each option is also an environment variable, TOKKA_..., and a line of the config file. "
        "Flags override the environment, which overrides the file."
    )
    return _with_parameters(serve, parameters)


def worker_command() -> Callable[..., None]:
    """Return the function of `tokka worker`, with the engine's settings and its own options."""

    def worker(**values: Any) -> None:
        from tokka.cli.worker import run

        own = {name: values.pop(name) for name in ("config", "join", "join_token_file", "gateway_timeout", "worker_id")}
        raise typer.Exit(run(given(values), **own))

    parameters = [
        _parameter("join", list[str], typer.Option("--join", help=_JOIN, show_default=False), is_required=True),
        _parameter("join_token_file", Path, typer.Option("--join-token-file", help=_TOKEN_FILE), is_required=True),
        _parameter("gateway_timeout", float | None, typer.Option("--gateway-timeout", min=1, help=_TIMEOUT)),
        _parameter("worker_id", str | None, typer.Option("--worker-id", help=_WORKER_ID)),
        _CONFIG,
        *(_option(name, Settings.model_fields[name]) for name in WORKER_SETTINGS),
    ]
    worker.__doc__ = (
        "Run one model's engine for a gateway, without HTTP.\n\n"
        "SIGTERM drains: the worker finishes its open requests and ends."
    )
    return _with_parameters(worker, parameters)


def _with_parameters(command: Callable[..., None], parameters: list[inspect.Parameter]) -> Callable[..., None]:
    # Typer reads the signature and the annotations.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given on the command line. The others are None or empty."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def default_of(field: FieldInfo) -> str:
    """Return a setting's default as text. Empty if there is none or if it depends on the machine."""
    if field.default_factory is not None or field.default in (None, [], False):
        return ""
    return str(field.default)


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    kind = _without_none(field.annotation)
    if kind is bool and field.default is None:
        # With a default of None, the operator may set true or false.
        flag = f"{flag}/--no-{name.replace('_', '-')}"
    default = default_of(field)
    text = f"{field.description} (default: {default})" if default else str(field.description)
    return _parameter(name, kind | None, typer.Option(flag, help=text, show_default=False))


def _parameter(name: str, annotation: Any, info: Any, *, is_required: bool = False) -> inspect.Parameter:
    kind, default = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty if is_required else None
    return inspect.Parameter(name, kind, default=default, annotation=Annotated[annotation, info])


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [argument for argument in get_args(annotation) if argument is not type(None)]
        # For a number or a word, take text. The settings validate it.
        return kinds[0] if len(kinds) == 1 else str
    return annotation


_CONFIG = _parameter("config", Path | None, typer.Option("--config", help="YAML file with any of these options."))
