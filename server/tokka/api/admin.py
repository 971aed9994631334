"""POST /admin/drain: what SIGTERM does, for whoever cannot send a signal."""

from __future__ import annotations

from fastapi import APIRouter

from tokka.api.deps import CurrentServices
from tokka.api.document import errors
from tokka.protocol.models import Drain

router = APIRouter(tags=["operate"])


@router.post(
    "/admin/drain",
    summary="Finish what runs, refuse what is new, then end the server",
    response_model=Drain,
    responses=errors(401, 403),
)
async def drain(services: CurrentServices) -> dict[str, object]:
    services.drain()
    return {"status": "draining", "open_requests": services.admission.open_requests}
