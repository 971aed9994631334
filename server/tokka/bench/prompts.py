"""What is asked: random words of a known length."""

from __future__ import annotations

import random
from typing import Any

# The fields of a request that hold its prompt: `prompt` or `messages`.
Content = dict[str, Any]
# Each is one token of SmolLM2 (and of GPT-2's vocabulary) when a blank precedes it.
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work government number night point home water room mother"
    " area money story fact month lot right study book eye job word business issue side kind head house service friend"
    " father power hour game line end member law car city community name president team minute idea body information"
)
WORDS = _TEXT.split()


def synthetic(tokens: int, chance: random.Random) -> Content:
    return {"prompt": " ".join(chance.choices(WORDS, k=tokens))}
