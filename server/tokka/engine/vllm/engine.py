"""vLLM's AsyncLLM as our engine: its life cycle, its generations, its errors in our words."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import structlog

from tokka.core import Accepted, EngineStats, Event, Finished, GenerateRequest, ModelInfo, Prompt, TextPrompt, Usage
from tokka.engine.base import ReportPhase
from tokka.engine.length import allowed_tokens
from tokka.engine.sampling import check_token_ids
from tokka.engine.vllm.arguments import VllmOptions, engine_arguments
from tokka.engine.vllm.child import OUTPUT_VARIABLE
from tokka.engine.vllm.embedded import embedded_model
from tokka.engine.vllm.machine import engine_version, is_cpu_build, prepare_environment
from tokka.engine.vllm.output import EngineOutput
from tokka.engine.vllm.outputs import PromptOutputs
from tokka.engine.vllm.params import is_greedy, sampling_params
from tokka.engine.vllm.render import Renderer
from tokka.engine.vllm.tokens import TokenTable
from tokka.engine.vllm.warmup import warm_up
from tokka.errors import EngineError, InvalidRequest, StartupError
