"""The command-line options of `tokka serve`, generated from the settings."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from tokka.settings import Settings


def serve_command() -> Callable[..., None]:
    """Return the function of `tokka serve`, with one parameter per setting."""

    def serve(**values: Any) -> None:
        from tokka.cli.start import run

        config = values.pop("config")
        raise typer.Exit(run(given(values), config))

    model = Settings.model_fields["model"]
    parameters = [
        _parameter("model", str | None, typer.Argument(help=model.description, show_default=False)),
        _parameter("config", Path | None, typer.Option("--config", help="YAML file with any of these options.")),
    ]
    parameters += [_option(name, field) for name, field in Settings.model_fields.items() if name != "model"]
    serve.__doc__ = (
        "Serve one model in the foreground.\n\n"
        "Each option is also an environment variable, TOKKA_..., and a line of the config file. "
        "Flags override the environment, which overrides the file."
    )
    # Typer reads the signature and the annotations.
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return serve


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


def _parameter(name: str, annotation: Any, info: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[annotation, info])


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [argument for argument in get_args(annotation) if argument is not type(None)]
        # For a number or a word, take text. The settings validate it.
        return kinds[0] if len(kinds) == 1 else str
    return annotation
