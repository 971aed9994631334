"""Token ids outside the vocabulary are refused before any engine uses them as an index."""

from __future__ import annotations

import pytest

from tokka.core import Sampling
from tokka.engine.generation.token_ids import check_token_ids
from tokka.errors import InvalidRequest


def sampling(param: str, token: int) -> Sampling:
    return {
        "logit_bias": Sampling(logit_bias={token: 1.0}),
        "stop_token_ids": Sampling(stop_token_ids=(1, token)),
        "allowed_token_ids": Sampling(allowed_token_ids=(1, token)),
    }[param]


PARAMS = ["logit_bias", "stop_token_ids", "allowed_token_ids"]


@pytest.mark.parametrize("token", [-1, 100, 2**31 - 1])
@pytest.mark.parametrize("param", PARAMS)
def test_an_id_outside_the_vocabulary_is_refused_by_name(param: str, token: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{token}; ids of this model are 0 to 99") as refusal:
        check_token_ids(sampling(param, token), 100)
    assert refusal.value.param == param


@pytest.mark.parametrize("token", [0, 99])
@pytest.mark.parametrize("param", PARAMS)
def test_the_first_and_the_last_id_are_allowed(param: str, token: int) -> None:
    check_token_ids(sampling(param, token), 100)


def test_a_request_without_ids_passes() -> None:
    check_token_ids(Sampling(), 1)
