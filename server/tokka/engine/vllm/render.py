"""From messages or text to token ids, off the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from tokka.core import ChatPrompt, Prompt, TextPrompt, TokensPrompt
from tokka.engine.length import truncate
from tokka.engine.template_rules import Messages, TemplateRules, find_rules
from tokka.engine.vllm.templates import knows_tools, reads
from tokka.errors import ContextLengthExceeded, InvalidRequest, NoChatTemplate, UnsupportedParameter

# Short texts are cheaper to tokenise than to hand to another thread (about 100 us a hop).
_THREADS = 2
# The field's name, and the variable's.
_EFFORT = "reasoning_effort"


class Renderer:
    """Uses the model's own tokenizer and chat template, or the operator's template."""

    def __init__(self, tokenizer: Any, chat_template: str | None, max_model_len: int, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.template = chat_template or getattr(tokenizer, "chat_template", None)
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        # No token is longer, so a text this many times the context cannot fit: it need not be tokenised to be refused.
        self._longest_token_chars = max(map(len, tokenizer.get_vocab()), default=1)
        self._reads_effort = reads(self.template, _EFFORT)
        self._knows_developer = "developer" in str(self.template)
        self._rules = self._find_rules()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="render")

    @property
    def has_chat_template(self) -> bool:
        return self.template is not None

    def template_problem(self) -> str | None:
        """Return what is wrong with the template's syntax, or None. What it says about messages shows with them."""
        from jinja2 import TemplateSyntaxError

        if self.template is None:
            return None
        try:
            self._write([{"role": "user", "content": "Hi"}], None)
        except TemplateSyntaxError as error:
            return f"line {error.lineno}: {error.message}"
        except Exception:
            # It may well refuse a conversation like this one.
            return None
        return None

    async def token_ids(self, prompt: Prompt, keep: int | None = None, *, to_run: bool = True) -> list[int]:
        """Return the prompt's tokens, the last `keep` of them. Raises InvalidRequest.

        `to_run`: refuse a text that cannot fit the context without tokenising it.
        """
        if isinstance(prompt, TokensPrompt):
            ids = self._checked(prompt.token_ids)
        else:
            ids = await asyncio.get_running_loop().run_in_executor(self._pool, self._render, prompt, keep, to_run)
        return list(truncate(ids, keep))

    async def decode_apart(self, token_ids: list[int]) -> str:
        """Like `decode`, off the event loop: for as many tokens as a client likes."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.decode, token_ids)

    def decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _checked(self, token_ids: tuple[int, ...]) -> list[int]:
        for token in token_ids:
            if not 0 <= token < self._vocab_size:
                raise InvalidRequest(
                    f"The prompt holds the token id {token}; ids of this model are 0 to {self._vocab_size - 1}.",
                    param="prompt",
                )
        return list(token_ids)

    def _render(self, prompt: ChatPrompt | TextPrompt, keep: int | None, to_run: bool) -> list[int]:
        match prompt:
            case TextPrompt(text):
                param, special = "prompt", True
            case ChatPrompt():
                # The template writes the special tokens itself.
                text, param, special = self._apply_template(prompt), "messages", False
        if to_run:
            text = self._cut(text, keep, param)
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        if not ids and not text:
            ids = self._document_start()
        if not ids:
            raise InvalidRequest("The prompt is empty. Send at least one token.", param=param)
        return ids

    def _document_start(self) -> list[int]:
        """The tokens a model saw where a document began: what OpenAI takes for an empty prompt."""
        starts = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        return [start for start in starts if start is not None][:1]

    def _cut(self, text: str, keep: int | None, param: str) -> str:
        most = (keep or self._max_model_len) * self._longest_token_chars
        if len(text) <= most:
            return text
        if keep is not None:
            return text[-most:]
        raise ContextLengthExceeded(
            f"This model's maximum context length is {self._max_model_len} tokens. Your {param} of {len(text)} "
            f"characters has at least {len(text) // self._longest_token_chars} tokens. Please shorten it.",
            param=param,
        )

    def _apply_template(self, prompt: ChatPrompt) -> str:
        if self.template is None:
            raise NoChatTemplate
        prompt = self._with_effort(prompt)
        messages = [self._known_role(message) for message in prompt.messages]
        try:
            return self._write(
                *self._rules.kept(messages, list(prompt.tools.functions) if prompt.tools else None),
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final_message=prompt.continue_final_message,
                **prompt.template_kwargs,
            )
        except Exception as error:
            # Templates refuse what they do not know (an order of roles, a missing field) by raising anything at all.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise InvalidRequest(
                f"The model's chat template does not take these messages: {reason}", param="messages"
            ) from None

    def _find_rules(self) -> TemplateRules:
        if self.template is None:
            return TemplateRules()
        write = partial(self._write, add_generation_prompt=True)
        return find_rules(write, knows_tools=knows_tools(self.template))

    def _write(self, messages: Messages, tools: Messages | None, /, **variables: Any) -> str:
        # Of several by name the tokenizer, whose they are, takes the one that fits.
        template = self.template if isinstance(self.template, str) else None
        return str(
            self._tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=template, tokenize=False, **variables
            )
        )

    def _with_effort(self, prompt: ChatPrompt) -> ChatPrompt:
        if prompt.reasoning_effort is None:
            return prompt
        if not self._reads_effort:
            raise UnsupportedParameter(
                f"'{_EFFORT}' is not supported by this model: its chat template does not read it. Leave it out.",
                param=_EFFORT,
            )
        return replace(prompt, template_kwargs={**prompt.template_kwargs, _EFFORT: prompt.reasoning_effort})

    def _known_role(self, message: dict[str, Any]) -> dict[str, Any]:
        """OpenAI's newer name for the system role, where the template does not know it."""
        if message["role"] == "developer" and not self._knows_developer:
            return {**message, "role": "system"}
        return message
