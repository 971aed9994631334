"""Parse request bodies into plain data without blocking the event loop.

A parser holds the interpreter's lock from the first byte to the last: 8 MiB of JSON take up to a second. Bodies that
take a few milliseconds are parsed here. The others go to a process, in an order that is fair between tenants.
"""

from __future__ import annotations

import asyncio
import io
import pickle
from asyncio.subprocess import Process
from typing import Any, Protocol, TypeVar, cast

import structlog

from tokka.core import IgnoredFields
from tokka.errors import InternalError, InvalidRequest, ServerOverloaded
from tokka.parsing.worker import ANSWER_HEADER, IGNORE_UNKNOWN, PARSABLE, QUESTION_HEADER, REFUSALS
from tokka.protocol.common import BodyModel
from tokka.protocol.validation import validated, without_unknown
from tokka.sandbox.process import end_confined, start_confined
from tokka.turns import Capacity, FairTurns

log = structlog.get_logger("tokka.parsing")

# Maximum bytes, and maximum values and names, of a body parsed on the event loop: at most 15 ms, measured with 128
# functions of 15 parameters.
_LIGHT_BYTES = 256 << 10
_LIGHT_PARTS = 4096
# Processes, and how many of them may parse a long body at once; bytes from which a body is long.
_PROCESSES, _LONG_BODIES = 2, 1
_LONG_BYTES = 1 << 20
# Maximum bytes of all bodies that wait for a process.
_WAITING_BYTES = 256 << 20
# Maximum seconds for one body. A slower process gets no CPU.
_ANSWER_S = 60.0
_RETRY_AFTER_S = 5.0
# Modules and names that a reply of a process may contain: only our own plain data.
_PLAIN_MODULES = frozenset(
    {
        "tokka.core",
        "tokka.protocol.chunks",
        "tokka.protocol.generation",
        "tokka.protocol.models",
        "tokka.protocol.responses.resource",
        "tokka.protocol.vector_forms",
        "tokka.required_calls",
    }
)
_PLAIN_NAMES = frozenset({("array", "_array_reconstructor"), ("array", "array"), ("builtins", "frozenset")})


class Parsed(Protocol):
    """A body as plain data."""

    @property
    def ignored(self) -> IgnoredFields: ...


T_co = TypeVar("T_co", bound=Parsed, covariant=True)
T = TypeVar("T", bound=Parsed)


class Parsable(Protocol[T_co]):
    """A body model that becomes plain data."""

    def parsed(self) -> T_co: ...


class BodyParser:
    """Parse bodies. A parser belongs to one event loop; `close` ends its processes."""

    def __init__(self, *, ignores_unknown: bool = False) -> None:
        """`ignores_unknown`: ignore unknown top-level fields of a body instead of refusing it."""
        self._read = without_unknown if ignores_unknown else validated
        self._options = [IGNORE_UNKNOWN] if ignores_unknown else []
        self._turns = FairTurns(Capacity(_PROCESSES, _LONG_BODIES, _LONG_BYTES, _WAITING_BYTES))
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._is_closed = False

    async def parse(self, model: type[Parsable[T]], raw: bytes, tenant: str) -> T:
        """Return the body as plain data. Raises InvalidRequest, ServerOverloaded."""
        if is_light(raw):
            return cast(Parsable[T], self._read(cast(type[BodyModel], model), raw)).parsed()
        kind = model.__name__
        if kind not in PARSABLE:
            raise InvalidRequest(
                f"The body has more than {_LIGHT_PARTS} values and names or {_LIGHT_BYTES} bytes. Send a smaller one."
            )
        return cast(T, await self._turns.run(tenant, len(raw), lambda: self._parse_apart(kind, raw)))

    async def close(self) -> None:
        # Jobs of disconnected clients continue. A job whose process ends must not start another.
        self._is_closed = True
        while self._workers:
            await self._workers.pop().end()

    async def _parse_apart(self, kind: str, raw: bytes) -> Any:
        for _ in range(2):
            if self._is_closed:
                raise _stopping()
            worker = self._idle.pop() if self._idle else await self._start()
            try:
                answer = await worker.ask(kind, raw)
            except TimeoutError:
                raise ServerOverloaded(
                    "The server is too busy to read this request.", retry_after_s=_RETRY_AFTER_S
                ) from None
            except (OSError, EOFError):
                # Something else may have ended the process, so the body gets a second try, but no third.
                continue
            finally:
                if worker.is_alive:
                    self._idle.append(worker)
                else:
                    self._workers.discard(worker)
            if isinstance(answer, tuple):
                name, message, param = answer
                raise REFUSALS[name](message, param=param)
            return answer
        log.warning("body_refused", kind=kind, bytes=len(raw))
        raise InvalidRequest("The body takes too much memory to parse. Send a smaller one.")

    async def _start(self) -> _Worker:
        worker = _Worker(await start_confined("tokka.parsing.worker", *self._options))
        if self._is_closed:
            # `close` ran meanwhile and did not see this process.
            await worker.end()
            raise _stopping()
        self._workers.add(worker)
        return worker


def _stopping() -> ServerOverloaded:
    return ServerOverloaded("The server is stopping.", retry_after_s=_RETRY_AFTER_S)


class _Worker:
    """A process that parses one body at a time."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.is_alive = True

    async def ask(self, kind: str, raw: bytes) -> Any:
        """Return plain data, or a refusal as a tuple. Raises EOFError or OSError if the process ends; TimeoutError."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            async with asyncio.timeout(_ANSWER_S):
                stdin.write(QUESTION_HEADER.pack(len(kind), len(raw)) + kind.encode())
                stdin.write(raw)
                await stdin.drain()
                (size,) = ANSWER_HEADER.unpack(await stdout.readexactly(ANSWER_HEADER.size))
                return _Plain(io.BytesIO(await stdout.readexactly(size))).load()
        except BaseException as error:
            # The next output would be taken for the reply to another body.
            await self.end()
            if isinstance(error, pickle.UnpicklingError):
                raise InternalError("The server could not read this request.") from error
            raise

    async def end(self) -> None:
        self.is_alive = False
        await end_confined(self._process)


class _Plain(pickle.Unpickler):
    """Load our own plain data only. The process parses untrusted bytes, so its output is untrusted as well."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _PLAIN_MODULES or (module, name) in _PLAIN_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")


def is_light(raw: bytes) -> bool:
    """Return whether a body parses within a few milliseconds, whatever its content."""
    return len(raw) <= _LIGHT_BYTES and sum(map(raw.count, (b",", b":", b"[", b"{"))) <= _LIGHT_PARTS
