"""Composition root: builds every object once. The only module that picks concrete classes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from tokka import __version__
from tokka.accounts.keys import StaticKeys
from tokka.admission.controller import AdmissionController
from tokka.api import ROUTERS
from tokka.api.deps import Services
from tokka.api.document import document_of
from tokka.api.errors import raise_routing_error
from tokka.api.middleware import Authentication, BodyLimit, Cors, ErrorRenderer, HeadAsGet, RequestContext
from tokka.dispatch import Dispatcher
from tokka.engine.base import Engine
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.engine.options import parse_engine_args
from tokka.engine.supervisor import Supervisor
from tokka.observability.metrics import Metrics
from tokka.settings import Settings, is_loopback, parse_size

_LAG_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Server:
    """What `tokka serve` runs: the ASGI app, and the parts it starts, drains and stops."""

    app: FastAPI
    supervisor: Supervisor
    admission: AdmissionController
    metrics: Metrics


def create_engine(settings: Settings) -> Engine:
    """Return the engine the settings ask for, not started. Raises ConfigurationError."""
    if settings.engine == "fake":
        return FakeEngine(parse_engine_args(FakeOptions, settings.engine_arg), settings.max_completion_tokens)
    # Only now: without vLLM installed the rest of the program still runs.
    from tokka.engine.vllm.arguments import VllmOptions  # noqa: PLC0415
    from tokka.engine.vllm.engine import VllmEngine  # noqa: PLC0415

    return VllmEngine(VllmOptions.from_settings(settings))


def create_server(settings: Settings, engine: Engine) -> Server:
    metrics = Metrics()
    admission = AdmissionController(settings.max_waiting)

    def on_state(state: str) -> None:
        metrics.set_engine_state(state)
        if supervisor.info:
            # What runs has a slot of its own; only what comes on top of it waits.
            admission.bound(supervisor.info.max_running + settings.max_waiting)

    supervisor = Supervisor(engine, on_state)
    metrics.watch(supervisor.stats, time.process_time)
    names = settings.names()
    services = Services(
        dispatcher=Dispatcher(supervisor, admission, names, settings.request_timeout),
        supervisor=supervisor,
        admission=admission,
        metrics=metrics,
        names=names,
        started_s=int(time.time()),
        fingerprint="fp_" + hashlib.sha256(f"{__version__} {names[0]}".encode()).hexdigest()[:10],
        keep_alive_s=settings.keep_alive_interval,
        log_prompts=settings.log_prompts,
    )
    app = _create_app(settings, services)
    return Server(app, supervisor, admission, metrics)


def _create_app(settings: Settings, services: Services) -> FastAPI:
    app = FastAPIOffline(
        redoc_url=None, static_url="/docs-assets", title="Tokka", version=__version__, redirect_slashes=False
    )
    app.state.services = services
    app.openapi = document_of(app)  # type: ignore[method-assign]
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(HTTPException, raise_routing_error)
    # Added last is outermost. Errors are rendered inside CORS: a page may read why it was refused.
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyLimit, max_bytes=parse_size(settings.max_body_size))
    open_metrics = settings.metrics_open or settings.on_loopback
    app.add_middleware(
        Authentication,
        keys=StaticKeys(settings.api_key),
        metrics_open=open_metrics,
        local_only=settings.uds is None and is_loopback(settings.host) and not settings.no_auth,
    )
    app.add_middleware(ErrorRenderer)
    if settings.cors_origin:
        app.add_middleware(
            Cors,
            allow_origins=settings.cors_origin,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(RequestContext, metrics=services.metrics)
    return app


async def measure_event_loop_lag(metrics: Metrics) -> None:
    """Keep the lag gauge up to date; runs until cancelled."""
    while True:
        due = time.monotonic() + _LAG_INTERVAL_S
        await asyncio.sleep(_LAG_INTERVAL_S)
        metrics.event_loop_lag.set(max(0.0, time.monotonic() - due))
