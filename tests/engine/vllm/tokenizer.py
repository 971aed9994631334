"""A tokenizer as small as can be: a token for each byte, and one for the end."""

from __future__ import annotations

import json
import random
from typing import Any

EOS = 256


def word_tokenizer() -> dict[str, Any]:
    """Return one that has words besides: what one token may be leads far, as in those of models."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(4000)]
    line = byte_tokenizer()
    tokenizer = json.loads(line["tokenizer"])
    tokenizer["model"]["vocab"] |= {word: EOS + 1 + place for place, word in enumerate(sorted(set(words)))}
    return {**line, "tokenizer": json.dumps(tokenizer), "vocab_size": EOS + 1 + len(set(words))}


def byte_tokenizer() -> dict[str, Any]:
    """Return the first line of the process that makes grammars."""
    # Bytes that are no printable characters stand for others, in the order of this format.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    vocabulary = {shown[byte]: byte for byte in range(256)} | {"<end>": EOS}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": EOS, "content": "<end>", **flags}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    return {"tokenizer": json.dumps(tokenizer), "vocab_size": EOS + 1, "eos": EOS}


def fast_tokenizer() -> Any:
    """Return it as the transformers library has it, which writes chat templates."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(byte_tokenizer()["tokenizer"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<end>", eos_token="<end>")
