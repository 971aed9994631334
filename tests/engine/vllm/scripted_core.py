"""A scripted EngineCore: a thread that speaks the wire of vLLM's engine processes, so tests need no model on an engine.

It decodes what a client sends with vLLM's own decoder, and sends the steps that a test puts together.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

# Seconds that a test waits for a message.
WAIT_S = 10.0


class ScriptedCore:
    """The far end of a client's sockets. `received` holds (request type, decoded body) in the order of arrival."""

    def __init__(self, folder: Path, copies: int = 1, tasks: tuple[str, ...] = ("generate",)) -> None:
        names = {"input_address": "input", "output_address": "output", "stats_update_address": "stats"}
        self.addresses = {name: f"ipc://{folder}/{file}" for name, file in names.items()}
        self._copies = copies
        self._tasks = tasks
        # The copy of the model that received each message, in order.
        self.receivers: list[int] = []
        self.received: queue.Queue[tuple[bytes, Any]] = queue.Queue()
        # Whether it answers calls.
        self.answers = True
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stop = threading.Event()
        self._outputs: Any = None

    def start(self) -> None:
        # Two threads that import vLLM at the same time find it half imported.
        import vllm.v1.serial_utils  # noqa: F401

        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._outputs is not None:
            self._outputs.close(linger=0)

    def send(self, outputs: Any) -> None:
        """Send a step, or the reply to a call. Called from the test's thread alone."""
        from vllm.v1.serial_utils import MsgpackEncoder

        self._output_socket().send_multipart(MsgpackEncoder().encode(outputs), copy=False)

    def die(self) -> None:
        """Send the last message of an engine that ends by a fault."""
        self._output_socket().send(b"ENGINE_CORE_DEAD")

    def added(self) -> Any:
        """Return the next request that the client has added."""
        kind, body = self.received.get(timeout=WAIT_S)
        assert kind == b"\x00", kind
        return body

    def aborted(self) -> list[str]:
        kind, body = self.received.get(timeout=WAIT_S)
        assert kind == b"\x01", kind
        return list(body)

    async def added_later(self) -> Any:
        """Like `added`, while tasks of this loop send the request."""
        return await asyncio.to_thread(self.added)

    async def aborted_later(self) -> list[str]:
        return await asyncio.to_thread(self.aborted)

    def _output_socket(self) -> Any:
        import zmq

        if self._outputs is None:
            self._outputs = zmq.Context.instance().socket(zmq.PUSH)
            self._outputs.connect(self.addresses["output_address"])
        return self._outputs

    def _run(self) -> None:
        import zmq
        from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest, UtilityOutput
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

        requests, others = MsgpackDecoder(EngineCoreRequest), MsgpackDecoder()
        context: Any = zmq.Context.instance()
        with ExitStack() as stack:
            replies = stack.enter_context(context.socket(zmq.PUSH))
            replies.connect(self.addresses["output_address"])
            poller = zmq.Poller()
            copy_of = {}
            for copy in range(self._copies):
                socket = stack.enter_context(context.socket(zmq.DEALER))
                socket.identity = copy.to_bytes(2, "little")
                socket.connect(self.addresses["input_address"])
                socket.send(b"")
                poller.register(socket, zmq.POLLIN)
                copy_of[socket] = copy
            while not self._stop.is_set():
                for socket, _ in poller.poll(20):
                    kind, *body = socket.recv_multipart()
                    if kind != b"\x03":
                        self.receivers.append(copy_of[socket])
                        self.received.put((kind, requests.decode(body) if kind == b"\x00" else others.decode(body)))
                    elif self.answers:
                        _, call, method, _ = others.decode(body)
                        result = self._tasks if method == "get_supported_tasks" else False
                        reply = UtilityOutput(call, result=UtilityResult(result))
                        replies.send_multipart(MsgpackEncoder().encode(EngineCoreOutputs(utility_output=reply)))


def small_model() -> Path:
    """Return the folder of the embedded model. Nothing loads its weights."""
    from tokka.engine.vllm.start.embedded import embedded_model
    from tokka.settings import Settings

    return embedded_model(Settings().cache_dir.expanduser(), lambda detail: None, lambda: None)


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (what the tests wait for sets no event)
            await asyncio.sleep(0.005)


@asynccontextmanager
async def scripted_llm(
    model: Path, folder: Path, tasks: tuple[str, ...] = ("generate",), **arguments: Any
) -> AsyncIterator[tuple[Any, ScriptedCore]]:
    """Yield vLLM's AsyncLLM whose engine process is a scripted one. Like an engine's start, this takes seconds."""
    core = ScriptedCore(folder, arguments.get("data_parallel_size", 1), tasks)
    core.start()
    llm = await asyncio.to_thread(_llm, model, core, arguments)
    try:
        yield llm, core
    finally:
        llm.shutdown()
        core.stop()
        # vLLM leaves its context open.
        llm.engine_core.resources.ctx.destroy(linger=0)


def _llm(model: Path, core: ScriptedCore, arguments: dict[str, Any]) -> Any:
    os.environ |= {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1"}
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    config = AsyncEngineArgs(model=str(model), **arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)
    return AsyncLLM.from_vllm_config(config, client_addresses=core.addresses)
