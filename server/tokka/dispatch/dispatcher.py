"""The request path: admits a request, and counts it against the limits of its key."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter

from tokka.accounts.downtimes import Downtimes
from tokka.admission.allowance import Allowance
from tokka.admission.memory import MemoryBudget, Share
from tokka.admission.suspects import TRIAL_S, EngineState, Held, Subject, Trial
from tokka.admission.ticket import NO_LIMIT, Ticket
from tokka.core import (
    ANONYMOUS,
    GenerateRequest,
    Key,
    Prompt,
    RequestRecord,
)
from tokka.dispatch.abilities import check_images
from tokka.dispatch.answer_size import answer_bytes
from tokka.dispatch.catalogue import Catalogue, ServedModel
from tokka.dispatch.generation import Generation
from tokka.dispatch.hold import Hold
from tokka.dispatch.holdings import Holdings
from tokka.dispatch.prepared import PreparedRequest, left_s
from tokka.dispatch.prompt_log import shown_prompts
from tokka.engine.base import Engine
from tokka.engine.generation.embedding import choices_at_once
from tokka.errors import InvalidRequest

# Tokens of a prompt from which an open stream keeps the hash of its request, which takes 0.2 ms for 20,000, instead of
# the request itself.
_LONG_TOKENS = 4096
# Memory for requests that wait for a model without a replica, by default.
_HELD_BYTES = 64 << 20
# Fields that the engine gets as the client sent them. dataclasses.replace() would loop over all fields in Python.
_KEPT = tuple(
    field.name
    for field in fields(GenerateRequest)
    if field.name not in {"tenant", "cache_salt", "max_tokens_cap", "stream"}
)
_kept = attrgetter(*_KEPT)


class Dispatcher:
    """Connects a model's admission, quarantine and engine with the limits of a key, for every request."""

    def __init__(
        self,
        catalogue: Catalogue,
        answer_memory: MemoryBudget,
        *,
        downtimes: Downtimes | None = None,
        request_timeout_s: float | None = None,
        shares_prefix_cache: Callable[[], bool] = lambda: True,
        salt_key: bytes | None = None,
        held_memory: MemoryBudget | None = None,
    ) -> None:
        """`held_memory`: for requests that wait for a model without a replica.

        `salt_key`: secret of the salts. None: a random one, so that salts of two runs are unrelated."""
        self._catalogue = catalogue
        self._answer_memory = answer_memory
        self._downtimes = downtimes or Downtimes()
        self._request_timeout_s = request_timeout_s
        self._shares_prefix_cache = shares_prefix_cache
        # Whether to note the prompts in the records, for the log.
        self.notes_prompts = False
        self.held_memory = held_memory or MemoryBudget(_HELD_BYTES, "waiting requests")
        self._salt_key = salt_key or secrets.token_bytes(32)

    def names(self, key: Key) -> tuple[str, ...]:
        """Return the served names that this key may use."""
        return self._catalogue.names(key)

    def model(self, name: str | None, key: Key) -> ServedModel:
        """Return the model with this name, as `Catalogue.find` does. Raises ModelNotFound."""
        return self._catalogue.find(name, key)

    async def open(self, request: GenerateRequest, record: RequestRecord, allowance: Allowance) -> Generation:
        """Admit and start a request. Return its generation, or raise a TokkaError before any byte is sent.

        `allowance`: the request's part of the key's limits. The caller settles it.
        """
        model = self._catalogue.find(request.model, record.key or ANONYMOUS)
        if self.notes_prompts:
            record.prompt = shown_prompts(request.prompts)
        subject = Subject((record.key or ANONYMOUS).tenant, request)
        own = self._own(request, record, deadline := self._deadline(request, record.arrived_s))
        holdings = Holdings(model.quarantine, model.replicas)
        try:
            ticket = self._ticket(model, own, record, allowance, subject, holdings)
            prepared = await self._render(model, own, record, allowance, deadline, holdings)
            ticket.prompt_tokens = prepared.prompt_tokens
            ticket.cached_tokens = int(holdings.lease.prefix.share * prepared.prompt_tokens)
            ticket.most_tokens = max((1, *prepared.accepted.allowed_tokens))
            # No await between this and `admit`: a trial that needs an idle engine must not begin on a busy one.
            # admission/design 1.6
            _judge(model, subject, ticket, is_idle=not model.admission.open_requests)
            holdings.slot = slot = await model.admission.admit(ticket, left_s(deadline))
            queue_s = time.monotonic() - record.arrived_s
            # admission/design 1.7
            await prepared.settle()
            # Judge again: the engine may have died while the request was queued.
            trial = _judge(model, subject, ticket, is_idle=ticket.alone_s > 0)
            record.queue_s = queue_s
            if trial is not None:
                model.quarantine.begin(trial, holdings.lease.replica.number, time.monotonic())
                holdings.trial = trial
            holdings.lease.replica.prefixes.add(holdings.lease.prefix)
            if prepared.prompt_tokens > _LONG_TOKENS:
                subject.forget_request()
        except BaseException:
            holdings.release()
            raise
        choices = len(request.prompts) * request.sampling.n
        return Generation(record, subject, holdings, slot, trial, deadline, prepared, choices)

    def check(self, request: GenerateRequest, record: RequestRecord, allowance: Allowance) -> None:
        """Raise every refusal of `open` that does not need the rendered prompt."""
        model = self._catalogue.find(request.model, record.key or ANONYMOUS)
        subject = Subject((record.key or ANONYMOUS).tenant, request)
        holdings = Holdings(model.quarantine, model.replicas)
        try:
            self._ticket(model, self._own(request, record, None), record, allowance, subject, holdings)
        finally:
            holdings.release()

    def _ticket(
        self,
        model: ServedModel,
        request: GenerateRequest,
        record: RequestRecord,
        allowance: Allowance,
        subject: Subject,
        holdings: Holdings,
    ) -> Ticket:
        """Return the request's ticket, and hold a replica. Raises every refusal that needs no rendered prompt."""
        key, admission = record.key or ANONYMOUS, model.admission
        record.model = request.model
        self._catalogue.check_task(model, request.task, request.model, key)
        choices = choices_at_once(request)
        size = model.estimate.size(request.prompts)
        ticket = Ticket(key.tenant, choices, record.arrived_s, size.likely, priority=request.priority)
        ticket.most_tokens, ticket.is_exact = _most_tokens(model, request, key), request.sampling.ignore_eos
        # The cheapest checks come first. A request must not queue for an engine that is not ready.
        admission.check_open()
        self._downtimes.check(time.time())
        _judge(model, subject, ticket, is_idle=not admission.open_requests)
        prefix = holdings.take_replica(request).prefix
        ticket.cached_tokens = int(prefix.share * size.likely)
        check_images(request.prompts, model.replicas.info)
        allowance.run(choices)
        admission.check_room(ticket)
        allowance.prepare(size.least, time.monotonic())
        return ticket

    def _own(self, request: GenerateRequest, record: RequestRecord, deadline: float | None) -> GenerateRequest:
        """Return the request for the engine, with the values that follow from its key and its deadline."""
        key = record.key or ANONYMOUS
        return GenerateRequest(
            **dict(zip(_KEPT, _kept(request), strict=True)),
            tenant=key.tenant,
            cache_salt=self._salt(request, record),
            max_tokens_cap=key.limits.max_completion_tokens,
            # A request with a deadline streams, so that its text so far is available at the deadline.
            stream=record.stream or deadline is not None,
        )

    async def _render(
        self,
        model: ServedModel,
        own: GenerateRequest,
        record: RequestRecord,
        allowance: Allowance,
        deadline: float | None,
        holdings: Holdings,
    ) -> PreparedRequest:
        """Render the request, and reserve its tokens and memory."""
        prepared = await PreparedRequest.of(own, holdings, deadline)
        model.estimate.learn(prepared.prompts, prepared.prompt_tokens)
        if (room := allowance.room()) is not None:
            await prepared.cap_tokens(room)
        # admission/design 1.6
        allowance.reserve(prepared.most_tokens, time.monotonic())
        if not record.stream or own.keeps_answer:
            self._reserve_answer(own, prepared, holdings)
        return prepared

    def hold(self, name: str, record: RequestRecord, body_bytes: int, wait_s: float) -> Hold | None:
        """Return a wait for a replica of the model, None if one is ready. Raises ModelNotFound, ServerOverloaded."""
        key = record.key or ANONYMOUS
        model = self._catalogue.find(name, key)
        if model.replicas.progress().state == "ready":
            return None
        return Hold(model, self.held_memory, key.tenant, body_bytes, wait_s)

    async def tokenize(
        self, model: str | None, prompt: Prompt, record: RequestRecord, allowance: Allowance
    ) -> Sequence[int]:
        """Return the prompt's tokens, and count them against the key's limits."""
        key = record.key or ANONYMOUS
        served = self._catalogue.find(model, key)
        engine = self._engine_of(served)
        check_images([prompt], served.replicas.info)
        allowance.prepare(served.estimate.size([prompt]).least, time.monotonic())
        tokens = await engine.tokenize(prompt, key.tenant)
        served.estimate.learn([prompt], len(tokens))
        self._charge(len(tokens), record, allowance)
        return tokens

    async def detokenize(
        self, model: str | None, token_ids: Sequence[int], record: RequestRecord, allowance: Allowance
    ) -> str:
        """Return the tokens' text, and count the tokens against the key's limits."""
        key = record.key or ANONYMOUS
        engine = self._engine_of(self._catalogue.find(model, key))
        self._charge(len(token_ids), record, allowance)
        return await engine.detokenize(token_ids, key.tenant)

    async def token_texts(self, model: str | None, tokens: Sequence[int], record: RequestRecord) -> list[str]:
        """Return the text of each token from `tokenize`."""
        key = record.key or ANONYMOUS
        return await self._engine_of(self._catalogue.find(model, key)).token_texts(tokens, key.tenant)

    def _charge(self, tokens: int, record: RequestRecord, allowance: Allowance) -> None:
        allowance.reserve(tokens, time.monotonic())
        record.prompt_tokens = tokens

    def _reserve_answer(self, request: GenerateRequest, prepared: PreparedRequest, holdings: Holdings) -> None:
        """Reserve memory for the largest possible response. Raises InvalidRequest, ServerOverloaded."""
        size = answer_bytes(request, prepared.accepted)
        if size > self._answer_memory.limit:
            remedy = f"Lower {request.limit_param}, n or the number of logprobs, or send stream: true."
            if request.task == "embed":
                remedy = f"Send fewer {request.limit_param}."
            sizes = f"{size >> 20} MiB; the limit is {self._answer_memory.limit >> 20} MiB"
            raise InvalidRequest(f"The response could take {sizes}. {remedy}", param=request.limit_param)
        holdings.share = Share(self._answer_memory, request.tenant)
        holdings.share.grow_to(size)

    def _engine_of(self, model: ServedModel) -> Engine:
        self._downtimes.check(time.time())
        return model.replicas.engine()

    def _deadline(self, request: GenerateRequest, arrived_s: float) -> float | None:
        limits = [limit for limit in (request.timeout_s, self._request_timeout_s) if limit is not None]
        return arrived_s + min(limits) if limits else None

    def _salt(self, request: GenerateRequest, record: RequestRecord) -> str | None:
        """Return the cache salt that separates tenants' cached prompts. A client's own salt separates further."""
        if self._shares_prefix_cache():
            return request.cache_salt
        text = f"{record.tenant}\0{request.cache_salt or ''}"
        return hmac.new(self._salt_key, text.encode(), hashlib.sha256).hexdigest()


def _most_tokens(model: ServedModel, request: GenerateRequest, key: Key) -> int:
    """Return the maximum tokens of a choice, as far as known before the prompt is counted."""
    sampling, info = request.sampling, model.replicas.info
    asked = sampling.default_max_tokens if sampling.max_tokens is None else sampling.max_tokens
    limits = (asked, key.limits.max_completion_tokens, info.max_model_len if info else None, NO_LIMIT)
    return max(1, min(limit for limit in limits if limit is not None))


def _judge(model: ServedModel, subject: Subject, ticket: Ticket, *, is_idle: bool) -> Trial | None:
    """Return the trial in which the request may run, or None if it needs none. Raises Quarantined, TenantHeld."""
    engine = EngineState(model.replicas.number, model.replicas.served_s, is_idle)
    verdict = model.quarantine.judge(subject, engine, time.monotonic())
    # admission/design 1.2
    if isinstance(verdict, Held):
        raise verdict.error()
    ticket.alone_s = TRIAL_S if verdict is not None and verdict.is_alone else 0.0
    return verdict
