"""The names of vLLM's parsers, read from its files. An import takes half a minute, and a typo should fail at once."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from tokka.errors import ConfigurationError
from tokka.suggestions import did_you_mean

# vLLM's package for each option, and the table in it that lists the parsers by name.
_TABLES = {
    "--tool-call-parser": ("tool_parsers", "_TOOL_PARSERS_TO_REGISTER"),
    "--reasoning-parser": ("reasoning", "_REASONING_PARSERS_TO_REGISTER"),
}


def check_parser_names(tool_call_parser: str | None, reasoning_parser: str | None) -> None:
    """Raise ConfigurationError for a name that vLLM does not have. Does nothing if vLLM's names cannot be read."""
    for option, name in (("--tool-call-parser", tool_call_parser), ("--reasoning-parser", reasoning_parser)):
        if name is not None and (known := names_of(option)) and name not in known:
            raise ConfigurationError(
                f"{option} {name}: unknown parser; choose one of {', '.join(known)}{did_you_mean(name, known)}"
            )


def names_of(option: str) -> list[str]:
    """Return the installed vLLM's parsers for an option; an empty list if its files have another layout."""
    package, table = _TABLES[option]
    spec = importlib.util.find_spec("vllm")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        try:
            module = ast.parse((Path(place) / package / "__init__.py").read_text(encoding="utf-8"))
            for node in module.body:
                if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [table]:
                    return sorted(ast.literal_eval(node.value))
        except (OSError, ValueError, SyntaxError):
            break
    return []
