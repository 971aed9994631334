"""The tokens of a text's segments, joined, are the tokens of the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, NormalizedString, PreTokenizedString, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.engine.vllm.tokenizers_by_kind import BEGIN, END, KINDS, MARKS, ORDINARY, TOOL, tokenizer_of
from tokka.engine.templates.control_tokens import Written
from tokka.engine.vllm import segments
from tokka.engine.vllm.segments import find_segments

ALL = " ".join(MARKS)
ODD = ("<mask>", "<|end|>", "word", "<|wide|>", "\uff1c|wide|\uff1e")
PIECES = st.sampled_from(
    [
        *(*MARKS, *ORDINARY, *ODD),
        *(mark[:-1] for mark in MARKS),
        *(mark[1:] for mark in MARKS),
        *(
            " ",
            "\n",
            "\t",
            "\u00a0",
            "\u3000",
            "a",
            "words",
            "_",
            "12",
            "e",
            "\u0301",
            "\u200d",
            "🦌",
            "👩",
            "▁",
            "Ġ",
            "##a",
        ),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=6), max_size=14).map("".join)


@pytest.fixture(autouse=True, scope="module")
def _any_length_is_cut() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_LEAST_CHARS", 1)
        yield


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@example(text=f"a {BEGIN} b{END} {BEGIN}{BEGIN}x e")
@example(text=f"e{END}\u0301 <mask> {END}<|end|> {END}word{END}word")
def test_tokens_of_the_segments_are_the_text_s(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    found = find_segments(tokenizer, ALL)
    assert found is not None
    parts = [part.text for part in found.of(Written(text))]
    assert "".join(parts) == text
    assert [token for part in parts for token in ids_of(tokenizer, part)] == ids_of(tokenizer, text)


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_cut_before_each_mark(kind: str) -> None:
    found = find_segments(tokenizer_of(kind), ALL)
    assert found is not None
    parts = [part.text for part in found.of(Written(f"a{BEGIN}b {END}\n{TOOL}[INST]c"))]
    assert parts == ["a", f"{BEGIN}b ", f"{END}\n", TOOL, "[INST]c"]


@given(text=TEXTS, more=TEXTS, least=st.sampled_from([1, 5, 20]))
def test_cuts_stay_when_text_is_appended(text: str, more: str, least: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_LEAST_CHARS", least)
        _check_cuts_stay(text, more)


def _check_cuts_stay(text: str, more: str) -> None:
    found = find_segments(tokenizer_of("byte-level"), ALL)
    assert found is not None
    before = [part.text for part in found.of(Written(text + END))]
    after = [part.text for part in found.of(Written(text + END + more))]
    assert after[: len(before) - 1] == before[:-1]


@given(text=TEXTS, window=st.integers(1, 30))
def test_cuts_are_found_at_the_edge_of_a_search(text: str, window: int) -> None:
    found = find_segments(tokenizer_of("byte-level"), ALL)
    assert found is not None
    whole = [part.text for part in found.of(Written(text))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_WINDOW_CHARS", window)
        assert [part.text for part in found.of(Written(text))] == whole


def test_short_segments_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_LEAST_CHARS", 20)
    found = find_segments(tokenizer_of("byte-level"), ALL)
    assert found is not None
    long = "a long one" * 2
    parts = [part.text for part in found.of(Written(f"{BEGIN}a{END}{BEGIN}b{END}{BEGIN}{long}{END}c"))]
    assert parts == [f"{BEGIN}a{END}", f"{BEGIN}b{END}", f"{BEGIN}{long}", f"{END}c"]


@given(data=st.data())
def test_segments_hold_the_places_of_clients_marks(data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.tuples(PIECES, st.booleans()), max_size=12))
    text, client = "", []
    for piece, is_client in pieces:
        if is_client:
            client.append((len(text), len(text) + len(piece)))
        text += piece
    found = find_segments(tokenizer_of("byte-level"), ALL)
    assert found is not None
    marked: list[int] = []
    done = 0
    for part in found.of(Written(text, client)):
        assert all(0 <= begin < end <= len(part.text) for begin, end in part.client)
        marked += [done + at for begin, end in part.client for at in range(begin, end)]
        done += len(part.text)
    assert marked == [at for begin, end in client for at in range(begin, end)]


# -- tokenizers without an exact cut


def made(*added: AddedToken) -> Any:
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend)
    fast.add_tokens(list(added))
    return fast


def plain(text: str, **flags: bool) -> AddedToken:
    return AddedToken(text, normalized=False, **flags)


@pytest.mark.parametrize(
    "added",
    [
        [],
        [AddedToken("<m>", normalized=True)],
        [plain("<m>", lstrip=True)],
        [plain("<m>", single_word=True)],
        # A token around it, over its beginning, and two of it over each other.
        [plain("<m>"), plain("a<m>")],
        [plain("<m>"), plain("x<")],
        [plain("<m><")],
        [plain("<m>"), plain("<m>>", lstrip=True)],
        # Its first character decides whether a match beside it is a whole word, and may be taken by one.
        [plain("mark")],
        [plain(" <m>")],
    ],
)
def test_added_token_is_no_cut_if_another_match_can_change_it(added: list[AddedToken]) -> None:
    assert find_segments(made(*added), "<m>< mark a<m> <m>>") is None


def test_token_that_the_template_does_not_use_is_no_cut() -> None:
    assert find_segments(made(plain("<m>")), "<other>") is None
    named = made(AddedToken("<m>", normalized=False, special=True))
    named.eos_token = "<m>"
    assert find_segments(named, "") is not None


class InPython:
    def pre_tokenize(self, text: PreTokenizedString) -> None:
        """Keep the text."""

    def normalize(self, text: NormalizedString) -> None:
        """Keep the text."""


class Other(PreTrainedTokenizerFast):  # type: ignore[misc]
    def _encode_plus(self, *args: Any, **fields: Any) -> Any:
        return super()._encode_plus(*args, **fields)


def backend(model: Any = None) -> Any:
    made_here = Tokenizer(model or models.WordLevel({"a": 0}, unk_token="a"))
    made_here.add_tokens([plain("<m>")])
    return made_here


def with_backend(used: Any) -> Any:
    """Return a tokenizer that uses this object itself. A copy would lose parts that cannot be written to a file."""
    fast = PreTrainedTokenizerFast(tokenizer_object=backend())
    fast._tokenizer = used
    return fast


def test_tokenizer_with_a_part_in_python_is_not_cut() -> None:
    with_words, with_normalizer = backend(), backend()
    with_words.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(InPython())
    with_normalizer.normalizer = normalizers.Normalizer.custom(InPython())
    assert find_segments(with_backend(backend()), "<m>") is not None
    assert find_segments(with_backend(with_words), "<m>") is None
    assert find_segments(with_backend(with_normalizer), "<m>") is None


@pytest.mark.parametrize(
    "model", [models.BPE({"a": 0}, [], dropout=0.1), models.Unigram([("a", 0.0)], 0, alpha=0.5, nbest_size=2)]
)
def test_tokenizer_with_random_splits_is_not_cut(model: Any) -> None:
    assert find_segments(with_backend(backend(model)), "<m>") is None


def test_tokenizer_that_changes_the_library_is_not_cut() -> None:
    assert find_segments(Other(tokenizer_object=backend()), "<m>") is None
    letters = PreTrainedTokenizerFast(tokenizer_object=backend(), split_special_tokens=True)
    assert find_segments(letters, "<m>") is None
    assert find_segments(object(), "<m>") is None
