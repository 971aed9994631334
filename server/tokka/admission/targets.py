"""Targets of TTFT and TPOT: given in seconds, or by a name and then computed from the engine's speed. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tokka.engine_facts import ModelInfo

# `interactive`: times in seconds that readers find fluent. A slower engine gets a multiple of a lone request's times.
_READABLE_TPOT_S, _LONE_STEPS = 0.05, 3.0
_PROMPT_TTFT_S, _FULL_CHUNKS = 1.0, 4.0


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds to the first token and for each further one; None means no target."""

    ttft_s: float | None = None
    tpot_s: float | None = None


def interactive(given: Targets, model: ModelInfo) -> Targets:
    """Return the targets for interactive use on this engine. Given targets stay."""
    costs = model.costs
    if costs is None:
        return given
    chunk = (model.step_tokens or model.max_model_len) / model.copies
    tpot_s = max(_READABLE_TPOT_S, _LONE_STEPS * costs.token_s(1))
    ttft_s = max(_PROMPT_TTFT_S, _FULL_CHUNKS * costs.step_s(0, chunk))
    return Targets(
        round(ttft_s, 3) if given.ttft_s is None else given.ttft_s,
        round(tpot_s, 4) if given.tpot_s is None else given.tpot_s,
    )
