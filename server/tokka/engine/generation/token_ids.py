"""Checks a request's token ids against the vocabulary, the same for every engine."""

from __future__ import annotations

from tokka.core import Sampling
from tokka.errors import InvalidRequest


def check_token_ids(sampling: Sampling, vocab_size: int) -> None:
    """Raise InvalidRequest for an id outside the vocabulary: as an index into logits it would affect other requests."""
    ids_by_param = {
        "logit_bias": sampling.logit_bias or (),
        "stop_token_ids": sampling.stop_token_ids,
        "allowed_token_ids": sampling.allowed_token_ids or (),
        "logprob_token_ids": sampling.logprob_token_ids,
    }
    for param, ids in ids_by_param.items():
        for token in ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequest(
                    f"{param} holds the token id {token}; ids of this model are 0 to {vocab_size - 1}.", param=param
                )
