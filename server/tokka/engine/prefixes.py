"""Predict which prefixes of prompts are in the engine's cache, so that only the rest counts as work. Pure.

The engine keeps blocks of tokens. This index keeps blocks of text, because it is asked before the prompt is tokenised.
The hash of a block covers all text up to its end. Tenants that do not share the cache have their own salts.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokka.core import ChatPrompt, Prompt, TextPrompt, TokensPrompt

_BLOCK_CHARS = 1024
# Type code of an `array` of token ids.
ID_TYPECODE = "I"
# Maximum blocks of one prompt. Nothing is predicted beyond them.
_MOST_BLOCKS = 512
# Approximate tokens in a block of text.
_BLOCK_TOKENS = 256
# Minimum share of a predicted prefix that must have been cached. Below it, the engine has dropped the rest.
_LEAST = 0.5


@dataclass(frozen=True, slots=True)
class Prefix:
    """The blocks of a request's prompts, and the share of them that is probably cached."""

    blocks: tuple[int, ...]
    share: float


class PrefixIndex:
    """Indexes as much text as the engine's memory holds, the most recently used."""

    def __init__(self, kv_tokens: int | None) -> None:
        """`kv_tokens`: tokens that the engine keeps; None if it keeps none between requests."""
        self._known: OrderedDict[int, None] = OrderedDict()
        self._most = (kv_tokens or 0) // _BLOCK_TOKENS

    def look(self, salt: str | None, prompts: Sequence[Prompt]) -> Prefix:
        return self.look_for(blocks_of(salt, prompts)) if self._most else Prefix((), 0.0)

    def look_for(self, prompts: Sequence[Sequence[int]]) -> Prefix:
        """Return the prefix of prompts whose blocks are known already. `prompts`: as `blocks_of` returns them."""
        blocks: list[int] = []
        cached = 0
        for own in prompts:
            cached += next((at for at, block in enumerate(own) if block not in self._known), len(own))
            blocks += own
        return Prefix(tuple(blocks), cached / len(blocks) if blocks else 0.0)

    def add(self, prefix: Prefix) -> None:
        """Record that the engine computes these blocks now."""
        for block in prefix.blocks:
            self._known[block] = None
            self._known.move_to_end(block)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def correct(self, prefix: Prefix, share: float) -> None:
        """Forget predicted blocks that were not cached. `share`: the cached share of the prompt's tokens."""
        if share < _LEAST * prefix.share:
            for block in prefix.blocks[int(share * len(prefix.blocks)) :]:
                self._known.pop(block, None)


def blocks_of(salt: str | None, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the blocks of each prompt."""
    return [list(_blocks(salt, prompt)) for prompt in prompts]


def _blocks(salt: str | None, prompt: Prompt) -> Iterator[int]:
    """Yield the hash of each prefix of the prompt that ends with a block."""
    known = hash(salt)
    waiting: list[str] = []
    size = count = 0
    for piece in _pieces(prompt):
        waiting.append(piece)
        size += len(piece)
        if size < _BLOCK_CHARS:
            continue
        text = "".join(waiting)
        for at in range(0, size - _BLOCK_CHARS + 1, _BLOCK_CHARS):
            known = hash((known, text[at : at + _BLOCK_CHARS]))
            yield known
            count += 1
            if count == _MOST_BLOCKS:
                return
        waiting = [text[size - size % _BLOCK_CHARS :]]
        size %= _BLOCK_CHARS


def _pieces(prompt: Prompt) -> Iterable[str]:
    most = _BLOCK_CHARS * _MOST_BLOCKS
    match prompt:
        case TextPrompt(text):
            yield text[:most]
        case TokensPrompt(token_ids):
            # Any text works if it is the same for the same tokens: four characters for each token.
            yield array(ID_TYPECODE, token_ids[: most // 4]).tobytes().decode("latin-1")
        case ChatPrompt(messages=messages, tools=tools):
            # Templates write tools first.
            yield "\0".join(map(str, tools.functions))[:most] if tools else ""
            for message in messages:
                yield f"\0{message.get('role')}\0{(message.get('content') or '')[:most]}"
