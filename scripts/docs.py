"""Write settings.md, metrics.md, vllm.md and openapi.json in docs/ from the code; with --check only compare.

A document that is written by hand beside the code is wrong after the first change to either.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import NoneType

from pydantic.fields import FieldInfo

from tokka.app import create_server
from tokka.cli.options import default_of
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.observability.metrics import Metrics
from tokka.protocol.chat import ChatRequest
from tokka.protocol.common import WireModel
from tokka.protocol.completions import CompletionRequest
from tokka.protocol.constraint import StructuredOutputs
from tokka.protocol.generation import StreamOptions
from tokka.protocol.models import DetokenizeRequest, TokenizeRequest
from tokka.protocol.tools import Tool
from tokka.protocol.vllm_fields import NeutralModel
from tokka.settings import Settings

# What the page of vLLM's fields calls each body, or part of one.
BODIES: dict[str, type[WireModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "`structured_outputs`": StructuredOutputs,
    "`stream_options`": StreamOptions,
    "An entry of `tools`, and its `function`": Tool,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
DOCS = Path(__file__).parent.parent / "docs"


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Made by `scripts/docs` from `server/tokka/settings/fields.py`.",
        "",
        "Each is an option of `tokka serve`, an environment variable and a line of the YAML file given by `--config`.",
        "Flags win, then the environment, then the file, then the default. `MODEL` is the command's argument.",
        "Lists are repeated on the command line and separated by commas in the environment.",
        "",
        "| option | environment | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        option = "`MODEL`" if name == "model" else f"`--{name.replace('_', '-')}`"
        default = default_of(field)
        lines.append(
            f"| {option} | `TOKKA_{name.upper()}` | {f'`{default}`' if default else ''} | {field.description} |"
        )
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    lines = [
        "# Metrics",
        "",
        "Made by `scripts/docs` from `server/tokka/observability/metrics.py`. `/metrics` also has all of vLLM's own",
        "`vllm:*` series, with their names and labels unchanged, and the process's. They do not count the requests",
        "that warm the engine up.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for name, kind, labels, meaning in Metrics().catalogue:
        lines.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |")
    return "\n".join(lines) + "\n"


def vllm_page() -> str:
    lines = [
        "# Fields of vLLM's requests",
        "",
        "Made by `scripts/docs` from `server/tokka/protocol/vllm_fields.py`.",
        "",
        "Every field of vLLM's request classes is supported, or accepted when it is neutral: its value says no more",
        "than its absence. Null is neutral for every field. Any other value is refused by name, with the reason",
        "below. A test walks vLLM's own classes.",
    ]
    for place, model in BODIES.items():
        fields = model.model_fields.items()
        supported = [field.alias or name for name, field in fields if not _is_unsupported(field)]
        lines += ["", f"## {place}", "", f"Supported: {', '.join(f'`{name}`' for name in sorted(supported))}."]
        if unsupported := [name for name, field in fields if _is_unsupported(field)]:
            lines += [
                "",
                f"Fields of OpenAI that must be null: {', '.join(f'`{name}`' for name in sorted(unsupported))}.",
            ]
        if issubclass(model, NeutralModel) and model.neutral:
            lines += ["", "| accepted | when | why other values are refused |", "|---|---|---|"]
        for name, row in sorted(model.neutral.items() if issubclass(model, NeutralModel) else ()):
            values = ", ".join(f"`{json.dumps(value)}`" for value in (None, *row.values))
            lines.append(f"| `{name}` | {values} | {row.reason} |")
    return "\n".join(lines) + "\n"


def _is_unsupported(field: FieldInfo) -> bool:
    return field.annotation is NoneType


def openapi_document() -> str:
    settings = Settings(engine="fake")
    app = create_server(settings, lambda: FakeEngine(FakeOptions())).app
    return json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"


def main() -> int:
    pages = {
        "settings.md": settings_page(),
        "metrics.md": metrics_page(),
        "vllm.md": vllm_page(),
        "openapi.json": openapi_document(),
    }
    if "--check" not in sys.argv:
        for name, text in pages.items():
            (DOCS / name).write_text(text, encoding="utf-8")
        return 0
    stale = [
        name
        for name, text in pages.items()
        if not (DOCS / name).exists() or (DOCS / name).read_text(encoding="utf-8") != text
    ]
    if stale:
        print(f"out of date: {', '.join(f'docs/{name}' for name in stale)}; run scripts/docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
