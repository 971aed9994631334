"""POST /admin/drain: what SIGTERM does, for whoever cannot send a signal.

Not in the OpenAPI document: a client made from it, or a fuzzer, would end the server by trying it out.
"""

from __future__ import annotations

from fastapi import APIRouter

from tokka.api.deps import CurrentServices

router = APIRouter(tags=["operate"])


@router.post("/admin/drain", include_in_schema=False)
async def drain(services: CurrentServices) -> dict[str, object]:
    services.drain()
    return {"status": "draining", "open_requests": services.admission.open_requests}
