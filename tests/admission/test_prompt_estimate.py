"""The estimate of a prompt's tokens: it learns from tokenised prompts, and its minimum stays low."""

from __future__ import annotations

from tokka.admission.prompt_estimate import PromptEstimate
from tokka.core import ChatPrompt, TextPrompt, TokensPrompt


def test_estimate_learns_from_token_counts_of_prompts() -> None:
    estimate = PromptEstimate()
    text = [TextPrompt("x" * 1000)]
    before = estimate.size(text).likely
    for _ in range(100):
        estimate.learn(text, 900)
    after = estimate.size(text)
    assert before < 300
    assert 850 <= after.likely <= 910
    assert after.least < after.likely / 3


def test_estimate_knows_prompts_of_tokens_exactly() -> None:
    size = PromptEstimate().size([TokensPrompt((1, 2, 3)), TokensPrompt((4,))])
    assert (size.likely, size.least) == (4, 4)


def test_estimate_does_not_learn_from_short_prompts() -> None:
    estimate = PromptEstimate()
    long = [TextPrompt("x" * 1000)]
    before = estimate.size(long)
    for _ in range(100):
        # The template has more tokens than the message.
        estimate.learn([ChatPrompt(({"role": "user", "content": "Hi"},))], 40)
    assert estimate.size(long) == before
