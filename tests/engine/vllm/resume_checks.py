"""vLLM's part in resumed choices: the text of its decoder, and repetition penalties. Run by test_resume.py."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tokka.core import Sampling
from tokka.engine.generation.choice import Choice
from tokka.engine.vllm.vocabulary import Vocabulary

# torch and vLLM emit warnings when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

BYTES = {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
VOCABULARY = {"<unk>": 0, "<s>": 1, "</s>": 2, **BYTES, "▁the": 259, "▁deer": 260, "▁": 261, "s": 262}
DEER = [3 + byte for byte in "🦌".encode()]
PROMPT = [1, 259]
TOKENS = [*DEER, 260, 262, *DEER, *DEER, 259, 262, 261, *DEER, 260]
TEXT = "🦌 deers🦌🦌 thes 🦌 deer"


@cache
def vocabulary() -> Vocabulary:
    """Return a vocabulary like Llama 2's: words with their spaces, and bytes for other characters."""
    backend = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return Vocabulary(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    )


def text_of(tokens: list[int], resumed: list[int]) -> str:
    """Return the text of a choice's tokens, one by one, that follow the resumed ones."""
    from vllm.sampling_params import SamplingParams

    request: Any = SimpleNamespace(
        request_id="r", prompt_token_ids=[*PROMPT, *resumed], prompt_embeds=None, sampling_params=SamplingParams()
    )
    decode = vocabulary().decoder(request, skip_special=True, resumed=len(resumed))
    choice = Choice(0, Sampling(), decode, resumed)
    text = "".join(choice.take([token])[0].text for token in tokens)
    assert choice.num_tokens == len(resumed) + len(tokens)
    # The engine's own request keeps its input.
    assert request.prompt_token_ids == [*PROMPT, *resumed]
    return text


def test_the_uninterrupted_text_is_as_expected() -> None:
    assert text_of(TOKENS, []) == TEXT


@pytest.mark.parametrize("cut", range(1, len(TOKENS)))
def test_a_choice_cut_anywhere_has_the_same_text(cut: int) -> None:
    first, rest = TOKENS[:cut], TOKENS[cut:]
    assert text_of(first, []) + text_of(rest, first) == TEXT


def test_a_repetition_penalty_is_the_same_for_tokens_of_the_prompt() -> None:
    import torch
    from vllm.v1.sample.ops.penalties import apply_all_penalties

    def penalised(prompt: list[int], output: list[int], presence: float = 0.0) -> Any:
        logits = torch.tensor([[1.0, -2.0, 3.0, -4.0, 5.0]])
        none, repetition = torch.tensor([0.0]), torch.tensor([1.3])
        return apply_all_penalties(
            logits, torch.tensor([prompt]), torch.tensor([presence]), none, repetition, [output]
        ).tolist()

    assert penalised([0], [1, 2]) == penalised([0, 1, 2], []) != penalised([0], [])
    # So can_resume refuses these.
    assert penalised([0], [1, 2], 0.5) != penalised([0, 1, 2], [], 0.5)
