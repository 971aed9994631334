"""Continues a request on another engine, with the tokens that the client already has. The same for every engine.

The engine computes the prompt and these tokens, and generates the next one. The limits and counts of the request stay
its own: the choice ends at the token at which it would have ended without the interruption.
"""

from __future__ import annotations

from collections.abc import Collection

from tokka.core import ChatPrompt, GenerateRequest
from tokka.errors import InvalidRequest


def can_resume(request: GenerateRequest) -> bool:
    """Return whether an engine can continue the request's choice exactly, up to the rounding of its arithmetic.

    It must be one greedy choice of plain text. Only the model itself may depend on earlier tokens of the choice, so
    there is no constraint, presence or frequency penalty, bad word, stop string, reasoning budget, `min_tokens`,
    logprob or tool. A repetition penalty is allowed: it counts the prompt's tokens too. An engine still refuses a
    choice if it parses reasoning out of the text, which depends on the model.
    """
    if request.task != "generate" or len(request.prompts) != 1 or request.echo:
        return False
    (prompt,), sampling = request.prompts, request.sampling
    if isinstance(prompt, ChatPrompt) and prompt.tools is not None:
        return False
    # A model's own default temperature is not known here.
    is_greedy = sampling.temperature == 0 or sampling.top_p == 0
    depends_on_earlier = (
        sampling.constraint is not None
        or sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
        or sampling.min_tokens > 0
        or sampling.thinking_token_budget is not None
        or bool(sampling.bad_words or sampling.stop)
    )
    is_scored = sampling.logprobs is not None or sampling.prompt_logprobs is not None
    return is_greedy and sampling.n == 1 and not (depends_on_earlier or is_scored)


def check_resume(request: GenerateRequest, allowed: int, vocab_size: int, *, is_read: bool) -> None:
    """Raise InvalidRequest if an engine cannot continue the request exactly after the tokens of `resume`.

    `allowed`: maximum tokens of the choice. `is_read`: whether reasoning or tool calls are read out of its text.
    """
    tokens = request.resume
    if not tokens:
        return
    if is_read or not can_resume(request):
        raise InvalidRequest("This request cannot be resumed. Send it again without `resume`.", param="resume")
    if len(tokens) >= allowed:
        raise InvalidRequest(
            f"resume holds {len(tokens)} tokens; this request may generate {allowed}, so its choice has ended.",
            param="resume",
        )
    for token in (min(tokens), max(tokens)):
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"resume holds the token id {token}; ids of this model are 0 to {vocab_size - 1}.", param="resume"
            )


def check_continues(request: GenerateRequest, end_tokens: Collection[int | None]) -> None:
    """Raise InvalidRequest if the last token of `resume` ends the choice.

    A gateway may have got this token without the event of the choice's end. The engine would generate on after it.
    """
    if request.resume and request.resume[-1] in end_tokens:
        raise InvalidRequest("resume ends with a token that ends the choice.", param="resume")
