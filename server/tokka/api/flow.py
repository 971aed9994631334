"""Pauses of a connection's reading and writing."""

from __future__ import annotations

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """uvicorn's flow control, with a pause in reading that the application cannot end."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()
