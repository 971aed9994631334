"""The life cycle of vLLM's AsyncLLM as Tokka's engine. Generations are in generation.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from tokka.core import GenerateRequest, Prompt, TokensPrompt
from tokka.engine.base import Prepared, ReportPhase
from tokka.engine.grammars.service import GrammarService
from tokka.engine.supervision.exits import oom_kills
from tokka.engine.supervision.heap import trim_heap
from tokka.engine.supervision.processes import EngineProcesses, ProcessGroup
from tokka.engine.vllm.clients import EngineClient, client_of
from tokka.engine.vllm.embeddings import Embeddings, embeddings_of
from tokka.engine.vllm.error_mapping import cause_of, core_exits, death_of, load_failure, one_line
from tokka.engine.vllm.generation import Generations, Language, Limits
from tokka.engine.vllm.parsers import Parsers
from tokka.engine.vllm.plugin import OUTPUT_VARIABLE
from tokka.engine.vllm.render import Renderer, tokenizer_line
from tokka.engine.vllm.start.arguments import VllmOptions, engine_arguments
from tokka.engine.vllm.start.compilation import apply_execution, seal_compiled
from tokka.engine.vllm.start.devices import check_devices
from tokka.engine.vllm.start.embedded import embedded_embedding_model, embedded_model
from tokka.engine.vllm.start.engine_folder import EngineFolder
from tokka.engine.vllm.start.engine_log import EngineLog
from tokka.engine.vllm.start.environment import (
    engine_environment,
    engine_version,
    is_cpu_build,
    prepare_environment,
)
from tokka.engine.vllm.start.model_defaults import model_defaults
from tokka.engine.vllm.start.warmup import measure_steps, warm_up, warm_up_embedding
from tokka.engine.vllm.vocabulary import Vocabulary
from tokka.engine_facts import EngineStats, ModelInfo
from tokka.errors import ConfigurationError, EngineDied, StartupError, TokkaError, UnsupportedTask
from tokka.planner.model_folder import read_hub_model, read_model_folder

log = structlog.get_logger("tokka.engine")

_SHUTDOWN_S = 1.0
# Prefix of vLLM's process names: VLLM::EngineCore, VLLM::Worker_TP0.
_PROCESS_NAMES = "VLLM::"
_STOP_POLL_S = 0.2


class VllmEngine:
    """One vLLM engine from its start to its end. Implements `Engine`."""

    def __init__(self, options: VllmOptions) -> None:
        self._options = options
        self._settings = options.settings
        self._cpu = is_cpu_build()
        # A start blocks for a minute. It has its own thread, so that `close` can wait for it.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="engine-start")
        self._starting: Future[ModelInfo] | None = None
        self._resources = ExitStack()
        self._output: EngineLog | None = None
        self._cache_root: Path | None = None
        self._llm: Any = None
        self._client: EngineClient | None = None
        self._group = ProcessGroup()
        self._processes: EngineProcesses | None = None
        self._work: Generations | Embeddings | None = None
        self._closing = False
        self._oom_kills = oom_kills()

    # -- life cycle

    async def start(self, report: ReportPhase) -> ModelInfo:
        self._starting = self._starter.submit(self._start, report)
        # The thread ends after the start. An engine starts only once.
        self._starter.shutdown(wait=False)
        info = await asyncio.wrap_future(self._starting)
        if self._processes:
            self._processes.watch()
        # design 1.9
        report("warming up", "first requests of each kind")
        try:
            info = await self._warmed_up(info)
        except TokkaError as error:
            # `error` is meant for clients and hides the cause (design 1.9.3).
            reason = self._death() or self._cause(error.__cause__ or error)
            raise StartupError(f"the engine failed its first requests: {reason}") from error
        self._connected().stats.record()
        # Only now: the first requests also compile.
        await asyncio.to_thread(seal_compiled, self._cache_root)
        if self._group.is_alone:
            # It would stop the requests of another engine for some tenths of a second.
            await asyncio.to_thread(trim_heap)
        return info

    async def _warmed_up(self, info: ModelInfo) -> ModelInfo:
        """Run the first requests of each kind. Return `info` with step costs, if the model generates."""
        prompt = TokensPrompt(_warmup_ids(info))
        if isinstance(work := self._ready(), Embeddings):
            await warm_up_embedding(self.prepare, prompt)
            return info
        constrained = await work.language.grammars.start()
        await warm_up(self.prepare, prompt, constrained=constrained)
        # Measured from one choice alone, full steps and a batch.
        times = self._connected().stats.times
        times.learn((info.kv_tokens or 0) // info.copies)
        await measure_steps(self.prepare, info)
        return replace(info, costs=times.costs)

    async def ping(self) -> None:
        # A call that the engine's own loop must answer. vLLM's health flag is set in this process.
        if self._client is not None:
            await self._client.ping()

    def stats(self) -> EngineStats:
        client = self._client
        if client is None:
            return EngineStats(death=self._death())
        running = waiting = steps = preemptions = 0
        usage = 0.0
        # One entry per copy of the model.
        for copy in client.stats.latest.values():
            steps += copy.steps
            preemptions += copy.preemptions
            if (latest := copy.scheduler) is not None:
                running += latest.num_running_reqs
                waiting += latest.num_waiting_reqs
                usage = max(usage, latest.kv_cache_usage)
        if not self._options.is_main:
            # Without vLLM's metrics its scheduler reports nothing.
            running = client.unfinished
        return EngineStats(
            running=running,
            waiting=waiting,
            kv_cache_usage=usage,
            # The lower count of both sides: one alone may be stale or leak, and a healthy engine would be killed.
            unfinished=min(client.unfinished, running + waiting),
            steps=steps,
            preemptions=preemptions,
            costs=client.stats.times.costs,
            pids=self._group.pids,
            death=self._death(),
        )

    def _death(self) -> str | None:
        ended = self._processes.ended if self._processes else None
        # design 5.1
        if not ended and not (self._client is not None and self._client.is_dead):
            return None
        exits = {**self._worker_exits(), **self._core_exits()}
        return death_of(ended, exits, self._last_error(), out_of_memory=self._is_out_of_memory())

    def _core_exits(self) -> dict[str, int]:
        """Return the exit codes of ended engine processes, by name. Workers are children of these processes."""
        manager: Any = self._llm.engine_core.resources.engine_manager if self._llm is not None else None
        return dict(manager.finished_procs()) if hasattr(manager, "finished_procs") else {}

    async def close(self) -> None:
        # design 5.4
        self._closing = True
        client = self._client
        _end_generations(client)
        if self._work:
            await self._work.close()
        try:
            # Blocks for seconds.
            await asyncio.to_thread(self._stop)
        finally:
            if self._processes:
                self._processes.close()
                self._processes = None
        # Again, for requests that arrived in the meantime.
        _end_generations(client)
        if self._work:
            self._work.renderer.close()
            self._work = None

    def _stop(self) -> None:
        while self._starting is not None and not self._starting.done():
            # Killing its processes ends a running start. Between processes the start checks whether to continue.
            # design 5.4
            self._group.kill()
            wait([self._starting], timeout=_STOP_POLL_S)
        try:
            if self._llm is not None:
                self._llm.shutdown(timeout=_SHUTDOWN_S)
        finally:
            # Drop the AsyncLLM now: kept until the interpreter exits, it fails there.
            self._llm = self._client = None
            self._group.kill()
        self._resources.close()

    def _start(self, report: ReportPhase) -> ModelInfo:
        # design 1.0
        with self._group.starting(self._check_wanted), engine_environment(os.environ):
            return self._start_in_turn(report)

    def _start_in_turn(self, report: ReportPhase) -> ModelInfo:
        # design 1.1
        model, arguments, offline = self._prepare(report)
        # design 1.3
        self._cache_root = apply_execution(self._options, arguments, cpu=self._cpu)
        self._check_wanted()
        # design 1.4
        folder = self._resources.enter_context(EngineFolder(os.environ))
        if not self._options.verbose:
            self._output = self._resources.enter_context(EngineLog(folder.path))
            os.environ[OUTPUT_VARIABLE] = self._output.path
        # design 1.5
        prepare_environment(
            os.environ,
            cpu=self._cpu,
            eager=bool(arguments["enforce_eager"]),
            ranks=self._options.ranks * self._settings.data_parallel_size,
            offline=offline,
            verbose=self._options.verbose,
            cache_root=self._cache_root,
        )
        # design 1.6
        report("loading weights", self._options.served_name)
        try:
            self._llm = self._build(arguments)
            self._client = client_of(self._llm)
        except StartupError:
            raise
        except Exception as error:
            log.debug("engine_start_failed", exc_info=error)
            raise load_failure(model, self._cause(error), self._settings.reasoning_parser) from error
        self._processes = EngineProcesses(_PROCESS_NAMES, self._group.processes())
        return self._describe()

    def _check_wanted(self) -> None:
        # design 1.6.1
        if self._closing:
            raise StartupError("stopped while starting")

    def _prepare(self, report: ReportPhase) -> tuple[str, dict[str, Any], bool]:
        """Return the model, the engine's arguments, and whether to stay offline."""
        options = self._options
        folder = options.local_folder()
        # design 1.1.2
        if options.model is None:
            report("installing model", "")
            folder = self._embedded(lambda detail: report("installing model", detail))
        # design 1.1.3
        if folder:
            model, files = str(folder), read_model_folder(folder, options.load_format)
        else:
            model = str(options.model)
            files = read_hub_model(model, options.revision, options.load_format)
        return model, engine_arguments(options, model, files, cpu=self._cpu), options.stays_offline

    def _embedded(self, report: Callable[[str], None]) -> Path:
        if self._options.is_main:
            return embedded_model(self._options.cache_dir, report, self._check_wanted)
        return embedded_embedding_model()

    def _build(self, arguments: dict[str, Any]) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.envs import disable_envs_cache
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        if not self._cpu:
            check_devices()
        try:
            engine_args = AsyncEngineArgs(**arguments)
        except TypeError as error:
            raise ConfigurationError(
                f"--engine-arg: {one_line(error).replace('AsyncEngineArgs.__init__() ', 'vLLM ')}"
            ) from None
        self._check_wanted()
        # Variables that an earlier engine of this process read may have changed.
        disable_envs_cache()
        # Keep the AsyncLLM out of this frame's variables: vLLM keeps its import errors for ever, and with them the
        # importing frames.
        usage = UsageContext.OPENAI_API_SERVER
        config = engine_args.create_engine_config(usage)
        # A pooling model may need its whole prompt in one step.
        if "long_prefill_token_threshold" not in arguments and config.model_config.runner_type != "pooling":
            # By default a long prompt takes the whole step. Half a step leaves room for a short prompt (design 1.6.2).
            scheduler = config.scheduler_config
            half = max(1, scheduler.max_num_batched_tokens // 2)
            scheduler.long_prefill_token_threshold = min(half, config.model_config.max_model_len)
        # vLLM's metrics have room for one engine in a process, the main one.
        return AsyncLLM.from_vllm_config(config, usage_context=usage, disable_log_stats=not self._options.is_main)

    def _describe(self) -> ModelInfo:
        if self._llm.model_config.runner_type == "pooling":
            self._work, info = embeddings_of(self._llm, self._connected(), cpu=self._cpu)
            return info
        config = self._llm.model_config
        tokenizer = self._llm.get_tokenizer()
        max_model_len, vocab_size = config.max_model_len, config.get_vocab_size()
        renderer = Renderer(
            tokenizer, self._options.chat_template, max_model_len, vocab_size, raw_chat=self._settings.raw_chat
        )
        # design 1.8
        if problem := renderer.template_problem():
            raise StartupError(f"the chat template is invalid; correct it or give another --chat-template: {problem}")
        language = Language(
            renderer,
            Vocabulary(tokenizer),
            GrammarService(tokenizer_line(tokenizer, vocab_size)),
            Parsers(tokenizer, renderer.template, self._settings.tool_call_parser, self._settings.reasoning_parser),
        )
        defaults = model_defaults(config.get_diff_sampling_param())
        if defaults:
            log.info("model_sampling_defaults", source="generation_config.json", **defaults)
        limits = Limits(max_model_len, vocab_size, self._options.max_completion_tokens, defaults.get("max_tokens"))
        self._work = Generations(self._llm, self._connected(), language, limits, defaults)
        scheduler = self._llm.vllm_config.scheduler_config
        ranks, cache = self._llm.vllm_config.parallel_config.world_size, self._llm.vllm_config.cache_config
        return ModelInfo(
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            engine="vllm",
            engine_version=engine_version(),
            has_chat_template=renderer.has_chat_template,
            max_running=scheduler.max_num_seqs * self._settings.data_parallel_size,
            step_tokens=scheduler.max_num_batched_tokens * self._settings.data_parallel_size,
            # vLLM does not report this for every kind of cache.
            kv_tokens=(cache.kv_cache_size_tokens or 0) * self._settings.data_parallel_size or None,
            copies=self._settings.data_parallel_size,
            caches_prefixes=bool(cache.enable_prefix_caching),
            gpus=0 if self._cpu else ranks * self._settings.data_parallel_size,
        )

    def _cause(self, error: BaseException) -> str:
        return cause_of(
            error,
            exits={**self._worker_exits(), **core_exits(error)},
            last_error=self._last_error(),
            out_of_memory=self._is_out_of_memory(),
        )

    def _last_error(self) -> str | None:
        return self._output.last_error() if self._output else None

    def _worker_exits(self) -> dict[str, int]:
        return self._output.worker_exits() if self._output else {}

    def _is_out_of_memory(self) -> bool:
        return oom_kills() > self._oom_kills

    # -- generations

    async def prepare(self, request: GenerateRequest) -> Prepared:
        work = self._ready()
        if request.task == "embed" and isinstance(work, Generations):
            raise UnsupportedTask("This model cannot embed.", param="model")
        return await work.prepare(request)

    async def tokenize(self, prompt: Prompt, tenant: str) -> list[int]:
        return await self._ready().renderer.token_ids(prompt, tenant, to_run=False)

    async def detokenize(self, token_ids: Sequence[int], tenant: str) -> str:
        return await self._ready().renderer.decode_apart(token_ids, tenant)

    async def token_texts(self, token_ids: Sequence[int], tenant: str) -> list[str]:
        return await self._ready().renderer.token_texts(token_ids, tenant)

    def _connected(self) -> EngineClient:
        if self._client is None:
            raise EngineDied("The engine is not running.")
        return self._client

    def _ready(self) -> Generations | Embeddings:
        if self._work is None:
            raise EngineDied("The engine is not running.")
        return self._work


def _warmup_ids(info: ModelInfo) -> tuple[int, ...]:
    # Any tokens will do, if they are few enough for a model with a very short context.
    return tuple(place % info.vocab_size for place in range(3, 3 + max(1, min(16, info.max_model_len // 2))))


def _end_generations(client: EngineClient | None) -> None:
    """End all running generations with EngineDeadError: a frozen engine never ends them itself."""
    if client is not None:
        from vllm.v1.engine.exceptions import EngineDeadError

        client.fail(EngineDeadError())
