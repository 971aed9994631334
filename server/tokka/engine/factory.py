"""Selects the engines that the settings name, and checks their options before they start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tokka.engine.base import Engine
from tokka.engine.engine_args import parse_engine_args
from tokka.engine.fake import FakeEngine, FakeOptions
from tokka.settings import Settings


def engine_factory(settings: Settings) -> Callable[[], Engine]:
    """Return a function that creates the configured engine; each start calls it again.

    Raises StartupError at once if the options or the model cannot work.
    """
    if settings.engine == "fake":
        fake = parse_engine_args(FakeOptions, settings.engine_arg)
        if settings.tool_call_parser:
            fake = replace(fake, calls=settings.tool_call_parser)
        if settings.reasoning_parser:
            fake = replace(fake, thinks=True)
        # Raises ConfigurationError for an unknown parser or task.
        FakeEngine(fake)
        return lambda: FakeEngine(fake, settings.max_completion_tokens)
    # Imported here so that the rest of the program runs without vLLM.
    from tokka.engine.vllm.engine import VllmEngine  # noqa: PLC0415
    from tokka.engine.vllm.start.arguments import VllmOptions  # noqa: PLC0415
    from tokka.engine.vllm.start.environment import is_cpu_build  # noqa: PLC0415

    # Raises ConfigurationError if no engine is installed.
    is_cpu_build()
    options = VllmOptions.from_settings(settings)
    options.check()
    return lambda: VllmEngine(options)


def embedder_factory(settings: Settings) -> Callable[[], Engine] | None:
    """Return a function as `engine_factory` does, for the embedding model beside the model; None without one."""
    if not settings.embedding_names():
        return None
    if settings.engine == "fake":
        fake = parse_engine_args(FakeOptions, ["tasks=embed", *settings.embedding_engine_arg])
        FakeEngine(fake)
        return lambda: FakeEngine(fake)
    from tokka.engine.vllm.engine import VllmEngine  # noqa: PLC0415
    from tokka.engine.vllm.start.arguments import VllmOptions  # noqa: PLC0415

    options = VllmOptions.for_embedding_model(settings)
    options.check()
    return lambda: VllmEngine(options)
