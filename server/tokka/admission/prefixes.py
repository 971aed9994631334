"""Which beginnings of prompts the engine has probably computed already, so that only the rest costs. Pure.

The engine keeps blocks of tokens. This index keeps blocks of text, each known by a hash of all text up to its end: it
is asked before anybody has tokenised the prompt. Tenants that do not share the cache have salts of their own.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokka.core import ChatPrompt, Prompt, TextPrompt, TokensPrompt

_BLOCK_CHARS = 1024
# Of token ids, as an array keeps them.
ID_TYPECODE = "I"
# Of one prompt: beyond it nothing is predicted.
_MOST_BLOCKS = 512
# A block of text has about as many tokens.
_BLOCK_TOKENS = 256
# Less of what was predicted than this, and the engine has dropped the rest meanwhile.
_LEAST = 0.5


@dataclass(frozen=True, slots=True)
class Prefix:
    """The blocks of a request's prompts, and the share of them that is probably in the cache."""

    blocks: tuple[int, ...]
    share: float


class PrefixIndex:
    """Holds as much text as the engine's memory does, the latest used."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, None] = OrderedDict()
        self._most = 0

    def resize(self, kv_tokens: int | None) -> None:
        """`kv_tokens`: tokens that the engine keeps; None: it keeps none from one request to the next."""
        self._most = (kv_tokens or 0) // _BLOCK_TOKENS
        self._known.clear()

    def look(self, salt: str | None, prompts: Sequence[Prompt]) -> Prefix:
        if not self._most:
            return Prefix((), 0.0)
        blocks: list[int] = []
        cached = 0
        for prompt in prompts:
            own = list(_blocks(salt, prompt))
            cached += next((at for at, block in enumerate(own) if block not in self._known), len(own))
            blocks += own
        return Prefix(tuple(blocks), cached / len(blocks) if blocks else 0.0)

    def add(self, prefix: Prefix) -> None:
        """Note that the engine computes these blocks now."""
        for block in prefix.blocks:
            self._known[block] = None
            self._known.move_to_end(block)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def correct(self, prefix: Prefix, share: float) -> None:
        """Forget what was predicted and turned out not to be there. `share`: of its tokens, those that were cached."""
        if share < _LEAST * prefix.share:
            for block in prefix.blocks[int(share * len(prefix.blocks)) :]:
                self._known.pop(block, None)


def _blocks(salt: str | None, prompt: Prompt) -> Iterator[int]:
    """Yield the hash of each beginning of the prompt that is whole blocks long."""
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
            # Any text will do that is the same for the same tokens: four characters each.
            yield array(ID_TYPECODE, token_ids[: most // 4]).tobytes().decode("latin-1")
        case ChatPrompt(messages=messages, tools=tools):
            # Templates write functions first.
            yield "\0".join(map(str, tools.functions))[:most] if tools else ""
            for message in messages:
                yield f"\0{message.get('role')}\0{(message.get('content') or '')[:most]}"
