"""Whether a request whose replica is gone may run on another one, and from where. Pure."""

from __future__ import annotations

from dataclasses import replace

from tokka.core import GenerateRequest
from tokka.dispatch.meter import RepeatMeter
from tokka.errors import EngineDied, EngineLost, WorkerDied

# Maximum moves of a request whose replicas were lost, for example in a rolling update or at the end of their time.
_MOST_LOST = 8


def next_request(
    request: GenerateRequest, meter: RepeatMeter, error: EngineDied | EngineLost, repeats: int, others: int
) -> GenerateRequest | None:
    """Return what another replica shall run: the request or its rest. None if the client gets the error.

    `repeats`: how often it has moved. `others`: the replicas that are left.
    """
    if not others or repeats >= (1 if isinstance(error, EngineDied) else _MOST_LOST):
        return None
    # The request may have killed the engine. It must not kill the last one. A worker's whole process is rarely killed
    # by a request, since engines run in processes of their own.
    if isinstance(error, EngineDied) and not isinstance(error, WorkerDied) and others == 1:
        return None
    if not meter.has_passed:
        return request
    return replace(request, resume=tuple(meter.token_ids)) if meter.token_ids is not None else None
