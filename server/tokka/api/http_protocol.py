"""uvicorn's HTTP protocol with limits on bytes and time, and errors in OpenAI's form.

uvicorn with httptools takes headers of any size and parses every request that a client sends ahead. It waits without
end for headers, for the rest of a body that was already answered, and for a client that does not read. It also ends a
request at an offer to upgrade, and parses the body as the next request. This module cuts, counts and times the bytes.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokka.api.connections import Admission, Caller, Connections, Cut, Stage
from tokka.api.deadline import Deadline
from tokka.api.flow import Flow
from tokka.api.http_cycle import Cycle, Signal
from tokka.api.http_framing import Framing, MalformedHttp, check_headers, without_upgrade
from tokka.api.http_refusal import HeadersTooLarge, NoRoom, response_of
from tokka.api.intake import Intake
from tokka.api.path_facts import facts_of
from tokka.api.paths import served_path
from tokka.api.write_batching import BatchedTransport, WriteBatch
from tokka.core import ANONYMOUS, Key
from tokka.errors import SlowRequest, TokkaError

log = structlog.get_logger("tokka.http")

# Maximum seconds and bytes for a client that keeps sending after its response.
_REST_S = 5.0
_MAX_REST_BYTES = 16 << 20
# Maximum bytes kept of requests that a client sends ahead. Beyond it, the server stops reading.
_MAX_AHEAD_BYTES = 64 << 10
# Maximum slices parsed in one iteration of the event loop. A read of 256 KiB may hold 65,536.
_MAX_SLICES = 4096


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with limits on bytes and time."""

    # Set by the subclass that `bounded_protocol` in http_upgrade.py makes.
    open_connections: Connections
    batch: WriteBatch
    intake: Intake
    is_draining: Callable[[], bool]

    flow: Flow
    # None before the first request.
    cycle: Cycle | None  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = self.open_connections.limits
        # Empty before the first request.
        self.url = b""
        self._framing = Framing()
        # Bytes received and not parsed yet: requests that the client sent ahead.
        self._ahead = b""
        # Whether they wait in the intake.
        self._is_queued = False
        self._in_head = True
        self._head_bytes = 0
        self._admission: Admission = "welcome"
        self._caller: Caller = "stranger"
        self._is_authenticated = False
        # The last response has been given; later bytes are ignored.
        self._is_over = False
        self._rest_bytes = 0
        self._silent_bytes = 0
        self._body_seen = False
        # Deadlines for the client to send, and to read.
        self._sending = Deadline(self.loop)
        self._reading = Deadline(self.loop)

    # -- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Pause writing as soon as the kernel does not take everything, to detect an unread response.
        transport.set_write_buffer_limits(high=0)
        batched: Any = BatchedTransport(transport, self.batch)
        super().connection_made(batched)
        self.flow = Flow(batched)
        self._admission = self.open_connections.opened(self, self.client[0] if self.client else None)
        self._sending.set(self._limits.header_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.closed(self)
        self.intake.leave(self._read)
        self._sending.clear()
        self._reading.clear()
        if self.cycle is None or self.cycle.response_complete:
            self._leave(exc)
        else:
            # The end of a request takes as long as its beginning, and a proxy's end is that of all its requests.
            self.intake.begin(partial(self._leave, exc))

    def _leave(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._ahead = b""
        # The scope refers to this connection. Without the reference, both are freed at once.
        self.cycle = self.scope = None  # type: ignore[assignment]

    def evict(self) -> None:
        self._cut("evicted")

    def shutdown(self) -> None:
        """Close the connection once its response is sent, without waiting for the rest of the client's body."""
        if self._is_queued:
            self.intake.leave(self._read)
            self._read()
        super().shutdown()
        owes_body = self.cycle is not None and not self._in_head
        if self.flow.write_paused or self.transport.get_write_buffer_size() or owes_body:
            self.transport.abort()

    def _place(self) -> None:
        """Report the caller and stage of this connection to the registry."""
        self.open_connections.place(self, self._caller, self._stage())

    def _place_request(self) -> None:
        if not self._is_authenticated:
            self._caller = "stranger"
        self._place()

    def _stage(self) -> Stage:
        if self._is_queued:
            return "receiving"
        if self.cycle is None:
            return "delivering" if self._is_over else "waiting"
        if not self.cycle.response_complete:
            if self.flow.write_paused:
                return "stalled"
            return "receiving" if self.cycle.more_body else "answering"
        is_taken = self._in_head and not self.flow.write_paused
        return "waiting" if is_taken and not self._is_over else "delivering"

    def _on_authenticated(self, key: Key) -> None:
        self._is_authenticated = True
        self._caller = "anonymous" if key is ANONYMOUS else "keyed"
        self._place()

    # -- reading

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            self._count_rest(len(data))
            return
        self._ahead += data
        if self._in_head and self._may_read():
            self._is_queued = not self.intake.begin(self._read)
            if self._is_queued:
                # The client has sent in time, and may go on.
                self._sending.clear()
                self._hold(len(self._ahead) > _MAX_AHEAD_BYTES)
                self._place()
        else:
            self._read()

    def _read(self) -> None:
        """Parse the received bytes up to the end of the current request. The next request waits for its response."""
        self._is_queued = False
        data, begin = self._ahead, 0
        view = memoryview(data)
        for _ in range(_MAX_SLICES):
            if begin == len(data) or not self._may_read():
                break
            end = self._framing.slice_end(data, begin)
            self._feed(view[begin:end])
            begin = end
        else:
            self.loop.call_soon(self._read)
        self._ahead = b"" if self._is_over else data[begin:]
        self._hold(len(self._ahead) > _MAX_AHEAD_BYTES)
        if self._in_head and self._head_bytes and not self._sending.is_set:
            self._sending.set(self._limits.header_s, self._head_is_late)

    def _may_read(self) -> bool:
        if self._is_over or self.transport.is_closing():
            return False
        is_answered = self.cycle is None or (self.cycle.response_complete and not self.flow.write_paused)
        return is_answered or not self._in_head

    def _hold(self, held: bool) -> None:
        """Pause or resume reading, so that requests sent ahead do not fill the memory."""
        was_held, self.flow.held = self.flow.held, held
        if held:
            self.flow.pause_reading()
        elif was_held:
            self.flow.resume_reading()

    def _feed(self, data: memoryview) -> None:
        if not self._in_head:
            self._body_seen = False
            self._parse(data)
            self._check_body(len(data))
            return
        if not self._head_bytes:
            self._sending.clear()
        self._head_bytes += len(data)
        self._parse(data)
        if self._in_head and self._head_bytes > self._limits.header_bytes:
            self._refuse(HeadersTooLarge(self._limits.header_bytes))

    def _parse(self, data: memoryview | bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # RFC 9110 7.8: the server may ignore an offer. httptools has skipped the body, so parse the headers again.
            version = self.parser.get_http_version()
            headers = without_upgrade(self.parser.get_method(), self.url, version, self.headers)
            self.parser = httptools.HttpRequestParser(self)
            self._parse(headers)
        except httptools.HttpParserError as error:
            ours = error.__context__
            self._refuse(ours if isinstance(ours, TokkaError) else MalformedHttp("The HTTP request is malformed."))

    def _check_body(self, received: int) -> None:
        """Limit the bytes after the headers: trailers, chunk extensions, and a body that was already answered."""
        # httptools collects a trailer before it calls back, so bytes without a callback mean a growing trailer.
        self._silent_bytes = 0 if self._body_seen else self._silent_bytes + received
        if self._silent_bytes > self._limits.header_bytes:
            self._close()
        elif self.cycle is not None and self.cycle.response_complete:
            self._count_rest(received)

    def _count_rest(self, received: int) -> None:
        self._rest_bytes += received
        if self._rest_bytes > _MAX_REST_BYTES:
            self._close()

    # -- called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers also arrive here, after the headers were checked. They must not change the request.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if self.parser.should_upgrade():
            if method == b"CONNECT":
                raise MalformedHttp("The method CONNECT is not supported: this server is not a proxy.")
            return
        if self._head_bytes > self._limits.header_bytes:
            raise HeadersTooLarge(self._limits.header_bytes)
        check_headers(version, self.headers)
        target = httptools.parse_url(self.url)
        path = urllib.parse.unquote(target.path.decode("ascii"))
        if self._admission != "welcome" and not facts_of(served_path(path)).is_probe:
            self.open_connections.on_cut("refused")
            raise NoRoom(self._admission)
        self.scope["method"] = method.decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = self.root_path + path
        self.scope["raw_path"] = self.root_path.encode("ascii") + target.path
        self.scope["query_string"] = target.query or b""
        self.scope["state"]["on_authenticated"] = self._on_authenticated
        self._start(version)

    def _start(self, version: str) -> None:
        """Run the application for the request whose headers are complete."""
        self._in_head = False
        self._sending.clear()
        self._framing.expect_body(self.headers)
        self._is_authenticated = False
        self.cycle = Cycle(
            is_draining=self.is_draining,
            close=self._end,
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=Signal(),
            expect_100_continue=self.expect_100_continue and version == "1.1",
            keep_alive=self.parser.should_keep_alive() and version == "1.1",
            on_response=self.on_response_complete,
        )
        self._start_asgi_task(self.cycle, self.app)
        # After authentication, which takes one turn. A stranger's rank before it could cost a key its connection.
        self.loop.call_soon(self._place_request)

    def on_body(self, body: bytes) -> None:
        self._body_seen = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = self._rest_bytes = self._silent_bytes = 0
        self._sending.clear()
        if self.cycle is not None and self.cycle.response_complete:
            self._sending.set(self.timeout_keep_alive, self._close)
        self._place()

    # -- answering

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._close()
        elif self.is_draining():
            self._end()
        elif not self._is_over:
            self.flow.resume_reading()
            if self._in_head:
                self._sending.set(self.timeout_keep_alive, self._close)
            else:
                self._sending.set(_REST_S, self._close)
            if self._ahead:
                # In a later iteration, and only if the client has read this response.
                self.loop.call_soon(self._read)
        self._place()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._must_read()
        self._place()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.clear()
        self._place()
        if self._ahead:
            self._read()

    def _refuse(self, error: TokkaError) -> None:
        """Send an error for bytes that are not a valid request, and close."""
        if self._is_over or self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # The body is malformed. The client gets this error, or a truncated response if one has started.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._in_head or (self.cycle is not None and not self.cycle.response_started):
            self.transport.write(response_of(error, self.url))
        self._end()

    def _end(self) -> None:
        """Close once the client can have read its response. Closing while it sends would reset the connection."""
        if self._is_over or self.transport.is_closing():
            return
        self._is_over = True
        owes = not self._in_head or self._head_bytes or self._ahead
        self._ahead = b""
        self._place()
        if not owes:
            self._close()
            return
        self.flow.held = False
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._sending.set(_REST_S, self._close)

    # -- time

    def _must_read(self) -> None:
        if not self._reading.is_set:
            self._reading.set(self._limits.write_s, lambda: self._cut("write_timeout"))

    def _head_is_late(self) -> None:
        if self._head_bytes and not self.transport.is_closing():
            self.open_connections.on_cut("header_timeout")
            seconds = f"{self._limits.header_s:g} s"
            self._refuse(
                SlowRequest(f"The request headers were not complete after {seconds}, the limit of this server.")
            )
        else:
            self._cut("header_timeout")

    def _close(self) -> None:
        """Close within a time limit. A client that does not read would otherwise keep the connection open for ever."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._must_read()

    def _cut(self, reason: Cut) -> None:
        """Abort the connection and discard unsent bytes."""
        self.open_connections.on_cut(reason)
        log.debug("connection_cut", reason=reason, client=self.client)
        self.transport.abort()
