"""Decoding in steps of any size gives the same text as the tokenizers library gives for all tokens at once."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tokka.core import Sampling
from tokka.engine.generation.choice import Choice, Decode
from tokka.engine.vllm.vocabulary import Vocabulary

TEXT = ["Hyvää päivää, poro! 🦌 The reindeer herd is called tokka.", "naïve café, 漢字 and 👩‍👩‍👧"]


@cache
def tokenizer() -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(TEXT * 20, trainer)
    backend.add_tokens([AddedToken("<two words>", special=False), "added"])
    # A special token without a role, like the reserved tokens of models.
    backend.add_special_tokens(["<|reserved|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def in_steps(decode: Decode, ids: list[int], data: st.DataObject) -> str:
    """Decode tokens in steps of random sizes."""
    text, at = "", 0
    while at < len(ids):
        size = data.draw(st.integers(1, 5))
        text += decode(ids[at : at + size])
        at += size
    return text


@pytest.mark.parametrize("skip", [True, False])
@given(data=st.data())
def test_any_tokens_make_the_text_the_library_makes_of_them(skip: bool, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(tokenizer()) - 1), max_size=20))
    # An incomplete character at the end gives no text here, but a replacement character in the library.
    ids += tokenizer()("!")["input_ids"]
    decode = Vocabulary(tokenizer()).decoder(None, skip_special=skip)
    assert in_steps(decode, ids, data) == tokenizer()._tokenizer.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=40))
def test_text_comes_back_whole(text: str) -> None:
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    decode = Vocabulary(tokenizer()).decoder(None, skip_special=False)
    assert "".join(decode((token,)) for token in ids) == text


@given(text=st.text(min_size=1, max_size=20), data=st.data())
def test_a_resumed_choice_goes_on_with_the_same_text(text: str, data: st.DataObject) -> None:
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    first, rest = ids[: (cut := data.draw(st.integers(0, len(ids))))], ids[cut:]
    vocabulary = Vocabulary(tokenizer())
    sent = vocabulary.decoder(None, skip_special=True)(first)
    decode = vocabulary.decoder(None, skip_special=True, resumed=cut)
    delta, _ = Choice(0, Sampling(), decode, first).take(rest, "length")
    assert sent + delta.text == text


def test_an_id_beyond_the_vocabulary_is_no_text() -> None:
    assert Vocabulary(tokenizer()).decoder(None, skip_special=True)((len(tokenizer()) + 5,)) == ""
