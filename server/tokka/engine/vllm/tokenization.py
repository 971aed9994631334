"""Tokenises rendered texts. Takes the tokens of repeated segments from a cache, and refuses texts that cannot fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokka.engine.templates.control_tokens import ControlTokens, Written
from tokka.engine.vllm.segments import find_segments
from tokka.engine.vllm.token_cache import Segment, TokenCache
from tokka.errors import ContextLengthExceeded

# Characters from which a text is cut into segments. Shorter texts are tokenised within a millisecond.
_LEAST_CACHED_CHARS = 2 << 10
# Characters tokenised at once to see whether a long text fits at all, and maximum tokens that a cut may add.
_PROBE_CHARS = 32 << 10
_PROBE_SLACK = 64
# Characters for each token of room up to which a text that seems to fit is tokenised at once, and characters of the
# sample that tells. Prose has 2 to 5 characters a token. Without the sample, it would be tokenised twice.
_CHARS_PER_TOKEN = 4
_SAMPLE_CHARS = 4 << 10


@dataclass(frozen=True, slots=True)
class Owner:
    """A tenant, and a salt that separates its cached tokens."""

    tenant: str
    salt: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A rendered text. `is_raw`: clients may write control tokens in it. `adds_ends`: add begin and end tokens."""

    written: Written
    is_raw: bool
    adds_ends: bool


class Tokenization:
    """Turns rendered texts into token ids.

    `control`: marks that only the template may write; None lets clients write them. `structure`: the template's text.
    """

    def __init__(self, tokenizer: Any, control: ControlTokens | None, structure: str, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._control = control
        self._max_model_len = max_model_len
        self._segments = find_segments(tokenizer, structure)
        self._backend: Any = None
        # Without begin and end tokens, adding them changes nothing.
        self._has_ends = False
        if self._segments is not None:
            self._backend = tokenizer.backend_tokenizer
            # The tokenizer's file may set them. vLLM's tokenizer calls copies of this one, which leave it as it is.
            self._backend.no_truncation()
            self._backend.no_padding()
            self._has_ends = tokenizer.num_special_tokens_to_add(pair=False) > 0
        self._cache = TokenCache()

    def token_ids(self, text: Text, owner: Owner, param: str | None) -> list[int]:
        """Return the tokens of a text.

        `param`: the request field of the text. Raises ContextLengthExceeded for a long text as soon as it certainly has
        too many tokens. None: a text of any length.
        """
        whole = text.written.text
        if self._segments is None or len(whole) < _LEAST_CACHED_CHARS or (text.adds_ends and self._has_ends):
            self._check_fits(whole, len(whole), 0, param)
            return self._encoded(text)
        # design 2.1.3.1
        segments = [replace(text, written=written, adds_ends=False) for written in self._segments.of(text.written)]
        keys = [self._key(segment, owner) for segment in segments]
        found: list[Sequence[int] | None] = [self._cache.get(owner.tenant, key) for key in keys]
        missing = [place for place, tokens in enumerate(found) if tokens is None]
        rest = "".join(segments[place].written.text for place in missing)
        self._check_fits(rest, len(whole), sum(len(tokens) for tokens in found if tokens is not None), param)
        for place, tokens in zip(missing, self._all_encoded([segments[place] for place in missing]), strict=True):
            found[place] = tokens
            self._cache.put(owner.tenant, keys[place], tokens)
        ids: list[int] = []
        for known in found:
            ids += known or ()
        return ids

    def _key(self, segment: Text, owner: Owner) -> Segment:
        written = segment.written
        return owner.salt, written.text, tuple(written.client) if self._needs_care(segment) else None

    def _needs_care(self, text: Text) -> bool:
        return not text.is_raw and self._control is not None and self._control.needs_care(text.written)

    def _encoded(self, text: Text) -> list[int]:
        # design 2.1.3
        if self._control is not None and self._needs_care(text):
            return self._control.token_ids(text.written, add_special_tokens=text.adds_ends)
        return self._plain([text.written.text], adds_ends=text.adds_ends)[0]

    def _all_encoded(self, segments: Sequence[Text]) -> Iterator[list[int]]:
        """Yield the tokens of each segment. The library encodes many texts at once faster than one by one."""
        texts = [segment.written.text for segment in segments if not self._needs_care(segment)]
        plain = iter(self._plain(texts, adds_ends=False))
        for segment in segments:
            yield self._encoded(segment) if self._needs_care(segment) else next(plain)

    def _plain(self, texts: list[str], *, adds_ends: bool) -> list[list[int]]:
        """Return the tokens of each text, with all control tokens in it."""
        if self._backend is None:
            return [self._tokenizer(text, add_special_tokens=adds_ends)["input_ids"] for text in texts]
        # The tokenizer's own call takes up to twice as long, since it also computes offsets and masks.
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=adds_ends)]

    def _seems_to_fit(self, text: str, room: int) -> bool:
        # From the middle: a text may begin with something else than its content, like a list of tools.
        begin = len(text) // 2
        (tokens,) = self._plain([text[begin : begin + _SAMPLE_CHARS]], adds_ends=False)
        return len(tokens) * len(text) <= room * _SAMPLE_CHARS

    def _check_fits(self, text: str, chars: int, known: int, param: str | None) -> None:
        """Raise ContextLengthExceeded if a text of `chars` characters certainly has too many tokens.

        `text`: the part of it that is not tokenised yet. `known`: the tokens of the other part.
        """
        room = self._max_model_len - known
        # A text rarely has more tokens than characters. Tokenising it twice would take longer than refusing it later.
        if param is None or (room >= 0 and len(text) <= max(2 * _PROBE_CHARS, room)):
            return
        if len(text) <= _CHARS_PER_TOKEN * room and self._seems_to_fit(text, room):
            return
        for at in range(0, len(text) if room >= 0 else 0, _PROBE_CHARS):
            (tokens,) = self._plain([text[at : at + _PROBE_CHARS]], adds_ends=False)
            room -= len(tokens) - _PROBE_SLACK
            # design 2.1.2
            if room < 0:
                break
        if room < 0:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._max_model_len} tokens. Your {param} of {chars} "
                f"characters has at least {self._max_model_len - room} tokens. Please shorten it.",
                param=param,
                prompt_tokens=self._max_model_len - room,
                maximum=self._max_model_len - 1,
            )
