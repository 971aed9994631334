"""Tokka's client of vLLM's engine processes. Adds and aborts requests, and receives their steps.

vLLM's AsyncLLM still starts the processes, opens the sockets and ends both. `core_requests.py` builds the requests,
`step_handler.py` processes what the engine sends.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import structlog
import zmq
from msgspec import msgpack
from vllm.v1.engine import EngineCoreRequestType, UtilityOutput
from vllm.v1.engine.exceptions import EngineDeadError

from tokka.engine.vllm.clients import VectorReceiver
from tokka.engine.vllm.core_requests import RequestBuilder
from tokka.engine.vllm.prompt_outputs import PromptOutputs
from tokka.engine.vllm.stats import StepStats
from tokka.engine.vllm.step_handler import StepHandler
from tokka.engine.vllm.step_processor import StepProcessor
from tokka.engine.vllm.step_socket import StepSocket

log = structlog.get_logger("tokka.engine")


class CoreClient:
    """The client of one AsyncLLM that was built outside of an event loop. Belongs to the loop of its first request.

    Implements `EngineClient`.

    With several copies of the model, vLLM's client chooses the copy for a request.
    """

    def __init__(self, llm: Any) -> None:
        self.stats = StepStats(llm.logger_manager)
        self.steps = StepProcessor()
        self._llm = llm
        self._core = llm.engine_core
        self._resources = llm.engine_core.resources
        self._input: Any = zmq.Socket.shadow(self._core.input_socket.underlying)
        self._requests = RequestBuilder(llm)
        self._handler = StepHandler(StepSocket(self._resources.output_socket), self)
        self._listener: asyncio.Task[None] | None = None
        self._tasks: Sequence[str] = ()
        self._has_copies = hasattr(self._core, "reqs_in_flight")
        scheduler = llm.scheduler_config
        self._has_limits = (scheduler.max_num_queued_reqs, scheduler.max_num_queued_tokens) != (None, None)
        # vLLM's check of its limits counts the requests here.
        llm.output_processor = self.steps

    @property
    def is_dead(self) -> bool:
        """Whether an engine process or this client has failed. A frozen engine is not noticed."""
        return bool(self._resources.engine_dead) or self._handler.is_closed

    @property
    def unfinished(self) -> int:
        """Number of sequences on the engine."""
        return self.steps.get_num_unfinished_requests()

    async def ping(self) -> None:
        """Return when all engine processes have answered. Raises EngineDeadError if they have ended."""
        self._check_alive()
        self._listen()
        await self._core.is_scheduler_paused_async()

    async def complete(self, params: Any) -> None:
        """Validate and complete new SamplingParams or PoolingParams. Call this once before `add` or `embed`."""
        if not self._tasks:
            self._check_alive()
            self._listen()
            self._tasks = await self._core.get_supported_tasks_async()
        self._requests.complete(params, self._tasks)

    def add(
        self,
        name: str,
        outputs: PromptOutputs,
        token_ids: list[int],
        params: Any,
        *,
        cache_salt: str | None = None,
        reasoning_ended: bool | None = None,
    ) -> list[str]:
        """Run a prompt; return the ids of its sequences. `params`: from `complete`. Never blocks.

        Raises EngineDeadError, or QueueOverflowError at a limit of vLLM that the operator has set.
        """
        self._check_alive()
        self._listen()
        requests, parent = self._requests.build(
            name, token_ids, params, cache_salt=cache_salt, reasoning_ended=reasoning_ended
        )
        if self._has_limits:
            self._llm.check_admission(len(requests), name)
        ids = [request.request_id for request in requests]
        try:
            for index, request in enumerate(requests):
                self.steps.add(request, parent, outputs.sequence(index, request))
            for request in requests:
                self._send_request(request)
        except BaseException:
            self.drop(ids)
            raise
        return ids

    def embed(self, name: str, outputs: VectorReceiver, token_ids: list[int], params: Any) -> list[str]:
        """Run an input of a pooling model; return its id in a list. `params`: from `complete`. Never blocks.

        Raises the errors of `add`.
        """
        self._check_alive()
        self._listen()
        request = self._requests.build_pooling(name, token_ids, params)
        if self._has_limits:
            self._llm.check_admission(1, name)
        self.steps.add(request, None, outputs)
        try:
            self._send_request(request)
        except BaseException:
            self.drop([request.request_id])
            raise
        return [request.request_id]

    def drop(self, ids: Sequence[str]) -> None:
        """Forget sequences, and abort those that the engine still works on."""
        self.abort([request_id for request_id in ids if self.steps.forget(request_id)])

    def abort(self, ids: Sequence[str]) -> None:
        """Have the engine end sequences."""
        if not ids or self.is_dead:
            return
        abort = EngineCoreRequestType.ABORT
        if not self._has_copies:
            self._send(abort, ids, self._core.core_engine)
            return
        of_engine = defaultdict(list)
        for request_id in ids:
            if (engine := self._core.reqs_in_flight.get(request_id)) is not None:
                of_engine[engine].append(request_id)
        for engine, its_ids in of_engine.items():
            self._send(abort, its_ids, engine)

    def fail(self, error: Exception) -> None:
        """End all generations and calls with the error. The client is dead from now on."""
        if not isinstance(error, EngineDeadError) and not self._handler.is_closed:
            log.error("engine_client_failed", exc_info=error)
        self._handler.close()
        self.steps.fail(error)
        calls, results = list(self._core.utility_results.values()), self._core.utility_results
        results.clear()
        for call in calls:
            if not call.done():
                call.set_exception(EngineDeadError())

    # -- messages of the engine, from step_handler.py

    def decode(self, frames: list[Any]) -> Any:
        """Return the EngineCoreOutputs of a message. Raises EngineDeadError for an engine's last words."""
        self._resources.validate_alive(frames)
        return self._core.decoder.decode(frames)

    def answer(self, output: UtilityOutput) -> None:
        """Pass on the result of a call."""
        call = self._core.utility_results.pop(output.call_id, None)
        if call is None or call.done():
            return
        if output.failure_message is not None:
            call.set_exception(RuntimeError(output.failure_message))
        else:
            call.set_result(output.result.result if output.result is not None else None)

    def note_finished(self, ids: set[str]) -> None:
        """Note that a copy of the model has finished requests. vLLM counts them to choose a copy."""
        if self._has_copies:
            for request_id in ids:
                if (engine := self._core.reqs_in_flight.pop(request_id, None)) is not None:
                    self._core.engine_inflight[engine] -= 1

    # -- sending

    def _send_request(self, request: Any) -> None:
        core = self._core
        request.client_index = core.client_index
        engine = core.core_engine
        if self._has_copies:
            core._ensure_stats_update_task()
            request.current_wave = core.current_wave
            engine = core.get_core_engine_for_request(request)
        self._send(EngineCoreRequestType.ADD, request, engine)
        if self._has_copies and not core.engines_running and hasattr(core, "first_req_send_socket"):
            # Copies that share experts pause together. In vLLM 0.32 the coordinator wakes the others, from 0.33 on the
            # copy that got the request. The asyncio socket, since its peer, a task of vLLM, may not have connected yet.
            core.first_req_send_socket.send(msgpack.encode(("FIRST_REQ", engine)))

    def _send(self, kind: EngineCoreRequestType, body: Any, engine: bytes) -> None:
        """Send a message at once: the socket has no limit, so it never blocks.

        zmq's asyncio socket takes three times as much CPU (51 us instead of 16).
        """
        head, *tensors = self._core.encoder.encode(body)
        self._input.send(engine, zmq.SNDMORE)
        self._input.send(kind.value, zmq.SNDMORE)
        if not tensors:
            self._input.send(head)
            return
        self._input.send(head, zmq.SNDMORE)
        self._input.send_multipart(tensors, copy=False)

    # -- life cycle

    def _check_alive(self) -> None:
        if self.is_dead:
            raise EngineDeadError

    def _listen(self) -> None:
        """Receive messages from now on, in the running event loop."""
        if self._listener is None:
            if self._resources.output_queue_task is not None:
                # A call on the AsyncLLM itself, before this client's first one.
                raise RuntimeError("vLLM's own client already reads the engine's messages")
            # While a task is here, vLLM's client starts no reader of its own.
            self._listener = asyncio.create_task(self._until_closed(), name="engine-client")
            self._resources.output_queue_task = self._listener
            self._handler.listen()

    async def _until_closed(self) -> None:
        """Wait until vLLM cancels this task: after the end of an engine process, and when the server closes it."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.fail(EngineDeadError())
