"""The tool call formats of model families, one row each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """A model family's tool call format."""

    # Each marks the start of calls, or of the next call.
    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()
    # A text that begins with this also consists of calls, without a marker. "": every text does.
    leading: str | None = None
    # Stands before a name that is outside the JSON.
    prefix: str = ""
    is_json: bool = True
    # A constraint allows only calls, so a call that is cut short is not text either.
    is_certain: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.openers, *self.closers)


# The format that tool_choice `required` enforces.
ARRAY = Form(leading="[", is_certain=True)
_TAGS = (("<tool_call>",), ("</tool_call>",))
_DEEPSEEK = (("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"), ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"))
FORMS = {
    "hermes": Form(*_TAGS),
    "qwen3_json": Form(*_TAGS),
    "llama3_json": Form(("<|python_tag|>",), leading="{"),
    "llama4_json": Form(("<|python_tag|>",), leading="{"),
    "mistral": Form(("[TOOL_CALLS]",)),
    "deepseek_v3": Form(*_DEEPSEEK, prefix="function<｜tool▁sep｜>"),
    "deepseek_v31": Form(*_DEEPSEEK),
    "qwen3_coder": Form(*_TAGS, is_json=False),
    "qwen3_xml": Form(*_TAGS, is_json=False),
    "pythonic": Form(leading="[", is_json=False),
    "llama4_pythonic": Form(("<|python_start|>",), leading="[", is_json=False),
}
# The formats that do not need the parser library.
READABLE = tuple(name for name, form in FORMS.items() if form.is_json)
# Any other parser of the library. Its markers are unknown, so its text is read only when it is complete.
UNKNOWN = Form(leading="", is_json=False)
