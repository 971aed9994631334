"""Composition root: builds the server's objects. Only this module picks concrete classes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from tokka import __version__
from tokka.accounts.accounts import Accounts
from tokka.accounts.keys import KeyRing
from tokka.accounts.responses import ResponseStore
from tokka.admission.allowance import Allowance, Allowances
from tokka.admission.controller import AdmissionController
from tokka.admission.memory import MemoryBudget
from tokka.api import GENERATE_ROUTERS, ROUTERS
from tokka.api.access import AccessRules, Authentication
from tokka.api.body_limit import BodyLimit
from tokka.api.deps import Services
from tokka.api.document import document_of, document_route
from tokka.api.endpoints import Endpoints, generate_endpoints
from tokka.api.errors import raise_again, raise_routing_error
from tokka.api.middleware import Cors, RequestContext
from tokka.api.path_facts import REFERENCE_ASSETS
from tokka.api.reference import assets
from tokka.app_models import fleet_models, local_models
from tokka.core import ANONYMOUS, RequestRecord
from tokka.dispatch.background import Background
from tokka.dispatch.catalogue import Catalogue
from tokka.dispatch.conversations import Conversations
from tokka.dispatch.dispatcher import Dispatcher
from tokka.dispatch.ending import finish
from tokka.engine.base import Engine
from tokka.engine.replicas import SERVES, Replicas
from tokka.errors import ConfigurationError
from tokka.fleet.controller import Load
from tokka.fleet.file import FleetFile
from tokka.fleet.fleet import Fleet
from tokka.fleet.salt import read_salt
from tokka.observability.metrics import Metrics
from tokka.parsing.bodies import BodyParser
from tokka.settings import Settings, parse_size

if TYPE_CHECKING:
    from tokka.accounts.ledger import Ledger
    from tokka.accounts.oidc import TokenVerifier

# Maximum bytes of a request body, by default: this many per token of the model's context, within two bounds. A prompt
# of full length fits in any language, as text or as token ids, without images.
_BODY_BYTES_PER_TOKEN = 128
_LEAST_BODY_BYTES = 1 << 20
_MOST_BODY_BYTES = 32 << 20
# The same for a request with many texts: 2,048 of 4 KiB.
_BULK_BODY_BYTES = 8 << 20
# Maximum seconds to wait for another process's transaction. The waiting thread does not see revoked keys meanwhile.
_BUSY_S = 1.0
# Predicted wait of a request, in seconds, above which a fleet adds a replica.
_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Server:
    """The ASGI app, and the parts that `tokka serve` starts, drains and stops."""

    app: ASGIApp
    # Returns the OpenAPI document. The first call blocks for 0.4 s.
    document: Callable[[], dict[str, Any]]
    catalogue: Catalogue
    dispatcher: Dispatcher
    accounts: Accounts
    responses: ResponseStore
    background: Background
    # None without --oidc-issuer.
    tokens: TokenVerifier | None
    bodies: BodyParser
    metrics: Metrics
    # Refuses new requests and sets `stop`. In-flight requests continue.
    drain: Callable[[], None]
    stop: asyncio.Event
    # None without --fleet.
    fleet: Fleet | None

    @property
    def replicas(self) -> Replicas:
        """The engines of the main model."""
        return self.catalogue.main.replicas

    @property
    def admission(self) -> AdmissionController:
        """The admission of the main model."""
        return self.catalogue.main.admission


def create_server(
    settings: Settings, create_engine: Callable[[], Engine], create_embedder: Callable[[], Engine] | None = None
) -> Server:
    """Build the server without starting it. Raises ConfigurationError if settings contradict each other.

    `create_embedder`: creates the engine of the embedding model, if there is one.
    """
    base = _create_base(settings)
    models = local_models(settings, create_engine, create_embedder, base.metrics, base.accounts.ring)
    return _assemble(settings, base, models)


def create_gateway(settings: Settings, file: FleetFile) -> Server:
    """Build the gateway of a fleet without starting it. Call it in the event loop. Raises StartupError."""
    base = _create_base(settings)
    metrics = base.metrics

    def on_change(name: str) -> None:
        if not catalogue.is_draining:
            state = catalogue.progress().state
            # A sleeping model is no fault of the server.
            metrics.set_engine_state("ready" if state in SERVES else state)
        fleet.controller.wake()

    def load_of(name: str) -> Load:
        admission = catalogue.find(name, ANONYMOUS).admission
        return Load(admission.waiting_choices, admission.backlog_s)

    catalogue, models = fleet_models(settings, file.models, metrics, base.accounts.ring, on_change)
    fleet = Fleet(
        file,
        settings.state_dir,
        models,
        load_of,
        metrics.count_start,
        drain_timeout_s=settings.drain_timeout,
        # Requests that would wait longer than their target are refused, so a queue of that length never comes.
        target_wait_s=_WAIT_S if settings.slo_ttft is None else settings.slo_ttft / 2,
    )
    # Of the state: after a restart, the prompts that workers have cached are still found.
    salt_key = read_salt(settings.state_dir)
    return _assemble(settings, base, catalogue, fleet, salt_key)


@dataclass(frozen=True, slots=True)
class _Base:
    """The parts that the served models depend on."""

    metrics: Metrics
    accounts: Accounts
    tokens: TokenVerifier | None


def _create_base(settings: Settings) -> _Base:
    metrics = Metrics()
    return _Base(metrics, *_create_accounts(settings, metrics))


def _assemble(
    settings: Settings, base: _Base, catalogue: Catalogue, fleet: Fleet | None = None, salt_key: bytes | None = None
) -> Server:
    metrics, accounts = base.metrics, base.accounts
    stop = asyncio.Event()
    main = catalogue.main

    def drain() -> None:
        catalogue.start_draining()
        metrics.set_engine_state("draining")
        stop.set()

    _watch(metrics, catalogue)
    allowances = _create_allowances(accounts)
    responses = _create_responses(settings, accounts)
    dispatcher = _create_dispatcher(settings, catalogue, accounts, salt_key)
    dispatcher.notes_prompts = settings.log_prompts
    fingerprint = _fingerprint(main.names[0])
    background = _create_background(fingerprint, dispatcher, responses, metrics, accounts)
    bodies = BodyParser(ignores_unknown=settings.unknown_fields == "ignore")
    services = Services(
        dispatcher=dispatcher,
        catalogue=catalogue,
        allowances=allowances,
        accounts=accounts,
        metrics=metrics,
        bodies=bodies,
        started_s=int(time.time()),
        conversations=Conversations(responses, _max_body_bytes(settings, catalogue)),
        background=background,
        fingerprint=fingerprint,
        keep_alive_s=settings.keep_alive_interval,
        body_limit=_body_limit(settings, catalogue),
        drain=drain,
        fleet=fleet,
        hold_s=fleet.file.hold_s if fleet is not None else 0.0,
    )
    app, routes = _create_app(settings, services)
    parts = catalogue, dispatcher, accounts, responses, background, base.tokens, bodies, metrics
    return Server(app, routes.openapi, *parts, drain, stop, fleet)


def _create_allowances(accounts: Accounts) -> Allowances:
    allowances = Allowances(accounts.spent, accounts.want)
    accounts.reserved = allowances.reserved
    return allowances


def _watch(metrics: Metrics, catalogue: Catalogue) -> None:
    main = catalogue.main.admission
    metrics.watch(catalogue.stats, lambda: catalogue.waiting_choices, lambda: main.limit, time.process_time)
    metrics.watch_lag(lambda: main.late_s)


def _create_dispatcher(
    settings: Settings, catalogue: Catalogue, accounts: Accounts, salt_key: bytes | None
) -> Dispatcher:
    return Dispatcher(
        catalogue,
        MemoryBudget(parse_size(settings.answer_memory), "answers"),
        downtimes=accounts.downtimes,
        request_timeout_s=settings.request_timeout,
        shares_prefix_cache=lambda: _shares_prefix_cache(settings, accounts.ring),
        salt_key=salt_key,
        held_memory=MemoryBudget(parse_size(settings.body_memory), "waiting requests"),
    )


def _create_accounts(settings: Settings, metrics: Metrics) -> tuple[Accounts, TokenVerifier | None]:
    def open_ledger() -> Ledger:
        # Import SQLAlchemy late and in a thread, while the engine starts.
        from tokka.accounts.ledger import open_ledger  # noqa: PLC0415

        return open_ledger(settings.database_url, settings.state_dir, _BUSY_S)

    tokens = _create_tokens(settings)
    ring = KeyRing(settings.api_key, settings.admin_key, tokens, metrics_keys=settings.metrics_key)
    accounts = Accounts(ring, open_ledger, is_optional=not settings.names_database, patience_s=settings.database_wait)
    metrics.watch_state(lambda: accounts.is_up, lambda: accounts.book.pending, lambda: accounts.book.dropped)
    return accounts, tokens


def _create_background(
    fingerprint: str, dispatcher: Dispatcher, responses: ResponseStore, metrics: Metrics, accounts: Accounts
) -> Background:
    def settle(record: RequestRecord, allowance: Allowance) -> None:
        metrics.observe(record, time.monotonic())
        finish(record, allowance, record.status, accounts.count)

    return Background(responses, dispatcher, fingerprint, settle)


def _fingerprint(name: str) -> str:
    return "fp_" + hashlib.sha256(f"{__version__} {name}".encode()).hexdigest()[:10]


def _create_responses(settings: Settings, accounts: Accounts) -> ResponseStore:
    storage = parse_size(settings.response_storage)
    return ResponseStore(accounts, ttl_s=settings.response_ttl * 86400, tenant_bytes=storage)


def _create_tokens(settings: Settings) -> TokenVerifier | None:
    if settings.oidc_issuer is None:
        if settings.oidc_audience is not None:
            raise ConfigurationError("--oidc-audience needs --oidc-issuer; set both, or neither")
        return None
    # Import late: the signature library takes 0.2 s to import.
    from tokka.accounts.oidc import TokenVerifier  # noqa: PLC0415

    return TokenVerifier(
        settings.oidc_issuer, settings.oidc_audience, settings.oidc_tenant_claim, settings.oidc_scope_claim
    )


def _shares_prefix_cache(settings: Settings, ring: KeyRing) -> bool:
    return not ring.is_protected if settings.share_prefix_cache is None else settings.share_prefix_cache


def _create_routes(settings: Settings, services: Services) -> FastAPI:
    # The app adds its own routes for the OpenAPI document and its page.
    routes = FastAPI(
        openapi_url=None, docs_url=None, redoc_url=None, title="Tokka", version=__version__, redirect_slashes=False
    )
    routes.state.services = services
    routes.openapi = document_of(routes, settings.root_path)  # type: ignore[method-assign]
    routes.router.routes.append(document_route(routes))
    for router in ROUTERS:
        routes.include_router(router)
    routes.mount(REFERENCE_ASSETS, assets(), name="docs-assets")
    routes.add_exception_handler(HTTPException, raise_routing_error)
    routes.add_exception_handler(Exception, raise_again)
    return routes


def _create_app(settings: Settings, services: Services) -> tuple[ASGIApp, FastAPI]:
    routes = _create_routes(settings, services)
    rules = AccessRules(settings.metrics_open, settings.on_loopback, settings.no_auth, frozenset(settings.cors_origin))
    generate, authentication = generate_endpoints(GENERATE_ROUTERS), Authentication(services.accounts.ring, rules)
    app: ASGIApp = Endpoints(routes, generate, services, authentication)
    if settings.cors_origin:
        # Around the endpoints, which render errors, so that a web page can read errors.
        app = Cors(
            app,
            allow_origins=settings.cors_origin,
            allow_methods=["*"],
            allow_headers=["*"],
            # A browser asks for this permission when a public web page calls a server in a private network.
            allow_private_network=True,
            expose_headers=["*"],
        )
    app = RequestContext(app, services.metrics, services.allowances, services.accounts.count, settings.root_path)
    return app, routes


def _body_limit(settings: Settings, catalogue: Catalogue) -> BodyLimit:
    memory = MemoryBudget(parse_size(settings.body_memory), "request bodies")
    bulk_bytes = 0 if settings.max_body_size else _BULK_BODY_BYTES
    return BodyLimit(_max_body_bytes(settings, catalogue), settings.body_timeout, memory, bulk_bytes)


def _max_body_bytes(settings: Settings, catalogue: Catalogue) -> Callable[[], int]:
    """Return a function for the current maximum of a body in bytes. It depends on the models by default."""
    if settings.max_body_size is not None:
        limit = parse_size(settings.max_body_size)
        return lambda: limit

    def by_context() -> int:
        context = max(model.replicas.info.max_model_len if model.replicas.info else 0 for model in catalogue.models)
        return max(_LEAST_BODY_BYTES, min(_MOST_BODY_BYTES, _BODY_BYTES_PER_TOKEN * context))

    return by_context
