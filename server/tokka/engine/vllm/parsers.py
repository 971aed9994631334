"""vLLM's tool-call and reasoning parsers: their marks for a model, and the tool calls they find in a whole text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from tokka.core import ChatPrompt, GenerateRequest, Tools
from tokka.engine.reading.forms import FORMS, UNKNOWN
from tokka.engine.reading.pieces import ParseWhole
from tokka.engine.reading.readers import ReadingPlan
from tokka.engine.reading.thinking import ThoughtMarks
from tokka.engine.templates.inspection import knows_tools, parser_of
from tokka.engine.templates.tool_prompt import FALLBACK_PARSER
from tokka.errors import ConfigurationError, InvalidRequest

log = structlog.get_logger("tokka.engine")

# gpt-oss. vLLM parses its output only from token ids, so engine/reading/harmony.py parses the text.
_HARMONY_CALLS, _HARMONY_THOUGHTS = "openai", "openai_gptoss"
# Last tokens of a prompt in which reasoning may begin or end.
_TAIL_TOKENS = 32
# Start and end of the reasoning, for vLLM's parsers that do not tell it.
_MARKS: Mapping[str, tuple[str, str]] = {
    "deepseek_v3": ("<think>", "</think>"),
    "granite": ("Here is my thought process:", "Here is my response:"),
    "mistral": ("[THINK]", "[/THINK]"),
}


class Parsers:
    """Chooses how to read this model's output. Raises ConfigurationError for a parser that does not fit the model."""

    def __init__(
        self, tokenizer: Any, template: Any, tool_call_parser: str | None, reasoning_parser: str | None
    ) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(map(str, tokenizer.all_special_tokens)) | frozenset(
            entry.content for entry in getattr(tokenizer, "added_tokens_decoder", {}).values() if entry.special
        )
        self._calls = self._call_parser(template, tool_call_parser)
        self._form = FORMS.get(self._calls, UNKNOWN)
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._is_harmony = self._calls == _HARMONY_CALLS or reasoning_parser == _HARMONY_THOUGHTS
        self.thoughts = self._marks(reasoning_parser) if reasoning_parser and not self._is_harmony else None

    def reading(self, request: GenerateRequest, prompt_ids: Sequence[int]) -> ReadingPlan | None:
        """Return how to read the choices of a request; None if they are plain text."""
        prompt = request.prompts[0]
        # design 2.4.1
        # reading/design 1.3
        if not isinstance(prompt, ChatPrompt):
            return None
        tools = prompt.tools
        auto = tools is not None and tools.choice == "auto"
        # design 2.4.1
        # reading/design 1.4
        if self._is_harmony and request.sampling.constraint is None:
            return ReadingPlan(tools=tools, is_harmony=True, count_thoughts=self._count_parts)
        # reading/design 1.5
        if tools is None and self.thoughts is None:
            return None
        return ReadingPlan(
            tools=tools,
            # design 2.4.2
            form=self._form if auto else None,
            whole=self._whole(tools) if auto and tools else None,
            thoughts=self._thoughts_after(prompt_ids) if self.thoughts else None,
            count_thoughts=self._count_thoughts if self.thoughts else None,
        )

    def constrained(self, request: GenerateRequest) -> GenerateRequest:
        """Return the request, without an optional constraint that this model cannot follow. Raises InvalidRequest."""
        constraint = request.sampling.constraint
        # design 2.3.1
        if constraint is None or constraint.kind != "calls" or self._form == FORMS[FALLBACK_PARSER]:
            return request
        # design 2.3.2
        if constraint.is_optional:
            return replace(request, sampling=replace(request.sampling, constraint=None))
        raise InvalidRequest(
            f"With this model {constraint.param} cannot be combined with optional tool calls, since its tool calls are "
            "not in Hermes format. Leave one out, or set tool_choice to none or required.",
            param=constraint.param,
        )

    def shows_special(self, reading: ReadingPlan) -> bool:
        """Return whether special tokens stay in the text, because they mark tool calls or reasoning."""
        if reading.form == UNKNOWN or reading.is_harmony:
            return True
        marks = [*(reading.form.marks if reading.form else ())]
        if reading.thoughts:
            marks += [reading.thoughts.start, reading.thoughts.end]
        return any(special in mark for mark in marks for special in self._special)

    def _call_parser(self, template: Any, name: str | None) -> str:
        # reading/design 1.1
        if name is None:
            found = parser_of(template) if knows_tools(template) else None
            origin = "template" if found else "fallback"
            log.info("tool_call_parser", parser=found or FALLBACK_PARSER, chosen_by=origin)
            return found or FALLBACK_PARSER
        # reading/design 1.2
        if template is not None and not knows_tools(template) and name != FALLBACK_PARSER:
            raise ConfigurationError(
                f"--tool-call-parser {name}: the model's chat template does not support tools, so Tokka asks for tool "
                f"calls in {FALLBACK_PARSER} format; leave the option out, or give a --chat-template with tools"
            )
        self._tool_parser(name, None)
        log.info("tool_call_parser", parser=name, chosen_by="option")
        return name

    def _tool_parser(self, name: str, tools: Any) -> Any:
        from vllm.tool_parsers import ToolParserManager

        try:
            parser = ToolParserManager.get_tool_parser(name)(self._tokenizer, tools)
        except Exception as error:
            raise ConfigurationError(f"--tool-call-parser {name} does not fit this model: {error}") from None
        if hasattr(parser, "skip_reasoning_parsing"):
            # Tokka separates the reasoning before this parser runs.
            parser.skip_reasoning_parsing = True
        return parser

    def _whole(self, tools: Tools) -> ParseWhole:
        def parse(text: str) -> tuple[list[tuple[str, str]], str]:
            request = _vllm_request(tools)
            try:
                found = self._tool_parser(self._calls, request.tools).extract_tool_calls(text, request)
            except Exception as error:
                log.warning("tool_call_parser_failed", parser=self._calls, error=type(error).__name__)
                return [], text
            calls = [(call.function.name, call.function.arguments) for call in found.tool_calls]
            return calls, found.content or ""

        return parse

    def _marks(self, name: str) -> ThoughtMarks:
        from vllm.reasoning import ReasoningParserManager

        try:
            parser = ReasoningParserManager.get_reasoning_parser(name)(self._tokenizer)
            start, end = _MARKS.get(name) or (parser.reasoning_start_str, parser.reasoning_end_str)
            if start and end:
                thought, _ = parser.extract_reasoning("x", _vllm_request(None))
                return ThoughtMarks(start, end, begins=thought == "x")
        except Exception as error:
            raise ConfigurationError(f"--reasoning-parser {name} does not fit this model: {error}") from None
        raise ConfigurationError(f"--reasoning-parser {name}: its format cannot be streamed; leave the option out")

    def _thoughts_after(self, prompt_ids: Sequence[int]) -> ThoughtMarks:
        """Return how reasoning begins after this prompt, which may have begun it already or ruled it out."""
        assert self.thoughts is not None
        tail = self._tail(prompt_ids)
        # reading/design 1.6
        if tail.endswith(self.thoughts.start):
            return ThoughtMarks(self.thoughts.start, self.thoughts.end, begins=True)
        if tail.endswith(self.thoughts.end):
            return ThoughtMarks(self.thoughts.start, self.thoughts.end, begins=False)
        return self.thoughts

    def reasoning_ended(self, request: GenerateRequest, prompt_ids: Sequence[int]) -> bool | None:
        """Return whether a constraint applies from the first token, not after the reasoning; None without reasoning.

        If reasoning is optional, the constraint applies at once. Without reasoning it would otherwise never start.
        """
        if self.thoughts is None:
            return None
        return not isinstance(request.prompts[0], ChatPrompt) or not self._thoughts_after(prompt_ids).begins

    def _tail(self, prompt_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(prompt_ids[-_TAIL_TOKENS:]), skip_special_tokens=False)).rstrip()

    def _count_parts(self, token_ids: Sequence[int], text: str, is_open: bool) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _count_thoughts(self, token_ids: Sequence[int], text: str, is_open: bool) -> int:
        """Return the number of a choice's reasoning tokens, without marks that are single tokens."""
        assert self.thoughts is not None
        start, end = (self._vocabulary.get(mark, -1) for mark in (self.thoughts.start, self.thoughts.end))
        if end in token_ids:
            return list(token_ids).index(end) - int(token_ids[0] == start)
        if is_open:
            return len(token_ids) - int(bool(token_ids) and token_ids[0] == start)
        return self._count_parts(token_ids, text, is_open)


def _vllm_request(tools: Tools | None) -> Any:
    """Return the request from which vLLM's parsers read the tools."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest(
        messages=[{"role": "user", "content": ""}],
        model="",
        tools=list(tools.functions) if tools else None,
        tool_choice="auto" if tools else "none",
    )
