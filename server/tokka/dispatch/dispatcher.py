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
from tokka.admission.controller import AdmissionController
from tokka.admission.memory import MemoryBudget, Share
from tokka.admission.prefixes import Prefix, PrefixIndex
from tokka.admission.prompt_estimate import PromptEstimate
from tokka.admission.quarantine import Quarantine
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
from tokka.dispatch.generation import Generation, Holdings
from tokka.dispatch.prepared import PreparedRequest, left_s
from tokka.dispatch.prompt_log import shown_prompts
from tokka.engine.base import Engine
from tokka.engine.supervision.supervisor import Supervisor
from tokka.errors import InvalidRequest, ModelNotFound

# Tokens of a prompt from which an open stream keeps the hash of its request, which takes 0.2 ms for 20,000, instead of
# the request itself.
_LONG_TOKENS = 4096
# Fields that the engine gets as the client sent them. dataclasses.replace() would loop over all fields in Python.
_KEPT = tuple(
    field.name
    for field in fields(GenerateRequest)
    if field.name not in {"tenant", "cache_salt", "max_tokens_cap", "stream"}
)
_kept = attrgetter(*_KEPT)


class Dispatcher:
    """Connects admission, limits, quarantine and the engine for every request."""

    def __init__(
        self,
        supervisor: Supervisor,
        admission: AdmissionController,
        quarantine: Quarantine,
        answer_memory: MemoryBudget,
        names: Sequence[str],
        *,
        downtimes: Downtimes | None = None,
        request_timeout_s: float | None = None,
        shares_prefix_cache: Callable[[], bool] = lambda: True,
    ) -> None:
        self._supervisor = supervisor
        self._admission = admission
        self._quarantine = quarantine
        self._answer_memory = answer_memory
        self._estimate = PromptEstimate()
        self._prefixes = PrefixIndex()
        # Number of the engine that the index describes.
        self._prefixes_of = 0
        self._names = tuple(names)
        self._downtimes = downtimes or Downtimes()
        self._request_timeout_s = request_timeout_s
        self._shares_prefix_cache = shares_prefix_cache
        # Whether to note the prompts in the records, for the log.
        self.notes_prompts = False
        # Random per process, so that salts of two runs are unrelated.
        self._salt_key = secrets.token_bytes(32)

    def names(self, key: Key) -> tuple[str, ...]:
        """Return the served names that this key may use."""
        return tuple(name for name in self._names if key.models is None or name in key.models)

    def check_model(self, name: str | None, key: Key) -> None:
        """Raise ModelNotFound unless the key may use this name. None stands for the server's only model."""
        names = self.names(key)
        if (name is None and not names) or (name is not None and name not in names):
            raise ModelNotFound(
                f"The model `{(name or '')[:128]}` does not exist. Served to you: {', '.join(names) or 'none'}.",
                param="model",
            )

    async def open(self, request: GenerateRequest, record: RequestRecord, allowance: Allowance) -> Generation:
        """Admit and start a request. Return its generation, or raise a TokkaError before any byte is sent.

        `allowance`: the request's part of the key's limits. The caller settles it.
        """
        if self.notes_prompts:
            record.prompt = shown_prompts(request.prompts)
        subject = Subject((record.key or ANONYMOUS).tenant, request)
        own = self._own(request, record, deadline := self._deadline(request, record.arrived_s))
        prefix = self._prefix(own)
        ticket = self._ticket(request, record, allowance, subject, prefix)
        holdings = Holdings(self._quarantine)
        try:
            prepared = await self._render(own, record, allowance, deadline, holdings)
            ticket.prompt_tokens = prepared.prompt_tokens
            ticket.cached_tokens = int(prefix.share * prepared.prompt_tokens)
            ticket.most_tokens = max((1, *prepared.accepted.allowed_tokens))
            # No await between this and `admit`: a trial that needs an idle engine must not begin on a busy one.
            # admission/design 1.6
            self._judge(subject, ticket, is_idle=not self._admission.open_requests)
            holdings.slot = slot = await self._admission.admit(ticket, left_s(deadline))
            queue_s = time.monotonic() - record.arrived_s
            # admission/design 1.7
            await prepared.ensure_live_engine()
            # Judge again: the engine may have died while the request was queued.
            trial = self._judge(subject, ticket, is_idle=ticket.alone_s > 0)
            record.queue_s = queue_s
            if trial is not None:
                self._quarantine.begin(trial, prepared.engine_number, time.monotonic())
                holdings.trial = trial
            self._prefixes.add(prefix)
            if prepared.prompt_tokens > _LONG_TOKENS:
                subject.forget_request()
        except BaseException:
            holdings.release()
            raise
        choices = len(request.prompts) * request.sampling.n
        parts = (self._supervisor, self._prefixes)
        return Generation(record, subject, holdings, slot, trial, deadline, prefix, prepared, choices, *parts)

    def check(self, request: GenerateRequest, record: RequestRecord, allowance: Allowance) -> None:
        """Raise every refusal of `open` that does not need the rendered prompt."""
        subject = Subject((record.key or ANONYMOUS).tenant, request)
        self._ticket(request, record, allowance, subject, self._prefix(self._own(request, record, None)))

    def _prefix(self, own: GenerateRequest) -> Prefix:
        """Return the prompts' prefix, with the share that the engine has probably cached."""
        supervisor, info = self._supervisor, self._supervisor.info
        if supervisor.starts != self._prefixes_of and info is not None:
            self._prefixes_of = supervisor.starts
            self._prefixes.resize(info.kv_tokens if info.caches_prefixes else None)
        return self._prefixes.look(own.cache_salt, own.prompts)

    def _ticket(
        self, request: GenerateRequest, record: RequestRecord, allowance: Allowance, subject: Subject, prefix: Prefix
    ) -> Ticket:
        """Return the request's ticket. Raises every refusal that does not need the rendered prompt."""
        key = record.key or ANONYMOUS
        self.check_model(request.model, key)
        record.model = request.model
        choices = len(request.prompts) * request.sampling.n
        size = self._estimate.size(request.prompts)
        ticket = Ticket(key.tenant, choices, record.arrived_s, size.likely, priority=request.priority)
        ticket.cached_tokens = int(prefix.share * size.likely)
        ticket.most_tokens, ticket.is_exact = self._most_tokens(request, key), request.sampling.ignore_eos
        # The cheapest checks come first. A request must not queue for an engine that is not ready.
        self._admission.check_open()
        self._downtimes.check(time.time())
        self._judge(subject, ticket, is_idle=not self._admission.open_requests)
        self._supervisor.engine()
        check_images(request.prompts, self._supervisor.info)
        allowance.run(choices)
        self._admission.check_room(ticket)
        allowance.prepare(size.least, time.monotonic())
        return ticket

    def _most_tokens(self, request: GenerateRequest, key: Key) -> int:
        """Return the maximum tokens of a choice, as far as known before the prompt is counted."""
        sampling, info = request.sampling, self._supervisor.info
        asked = sampling.default_max_tokens if sampling.max_tokens is None else sampling.max_tokens
        limits = (asked, key.limits.max_completion_tokens, info.max_model_len if info else None, NO_LIMIT)
        return max(1, min(limit for limit in limits if limit is not None))

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
        own: GenerateRequest,
        record: RequestRecord,
        allowance: Allowance,
        deadline: float | None,
        holdings: Holdings,
    ) -> PreparedRequest:
        """Render the request, and reserve its tokens and memory."""
        prepared = await PreparedRequest.of(own, self._supervisor, deadline)
        self._estimate.learn(prepared.prompts, prepared.prompt_tokens)
        if (room := allowance.room()) is not None:
            await prepared.cap_tokens(room)
        # admission/design 1.6
        allowance.reserve(prepared.most_tokens, time.monotonic())
        if not record.stream or own.keeps_answer:
            self._reserve_answer(own, prepared, holdings)
        return prepared

    async def tokenize(
        self, model: str | None, prompt: Prompt, record: RequestRecord, allowance: Allowance
    ) -> Sequence[int]:
        """Return the prompt's tokens, and count them against the key's limits."""
        key = record.key or ANONYMOUS
        engine = self._engine_for(model, key)
        check_images([prompt], self._supervisor.info)
        allowance.prepare(self._estimate.size([prompt]).least, time.monotonic())
        tokens = await engine.tokenize(prompt, key.tenant)
        self._estimate.learn([prompt], len(tokens))
        self._charge(len(tokens), record, allowance)
        return tokens

    async def detokenize(
        self, model: str | None, token_ids: Sequence[int], record: RequestRecord, allowance: Allowance
    ) -> str:
        """Return the tokens' text, and count the tokens against the key's limits."""
        key = record.key or ANONYMOUS
        engine = self._engine_for(model, key)
        self._charge(len(token_ids), record, allowance)
        return await engine.detokenize(token_ids, key.tenant)

    async def token_texts(self, tokens: Sequence[int], record: RequestRecord) -> list[str]:
        """Return the text of each token from `tokenize`."""
        return await self._supervisor.engine().token_texts(tokens, (record.key or ANONYMOUS).tenant)

    def _charge(self, tokens: int, record: RequestRecord, allowance: Allowance) -> None:
        allowance.reserve(tokens, time.monotonic())
        record.prompt_tokens = tokens

    def _reserve_answer(self, request: GenerateRequest, prepared: PreparedRequest, holdings: Holdings) -> None:
        """Reserve memory for the largest possible response. Raises InvalidRequest, ServerOverloaded."""
        size = answer_bytes(request, prepared.accepted)
        if size > self._answer_memory.limit:
            raise InvalidRequest(
                f"The response could take {size >> 20} MiB; the limit is {self._answer_memory.limit >> 20} MiB. "
                f"Lower {request.limit_param}, n or the number of logprobs, or send stream: true.",
                param=request.limit_param,
            )
        holdings.share = Share(self._answer_memory, request.tenant)
        holdings.share.grow_to(size)

    def _engine_for(self, model: str | None, key: Key) -> Engine:
        self.check_model(model, key)
        self._downtimes.check(time.time())
        return self._supervisor.engine()

    def _deadline(self, request: GenerateRequest, arrived_s: float) -> float | None:
        limits = [limit for limit in (request.timeout_s, self._request_timeout_s) if limit is not None]
        return arrived_s + min(limits) if limits else None

    def _judge(self, subject: Subject, ticket: Ticket, *, is_idle: bool) -> Trial | None:
        """Return the trial in which the request may run, or None if it needs none. Raises Quarantined, TenantHeld."""
        engine = EngineState(self._supervisor.starts, self._supervisor.served_s, is_idle)
        verdict = self._quarantine.judge(subject, engine, time.monotonic())
        # admission/design 1.2
        if isinstance(verdict, Held):
            raise verdict.error()
        ticket.alone_s = TRIAL_S if verdict is not None and verdict.is_alone else 0.0
        return verdict

    def _salt(self, request: GenerateRequest, record: RequestRecord) -> str | None:
        """Return the cache salt that separates tenants' cached prompts. A client's own salt separates further."""
        if self._shares_prefix_cache():
            return request.cache_salt
        text = f"{record.tenant}\0{request.cache_salt or ''}"
        return hmac.new(self._salt_key, text.encode(), hashlib.sha256).hexdigest()
