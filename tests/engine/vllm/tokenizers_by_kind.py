"""Tokenizers of the kinds that models have: small ones trained here, and the embedded model's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tokka.engine.vllm.start.embedded import _gguf

TEXT = [
    "Hyvää päivää, poro! 🦌 The reindeer herd is called tokka.",
    "naïve café, 漢字 and 👩‍👩‍👧  x\n\n y\t<b>z</b> 1234",
]
BEGIN, END, TOOL = "<|im_start|>", "<|im_end|>", "<tool_call>"
# Two of them begin with the same characters, and one ends with the beginning of others.
MARKS = (BEGIN, END, TOOL, "[INST]", "<s>", "</s>", "<|im_start|>x", "</b>")
# Added tokens of ordinary text.
ORDINARY = ("\n\n", "  ", "user", "漢")


def _byte_level(*, prefix_space: bool) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXT * 20, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return backend


def _split_digits() -> Any:
    """Return a tokenizer that composes characters, and splits words and digits by a pattern, like Qwen's."""
    from tokenizers import Regex

    backend = _byte_level(prefix_space=False)
    backend.normalizer = normalizers.NFC()
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return backend


def _metaspace(scheme: str) -> Any:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\t", " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.train_from_iterator(
        TEXT * 20, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"])
    )
    return backend


def _prepend() -> Any:
    """Return a tokenizer without a pre-tokenizer, like Llama 2's."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.train_from_iterator(TEXT * 20, trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>"]))
    return backend


def _word_piece() -> Any:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(TEXT * 20, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"]))
    return backend


_BACKENDS: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: _byte_level(prefix_space=False),
    "byte-level-space": lambda: _byte_level(prefix_space=True),
    "split-digits": _split_digits,
    "metaspace-always": lambda: _metaspace("always"),
    "metaspace-first": lambda: _metaspace("first"),
    "prepend": _prepend,
    "word-piece": _word_piece,
}
KINDS = (*_BACKENDS, "odd-marks", "normalized-marks", "embedded")


@cache
def tokenizer_of(kind: str) -> Any:
    """Return a tokenizer with `MARKS` and `ORDINARY`."""
    if kind == "embedded":
        found = AutoTokenizer.from_pretrained(_gguf().parent, gguf_file=_gguf().name)
        found.add_tokens([AddedToken(text, normalized=False) for text in (*MARKS, *ORDINARY)])
        return found
    backend = _BACKENDS.get(kind, _BACKENDS["metaspace-first"])()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    fast.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    fast.add_tokens([AddedToken(text, special=False, normalized=False) for text in ORDINARY])
    if kind == "odd-marks":
        fast.add_tokens([AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
        fast.add_tokens([AddedToken("<|end|>", special=True, normalized=False, rstrip=True)])
        fast.add_tokens([AddedToken("word", normalized=False, single_word=True)])
    if kind == "normalized-marks":
        fast.add_tokens([AddedToken("<|wide|>", special=True, normalized=True)])
    return fast
