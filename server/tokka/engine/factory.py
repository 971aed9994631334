"""Picks the engine that the settings name, and tells what is wrong with its options before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tokka.engine.base import Engine
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.engine.options import parse_engine_args
from tokka.settings import Settings


def engine_factory(settings: Settings) -> Callable[[], Engine]:
    """Return what makes the engine the settings ask for, anew for each start.

    Raises StartupError, at once, for options and models that cannot work.
    """
    if settings.engine == "fake":
        fake = parse_engine_args(FakeOptions, settings.engine_arg)
        if settings.tool_call_parser:
            fake = replace(fake, calls=settings.tool_call_parser)
        if settings.reasoning_parser:
            fake = replace(fake, thinks=True)
        # Raises for a parser that it does not know.
        FakeEngine(fake)
        return lambda: FakeEngine(fake, settings.max_completion_tokens)
    # Only now: without vLLM installed the rest of the program still runs.
    from tokka.engine.vllm.arguments import VllmOptions  # noqa: PLC0415
    from tokka.engine.vllm.engine import VllmEngine  # noqa: PLC0415
    from tokka.engine.vllm.machine import is_cpu_build  # noqa: PLC0415

    # Raises if no engine is installed.
    is_cpu_build()
    options = VllmOptions.from_settings(settings)
    options.check()
    return lambda: VllmEngine(options)
