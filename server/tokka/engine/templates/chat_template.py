"""Renders a conversation to text with the chat template of the model or the operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

from tokka.core import ChatPrompt
from tokka.engine.templates.client_marks import Placeholders, Signature
from tokka.engine.templates.control_tokens import ControlTokens, Written
from tokka.engine.templates.inspection import knows_tools, reads, with_written
from tokka.engine.templates.rules import Messages, TemplateRules, find_rules
from tokka.errors import InvalidRequest

# Names of request fields and of the template variables that they set.
_EFFORT = "reasoning_effort"
_VERBOSITY = "verbosity"
# On/off variables of templates that do not support an effort.
_THINKING = ("enable_thinking", "thinking")


class ChatTemplate:
    """Renders conversations. `control`: marks that only the template may write; None lets clients write them too."""

    def __init__(self, tokenizer: Any, template: Any, control: ControlTokens | None) -> None:
        """`template`: the template's text, or a tokenizer's dict of named templates."""
        self._tokenizer = tokenizer
        self._template = template
        self._control = control
        self._signature = Signature(control) if control else None
        self._placeholders = Placeholders(control) if control else None
        self._signed = cache(self._with_signature)
        self._switches = frozenset(name for name in (_EFFORT, _VERBOSITY, *_THINKING) if reads(template, name))
        self._knows_developer = "developer" in str(template)
        self._rules = TemplateRules()
        self._rules = find_rules(
            partial(self._write, None, add_generation_prompt=True), knows_tools=knows_tools(template)
        )

    def problem(self) -> str | None:
        """Return the template's syntax error, or None. `apply` shows the template's complaints about messages."""
        from jinja2 import TemplateSyntaxError

        try:
            self._write(None, [{"role": "user", "content": "Hi"}], None)
        except TemplateSyntaxError as error:
            return f"line {error.lineno}: {error.message}"
        except Exception:
            # The template may refuse this conversation.
            return None
        return None

    def apply(self, prompt: ChatPrompt) -> Written:
        """Render the conversation. Raises InvalidRequest if the template refuses it."""
        prompt = self._with_switches(prompt)
        try:
            if self._control is None or not self._control.are_in(prompt):
                return Written(self._written(prompt))
            return self._with_own_signature(prompt) or self._with_placeholders(prompt)
        except Exception as error:
            # To refuse a conversation (an unknown order of roles, a missing field) a template may raise any exception.
            said = self._placeholders.show(str(error)).text if self._placeholders else str(error)
            reason = (said.strip().splitlines() or [type(error).__name__])[0][:300]
            raise InvalidRequest(
                f"The model's chat template does not take these messages: {reason}", param="messages"
            ) from None

    def _with_own_signature(self, prompt: ChatPrompt) -> Written | None:
        """Render with the template and with its signed copy. Return None if the texts differ or rendering fails."""
        assert self._signature is not None
        source = self._template
        if not isinstance(source, str):
            source = self._tokenizer.get_chat_template(None, self._kept(prompt)[1])
        sign = self._signature.sign
        named = {name: sign(str(mark)) for name, mark in getattr(self._tokenizer, "special_tokens_map", {}).items()}
        signed = replace(prompt, template_kwargs={**named, **prompt.template_kwargs})
        try:
            plain = self._written(prompt)
            return self._signature.read(self._written(signed, self._signed(source), sign), plain)
        except Exception:
            # The template may refuse messages that contain a mark.
            return None

    def _with_placeholders(self, prompt: ChatPrompt) -> Written:
        assert self._placeholders is not None
        return self._placeholders.show(self._written(self._placeholders.hide(prompt)))

    def _with_signature(self, source: str) -> str:
        assert self._signature is not None
        return with_written(source, self._signature.sign)

    def _written(
        self, prompt: ChatPrompt, template: str | None = None, sign: Callable[[str], str] = lambda text: text
    ) -> str:
        return self._write(
            template,
            *self._kept(prompt, sign),
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final_message=prompt.continue_final_message,
            **prompt.template_kwargs,
        )

    def _kept(
        self, prompt: ChatPrompt, sign: Callable[[str], str] = lambda text: text
    ) -> tuple[Messages, Messages | None]:
        """Return messages and tools in the template's format. `sign`: applied to the text that Tokka adds."""
        messages = [self._known_role(message) for message in prompt.messages]
        return self._rules.kept(messages, list(prompt.tools.functions) if prompt.tools else None, sign)

    def _write(self, template: str | None, messages: Messages, tools: Messages | None, /, **variables: Any) -> str:
        if template is None and isinstance(self._template, str):
            template = self._template
        # A model may ship several named templates; let the tokenizer pick one.
        return str(
            self._tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=template, tokenize=False, **variables
            )
        )

    def _with_switches(self, prompt: ChatPrompt) -> ChatPrompt:
        """Set template variables from the request's own fields. Its `template_kwargs` win."""
        effort = prompt.reasoning_effort
        given: dict[str, Any] = {_EFFORT: effort, _VERBOSITY: prompt.verbosity}
        if effort is not None and _EFFORT not in self._switches:
            given |= dict.fromkeys(_THINKING, effort != "none")
        known = {name: value for name, value in given.items() if value is not None and name in self._switches}
        return replace(prompt, template_kwargs={**known, **prompt.template_kwargs}) if known else prompt

    def _known_role(self, message: dict[str, Any]) -> dict[str, Any]:
        """Rename the role `developer` to `system`, its older name, if the template does not know `developer`."""
        if message["role"] == "developer" and not self._knows_developer:
            return {**message, "role": "system"}
        return message
