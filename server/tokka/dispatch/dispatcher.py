"""The request path: admits a request, starts it on the engine, counts its tokens, and releases its resources."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from tokka.accounts.downtimes import Downtimes
from tokka.admission.allowance import Allowance
from tokka.admission.controller import AdmissionController, Slot
from tokka.admission.memory import MemoryBudget, Share
from tokka.admission.prefixes import Prefix, PrefixIndex
from tokka.admission.prompt_estimate import PromptEstimate
from tokka.admission.quarantine import Quarantine
from tokka.admission.suspects import TRIAL_S, EngineState, Held, Subject, Trial
from tokka.admission.ticket import NO_LIMIT, Ticket
from tokka.core import (
    ANONYMOUS,
    Accepted,
    ChoiceDone,
    Event,
    Finished,
    GenerateRequest,
    Key,
    Outcome,
    Prompt,
    PromptEcho,
    PromptLogprobs,
    ReasoningDelta,
    RequestRecord,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from tokka.dispatch.answer_size import answer_bytes
from tokka.dispatch.prepared import PreparedRequest, left_s, next_event
from tokka.engine.base import Engine
from tokka.engine.supervision.supervisor import Supervisor
from tokka.errors import EngineDied, InvalidRequest, ModelNotFound, SlowReader, TenantHeld


class Generation:
    """An admitted request. It owns the admission slot and the stream of events, and releases both."""

    def __init__(self, events: AsyncGenerator[Event, None], resources: AsyncExitStack) -> None:
        self._events = events
        self._resources = resources

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        return self._events

    async def aclose(self) -> None:
        """Stop unfinished work and release everything. Safe to call twice, and before any event was read."""
        await self._resources.aclose()


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
        subject = Subject((record.key or ANONYMOUS).tenant, request)
        own = self._own(request, record, deadline := self._deadline(request, record.arrived_s))
        prefix = self._prefix(own)
        ticket = self._ticket(request, record, allowance, subject, prefix)
        async with AsyncExitStack() as stack:
            prepared = await self._render(own, record, allowance, deadline, stack)
            ticket.prompt_tokens = prepared.prompt_tokens
            ticket.cached_tokens = int(prefix.share * prepared.prompt_tokens)
            ticket.most_tokens = max((1, *prepared.accepted.allowed_tokens))
            # No await between this and `admit`: a trial that needs an idle engine must not begin on a busy one.
            # admission/design 1.6
            self._judge(subject, ticket, is_idle=not self._admission.open_requests)
            slot = await stack.enter_async_context(self._admission.admit(ticket, left_s(deadline)))
            queue_s = time.monotonic() - record.arrived_s
            # admission/design 1.7
            await prepared.ensure_live_engine()
            # Judge again: the engine may have died while the request was queued.
            trial = self._judge(subject, ticket, is_idle=ticket.alone_s > 0)
            record.queue_s = queue_s
            # Push `aclose` again, above the slot: the engine must stop the work before the slot is released.
            stack.push_async_callback(prepared.aclose)
            if trial is not None:
                self._quarantine.begin(trial, prepared.engine_number, time.monotonic())
                stack.callback(self._quarantine.over, trial)
            self._prefixes.add(prefix)
            run = _Run(request, record, slot, subject, trial, prepared.engine_number, deadline, prefix)
            metered = self._metered(prepared, run)
            stack.push_async_callback(metered.aclose)
            stack.callback(_mark_aborted, record)
            return Generation(metered, stack.pop_all())

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
        return replace(
            request,
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
        stack: AsyncExitStack,
    ) -> PreparedRequest:
        """Render the request, and reserve its tokens and memory. The stack releases them."""
        prepared = await PreparedRequest.of(own, self._supervisor, deadline)
        stack.push_async_callback(prepared.aclose)
        self._estimate.learn(own.prompts, prepared.prompt_tokens)
        if (room := allowance.room()) is not None:
            await prepared.cap_tokens(room)
        # admission/design 1.6
        allowance.reserve(prepared.most_tokens, time.monotonic())
        if not record.stream:
            self._reserve_answer(own, prepared, stack)
        return prepared

    async def tokenize(
        self, model: str | None, prompt: Prompt, record: RequestRecord, allowance: Allowance
    ) -> Sequence[int]:
        """Return the prompt's tokens, and count them against the key's limits."""
        key = record.key or ANONYMOUS
        engine = self._engine_for(model, key)
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

    def _reserve_answer(self, request: GenerateRequest, prepared: PreparedRequest, stack: AsyncExitStack) -> None:
        """Reserve memory for the largest possible response. Raises InvalidRequest, ServerOverloaded."""
        size = answer_bytes(request, prepared.accepted)
        if size > self._answer_memory.limit:
            raise InvalidRequest(
                f"The response could take {size >> 20} MiB; the limit is {self._answer_memory.limit >> 20} MiB. "
                f"Lower {request.limit_param}, n or the number of logprobs, or send stream: true.",
                param=request.limit_param,
            )
        share = Share(self._answer_memory, request.tenant)
        share.grow_to(size)
        stack.callback(share.release)

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

    async def _metered(self, prepared: PreparedRequest, run: _Run) -> AsyncGenerator[Event, None]:
        """Yield the events and count their tokens. At the deadline, end the generation with the text so far."""
        request, record, events = run.request, run.record, prepared.events
        record.prompt_tokens = prepared.prompt_tokens
        unfinished: dict[int, TextDelta | None] = dict.fromkeys(range(len(request.prompts) * request.sampling.n))
        outcome: Outcome = "stop"
        yield prepared.accepted
        try:
            while True:
                event = await next_event(events, run.deadline if run.trial is None else self._next_deadline(run))
                match event:
                    case TextDelta():
                        record.last_token_s = time.monotonic()
                        record.first_token_s = record.first_token_s or record.last_token_s
                        record.completion_tokens += len(event.token_ids)
                        run.slot.produced(len(event.token_ids), record.last_token_s)
                        unfinished[event.index] = event
                    case ChoiceDone():
                        unfinished.pop(event.index, None)
                        # Several choices: `length` ranks first, then `tool_calls`, then `stop`.
                        if event.finish_reason == "length" or outcome == "stop":
                            outcome = event.finish_reason
                    case Finished(usage):
                        record.cached_tokens = usage.cached_tokens
                        record.completion_tokens = usage.completion_tokens
                        record.outcome = outcome
                        run.slot.is_whole = True
                        self._prefixes.correct(run.prefix, usage.cached_tokens / max(1, usage.prompt_tokens))
                        self._completed(run)
                        yield event
                        return
                    case Accepted() | PromptEcho() | PromptLogprobs() | ReasoningDelta() | ToolCallDelta():
                        pass
                yield event
        except TimeoutError:
            await events.aclose()
            if run.trial is not None and left_s(run.deadline) != 0:
                ended = run.trial.error()
                record.outcome = _outcome_of(ended)
                raise ended from None
            record.outcome = "timeout"
            for event in _cut_short(unfinished):
                yield event
            yield Finished(Usage(record.prompt_tokens, record.completion_tokens))
        except Exception as error:
            record.outcome = _outcome_of(error)
            if isinstance(error, EngineDied):
                now_s = time.monotonic()
                self._quarantine.ran_at_death(run.subject, run.engine_number, self._supervisor.served_s, now_s)
            raise

    def _next_deadline(self, run: _Run) -> float | None:
        """Return the deadline of the next event of a request on trial. End the trial if the request survived it."""
        trial = run.trial
        if trial is None:
            return run.deadline
        if trial.must_end or run.record.first_token_s is None:
            return trial.until_s if run.deadline is None else min(run.deadline, trial.until_s)
        if time.monotonic() >= trial.until_s:
            self._quarantine.survived(trial)
            run.trial = None
        return run.deadline

    def _completed(self, run: _Run) -> None:
        self._quarantine.completed(run.subject, time.monotonic())
        if run.trial is not None:
            self._quarantine.survived(run.trial)


@dataclass(slots=True)
class _Run:
    """One request on one engine."""

    request: GenerateRequest
    record: RequestRecord
    slot: Slot
    subject: Subject
    # None once the request has survived the trial.
    trial: Trial | None
    engine_number: int
    deadline: float | None
    prefix: Prefix


def _outcome_of(error: Exception) -> Outcome:
    match error:
        case InvalidRequest():
            return "invalid"
        case SlowReader():
            return "aborted"
        case TenantHeld():
            return "rejected"
    return "error"


def _cut_short(unfinished: dict[int, TextDelta | None]) -> Iterator[Event]:
    """Yield the held-back text of each unfinished choice, then its end."""
    for index, last in sorted(unfinished.items(), key=lambda entry: entry[0]):
        if last is not None and (last.held or last.held_logprobs):
            yield TextDelta(index, last.held, (), last.held_logprobs or None)
        yield ChoiceDone(index, "length", "timeout")


def _mark_aborted(record: RequestRecord) -> None:
    """Record a generation without an outcome as aborted: its client closed it before the end."""
    record.outcome = record.outcome or "aborted"
