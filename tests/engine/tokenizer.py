"""Minimal tokenizers: a token for each byte and one for the end, and optionally words."""

from __future__ import annotations

import json
import random
from typing import Any

EOS = 256


def word_tokenizer() -> dict[str, Any]:
    """Return a byte tokenizer that also has words: as with a model's tokenizer, one token can match many characters."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(4000)]
    line = byte_tokenizer()
    tokenizer = json.loads(line["tokenizer"])
    tokenizer["model"]["vocab"] |= {word: EOS + 1 + place for place, word in enumerate(sorted(set(words)))}
    return {**line, "tokenizer": json.dumps(tokenizer), "vocab_size": EOS + 1 + len(set(words))}


def byte_tokenizer() -> dict[str, Any]:
    """Return a byte tokenizer as the first line for the compiler process."""
    # Bytes that are not printable are written as other characters, in the order of this format.
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
    """Return the byte tokenizer as an object of the transformers library, which renders chat templates."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(byte_tokenizer()["tokenizer"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<end>", eos_token="<end>")
