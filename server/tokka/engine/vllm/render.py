"""Turns messages or text into token ids: short ones at once, others off the event loop and fairly between tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from typing import Any, TypeVar

from tokka.core import ChatPrompt, Prompt, TextPrompt, TokensPrompt
from tokka.engine.generation.length import Truncation
from tokka.engine.templates.chat_template import ChatTemplate
from tokka.engine.templates.control_tokens import ControlTokens, Written
from tokka.engine.templates.inspection import removed_by
from tokka.engine.vllm.tokenization import Owner, Text, Tokenization
from tokka.errors import ContextLengthExceeded, EngineDied, InvalidRequest, NoChatTemplate
from tokka.prompt_size import text_chars
from tokka.turns import Capacity, FairTurns

T = TypeVar("T")
# Threads, and how many of them may work on a long text at once; characters from which a text is long. Tokenising this
# many takes 20 ms.
_THREADS, _LONG_TEXTS = 2, 1
_LONG_CHARS = 32 << 10
# Texts handed to the threads at once. The threads find the next one there, without a turn of the event loop in between.
_PLACES = 8
# Maximum characters of a text rendered on the event loop: 0.6 ms for English, 7 ms for emoji. A thread's result waits
# for the interpreter's lock and for the next turn of the loop. On a busy server that bounds the rate of requests.
_SHORT_CHARS = 2 << 10
# Characters that count for each message, since a template takes as long for it; and the fields of a plain message.
_MESSAGE_CHARS = 64
_PLAIN = frozenset({"role", "content"})
# Maximum characters that wait for a thread.
_WAITING_CHARS = 64 << 20
# Maximum characters of a tokenised text: the larger of this and _MOST_CHARS_PER_TOKEN for each token of the context.
# Tokenising takes 300 bytes of memory per character.
_MOST_CHARS = 1 << 20
_MOST_CHARS_PER_TOKEN = 16
# Maximum bad words that vLLM accepts, as token sequences.
_MAX_BAD_WORDS = 128


class Renderer:
    """Renders prompts with the model's tokenizer and the chat template of the model or the operator."""

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None,
        max_model_len: int,
        vocab_size: int,
        *,
        raw_chat: bool = False,
    ) -> None:
        """`raw_chat`: clients may write control tokens in messages."""
        self._tokenizer = tokenizer
        self.template = chat_template or getattr(tokenizer, "chat_template", None)
        self._control = None if raw_chat else ControlTokens(tokenizer, str(self.template), removed_by(self.template))
        self._chat = ChatTemplate(tokenizer, self.template, self._control) if self.template is not None else None
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        # No token is longer, so a truncated prompt needs at most this many characters for each token that it keeps.
        self._longest_token_chars = max(map(len, tokenizer.get_vocab()), default=1)
        self._most_chars = max(_MOST_CHARS, _MOST_CHARS_PER_TOKEN * max_model_len)
        self._tokenization = Tokenization(tokenizer, self._control, str(self.template), max_model_len)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="render")
        self._turns = FairTurns(Capacity(_PLACES, _LONG_TEXTS, _LONG_CHARS, _WAITING_CHARS))
        self._is_closed = False

    @property
    def has_chat_template(self) -> bool:
        return self.template is not None

    def template_problem(self) -> str | None:
        """Return the chat template's syntax error, or None."""
        return self._chat.problem() if self._chat else None

    async def token_ids(
        self,
        prompt: Prompt,
        tenant: str,
        kept: Truncation | None = None,
        *,
        salt: str | None = None,
        to_run: bool = True,
    ) -> list[int]:
        """Return the prompt's tokens, truncated to `kept`. Raises InvalidRequest, ServerOverloaded.

        `salt`: separates cached tokens of one tenant. `to_run`: replace an empty text by the start of a document.
        Refuse a text that cannot fit the context, without tokenising all of it.
        """
        # design 2.1
        if isinstance(prompt, TokensPrompt):
            return self._checked(kept.of(prompt.token_ids) if kept else prompt.token_ids)
        work = partial(self._render, prompt, kept, to_run, Owner(tenant, salt))
        if self._is_short(prompt):
            ids = self._unless_closed(work)
        else:
            ids = await self._apart(tenant, text_chars(prompt), work)
        return list(kept.of(ids)) if kept else ids

    async def decode_apart(self, token_ids: Sequence[int], tenant: str) -> str:
        """Like `decode`, but off the event loop, for any number of tokens. Raises InvalidRequest for an unknown id."""
        return await self._apart(tenant, len(token_ids), partial(self._decode_checked, token_ids))

    def _decode_checked(self, token_ids: Sequence[int]) -> str:
        if (token := self._unknown(token_ids)) is not None:
            raise InvalidRequest(
                f"tokens holds the id {token}; ids of this model are 0 to {self._vocab_size - 1}.", param="tokens"
            )
        return self.decode(list(token_ids))

    async def token_texts(self, token_ids: Sequence[int], tenant: str) -> list[str]:
        """Return each token as it is in the vocabulary. Raises ServerOverloaded."""
        work = partial(self._tokenizer.convert_ids_to_tokens, list(token_ids))
        return [str(text) for text in await self._apart(tenant, len(token_ids), work)]

    async def bad_words(self, words: Sequence[str], tenant: str) -> list[list[int]]:
        """Return the token sequences that vLLM must not generate. Raises InvalidRequest."""
        return await self._apart(tenant, sum(map(len, words)), partial(self._bad_words, words))

    def _is_short(self, prompt: ChatPrompt | TextPrompt) -> bool:
        """Return whether a prompt is rendered within a few milliseconds, whatever its content."""
        if isinstance(prompt, TextPrompt):
            return len(prompt.text) <= _SHORT_CHARS
        # Tools, calls and variables may hold any amount of text, and nested values.
        if prompt.tools or prompt.template_kwargs or not all(message.keys() <= _PLAIN for message in prompt.messages):
            return False
        return text_chars(prompt) + _MESSAGE_CHARS * len(prompt.messages) <= _SHORT_CHARS

    async def _apart(self, tenant: str, cost: int, work: Callable[[], T]) -> T:
        return await self._turns.run(tenant, cost + 1, lambda: self._submitted(work))

    def _submitted(self, work: Callable[[], T]) -> asyncio.Future[T]:
        if self._is_closed:
            raise EngineDied
        return asyncio.get_running_loop().run_in_executor(self._pool, self._unless_closed, work)

    def _unless_closed(self, work: Callable[[], T]) -> T:
        if self._is_closed:
            raise EngineDied
        return work()

    def decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def close(self) -> None:
        """End the threads after their current work. Waiting texts are refused with EngineDied. Does not block."""
        self._is_closed = True
        self._pool.shutdown(wait=False)

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        # A prompt that is too long is refused later, so its ids need no check.
        if len(token_ids) <= self._max_model_len and (token := self._unknown(token_ids)) is not None:
            raise InvalidRequest(
                f"The prompt holds the token id {token}; ids of this model are 0 to {self._vocab_size - 1}.",
                param="prompt",
            )
        return list(token_ids)

    def _unknown(self, token_ids: Sequence[int]) -> int | None:
        """Return an id that is not in the vocabulary, or None."""
        for token in (max(token_ids, default=0), min(token_ids, default=0)):
            if not 0 <= token < self._vocab_size:
                return token
        return None

    def _bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """Return each word's tokens at the start of a text and, if the first token differs then, after a space."""
        found: list[list[int]] = []
        for word in map(str.lstrip, words):
            first, spaced = (self._tokenizer.encode(text, add_special_tokens=False) for text in (word, f" {word}"))
            if not first:
                raise InvalidRequest("bad_words holds a word that has no tokens; leave it out.", param="bad_words")
            found.append(first)
            if spaced and spaced[0] != first[0] and len(spaced) == len(first):
                found.append(spaced)
        if len(found) > _MAX_BAD_WORDS:
            raise InvalidRequest(
                f"bad_words has {len(found)} token sequences, since a word counts with and without a space before it; "
                f"at most {_MAX_BAD_WORDS} are allowed.",
                param="bad_words",
            )
        return found

    def _render(
        self, prompt: ChatPrompt | TextPrompt, kept: Truncation | None, to_run: bool, owner: Owner
    ) -> list[int]:
        match prompt:
            case TextPrompt(text):
                written, param = Written(text), prompt.param or "prompt"
            # design 2.1.1
            case ChatPrompt() if self._chat is None:
                raise NoChatTemplate
            case ChatPrompt():
                written, param = self._chat.apply(prompt), "messages"
        written = self._cut(written, kept, param)
        is_chat = isinstance(prompt, ChatPrompt)
        # A template writes the special tokens itself.
        adds_ends = not is_chat if prompt.add_special_tokens is None else prompt.add_special_tokens
        rendered = Text(written, is_raw=not is_chat, adds_ends=adds_ends)
        ids = self._tokenization.token_ids(rendered, owner, param if to_run and kept is None else None)
        if not to_run:
            return ids
        # design 2.1.4
        if not ids and not written.text:
            ids = self._document_start()
        if not ids:
            raise InvalidRequest("The prompt is empty. Send at least one token.", param=param)
        return ids

    def _document_start(self) -> list[int]:
        """Return the token that begins a document for this model. OpenAI uses it for an empty prompt."""
        starts = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        return [start for start in starts if start is not None][:1]

    def _cut(self, written: Written, kept: Truncation | None, param: str) -> Written:
        """Return the part of a text to tokenise. Raises ContextLengthExceeded if the text is too long."""
        if kept is not None:
            chars = min(self._most_chars, kept.keep * self._longest_token_chars)
            return written.first(chars) if kept.cuts_end else written.last(chars)
        # design 2.1.2
        if len(written.text) <= self._most_chars:
            return written
        raise ContextLengthExceeded(
            f"This model's maximum context length is {self._max_model_len} tokens. Your {param} of {len(written.text)} "
            f"characters is longer than the allowed {self._most_chars} characters. Please shorten it.",
            param=param,
            prompt_tokens=max(self._max_model_len, len(written.text) // self._longest_token_chars),
            maximum=self._max_model_len - 1,
        )


def tokenizer_line(tokenizer: Any, vocab_size: int) -> dict[str, Any] | None:
    """Return the tokenizer data that the process needs; None if it cannot use this kind of tokenizer."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.eos_token_id is None:
        return None
    bare = copy(tokenizer.backend_tokenizer)
    bare.no_padding()
    bare.no_truncation()
    return {
        "tokenizer": bare.to_str(),
        "vocab_size": max(vocab_size, len(tokenizer)),
        "eos": tokenizer.eos_token_id,
    }
