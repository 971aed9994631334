"""The options of `tokka serve`, each declared once: command line, environment, YAML file and docs/settings.md use it.

Checks of the values beyond their types are in `settings.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
EMBEDDED_EMBEDDING_MODEL = "all-MiniLM-L6-v2"

# A list: repeatable on the command line, separated by commas in the environment.
Strings = Annotated[list[str], NoDecode]


def _xdg(variable: str, fallback: str) -> Path:
    """Return Tokka's folder below an XDG base folder. It begins with `~` if the user has no home folder."""
    base = os.environ.get(variable)
    return Path(base or os.path.expanduser(f"~/{fallback}")) / "tokka"


class EngineSettings(BaseSettings):
    """The settings of the model and its engine. The engine receives this type, so that it can read no other setting."""

    model_config = SettingsConfigDict(env_prefix="TOKKA_", extra="forbid", env_ignore_empty=True)

    # Model
    model: str | None = Field(
        None,
        description="Local folder, hub id or preset name. Default: the embedded " + EMBEDDED_MODEL + ".",
    )
    served_model_name: Strings = Field(
        [], description="Model names that requests may use. Default: the folder's name or the hub id."
    )
    engine: Literal["vllm", "fake"] = Field(
        "vllm", description="Engine to run. `fake`: a scripted engine without a model, for developing clients."
    )
    engine_arg: Strings = Field(
        [], description="NAME=VALUE: another field of vLLM's AsyncEngineArgs, or of the fake engine."
    )
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        1,
        description="Number of devices that share each layer. `auto`: the fewest that hold the model and a KV cache"
        " for a batch.",
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, le=1024, description="Number of pipeline stages. Each stage holds part of the layers."
    )
    data_parallel_size: int = Field(1, ge=1, le=1024, description="Number of model copies behind this server.")
    dtype: Literal["auto", "bfloat16", "float16", "float32", "half", "float"] = Field(
        "auto", description="Precision of weights and activations."
    )
    quantization: str | None = Field(
        None, description="Quantization method. Needed only if the model's config does not name it."
    )
    max_model_len: int | None = Field(None, ge=1, description="Context length in tokens. Default: the model's own.")
    max_num_seqs: int | None = Field(
        None, ge=1, le=65536, description="Maximum sequences that run at once. Default: the engine's own limit."
    )
    kv_cache_memory: str | None = Field(
        None, description="KV cache size per device, for example 4GiB. Default: computed from free memory."
    )
    chat_template: Path | None = Field(
        None,
        description="Jinja file with a chat template. It replaces the model's own template, or gives a base model one.",
    )
    raw_chat: bool = Field(
        False,
        description="Treat control tokens in message text as control tokens, as vLLM does. The author of the text can"
        " then end the message and forge others. Default: control tokens in messages are plain text.",
    )
    tool_call_parser: str | None = Field(
        None,
        description="Format of the model's tool calls: a name from docs/tools.md. Default: detected from the chat"
        " template.",
    )
    reasoning_parser: str | None = Field(
        None,
        description="Format of the model's reasoning: a name from docs/tools.md. Default: reasoning stays in the text.",
    )
    optimize: Literal["start", "throughput"] | None = Field(
        None,
        description="`start`: eager execution. `throughput`: compiled execution; on a CPU the first start takes a"
        " minute longer, and later starts reuse the compiled code. Default: compiled on a GPU; on a CPU, compiled"
        " only if an earlier start has compiled.",
    )
    enforce_eager: bool | None = Field(
        None, description="Force eager execution, or compiled execution with --no-enforce-eager. Overrides --optimize."
    )

    # Embedding model
    embedding_model: str | None = Field(
        None,
        description="Embedding model to serve beside the model, for /v1/embeddings, /v1/rerank and /v1/score: local"
        " folder or hub id. `none`: no embedding model. Default: "
        + EMBEDDED_EMBEDDING_MODEL
        + " beside the embedded model, otherwise none.",
    )
    embedding_model_name: Strings = Field(
        [], description="Names by which requests may use the embedding model. Default: the folder's name or the hub id."
    )
    embedding_load: Literal["start", "first-use"] | None = Field(
        None,
        description="When to load the embedding model. `start`: with the server. `first-use`: at the first request for"
        " it, which gets 503 until the model is loaded. Default: `start` with --embedding-model, otherwise"
        " `first-use`.",
    )
    embedding_engine_arg: Strings = Field(
        [], description="NAME=VALUE: as --engine-arg, for the engine of the embedding model."
    )


class Options(EngineSettings):
    """The fields of all settings, with their defaults, bounds and help texts."""

    # Fleet
    fleet: Path | None = Field(
        None,
        description="YAML file of several models, which run in `tokka worker` processes. It replaces MODEL and the"
        " engine's settings.",
    )
    # Network
    host: str = Field(
        "127.0.0.1",
        description="Address or host name to listen on. `::` also listens on IPv4. A host name listens on all its"
        " addresses.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on. 0 picks a free port.")
    uds: Path | None = Field(None, description="Unix socket to listen on, instead of host and port.")
    uds_mode: str = Field(
        "0660", description="Permissions of the Unix socket, in octal. Clients need write permission to connect."
    )
    uds_group: str | None = Field(
        None,
        description="Group of the Unix socket, by name or number, for example the group of nginx. Default: the"
        " server's own group.",
    )
    root_path: str = Field(
        "",
        description="URL prefix under which a reverse proxy publishes the server, for example `/tokka`. Requests work"
        " with and without the prefix. /openapi.json includes it.",
    )
    cors_origin: Strings = Field(
        [], description="Web origins that may call this server from a browser. `*` allows all."
    )
    max_body_size: str | None = Field(
        None,
        description="Maximum request body size. Larger bodies get 413. Default: 128 bytes per token of the model's"
        " context, from 1MiB to 32MiB; at least 8MiB for embeddings, rerank and score.",
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="Handling of unknown top-level fields in a request. `refuse`: 400, with the field that was"
        " probably meant. `ignore`: serve the request and list the ignored fields in the header"
        " `x-tokka-ignored-fields`.",
    )
    body_memory: str = Field(
        "256MiB",
        description="Maximum memory for request bodies while the server receives and parses them. Requests beyond it"
        " get 503. One tenant may use half of it.",
    )
    answer_memory: str = Field(
        "1GiB",
        description="Maximum memory for non-streaming responses. Each request reserves its largest possible response."
        " Requests beyond it get 503. One tenant may use half of it.",
    )
    max_header_size: str = Field("64KiB", description="Maximum size of request line and headers. Larger ones get 431.")
    keep_alive_interval: float = Field(
        15,
        gt=0,
        le=3600,
        description="Seconds without data after which the server sends a comment on a stream, so that proxies keep it"
        " open.",
    )
    max_connections: int = Field(
        8192,
        ge=1,
        le=1_000_000,
        description="Maximum open connections. Beyond it, the server closes connections without a valid key, then idle"
        " ones. If it can close none, it answers 503.",
    )
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Maximum open connections from one address (for IPv6, from one /64). Beyond it, the server closes"
        " connections of this address in the order above, then answers 503. Behind a reverse proxy all clients"
        " share one address. Does not apply to Unix sockets.",
    )
    header_timeout: float = Field(
        10,
        gt=0,
        le=3600,
        description="Seconds a client may take to send the request headers. Then the server closes the connection.",
    )
    body_timeout: float = Field(
        30,
        gt=0,
        le=3600,
        description="Seconds a client may take to send the request body, plus one second per 64 KiB. Slower bodies get"
        " 408.",
    )
    write_timeout: float = Field(
        30,
        gt=0,
        le=3600,
        description="Seconds a client may leave a response unread. Then the server closes the connection.",
    )
    idle_timeout: int = Field(
        130,
        ge=1,
        le=7200,
        description="Seconds the server keeps an idle connection open after its last response. Set it longer than the"
        " idle timeout of a proxy in front, or the proxy sends requests on connections that are closing.",
    )
    # Access
    api_key: Strings = Field(
        [],
        description="API key for inference. Each key is its own tenant. Every user of the machine can see the command"
        " line, so use --api-key-file.",
    )
    api_key_file: Path | None = Field(
        None,
        description="File of inference keys, one per line. `#` starts a comment at the beginning of a line or after a"
        " space.",
    )
    admin_key: Strings = Field([], description="API key for /admin, /metrics and inference.")
    admin_key_file: Path | None = Field(None, description="File of admin keys, in the format of --api-key-file.")
    metrics_key: Strings = Field([], description="API key for /metrics only.")
    metrics_key_file: Path | None = Field(None, description="File of metrics keys, in the format of --api-key-file.")
    oidc_issuer: str | None = Field(
        None,
        description="Also accept tokens (JWT) signed by this issuer, for example"
        " https://login.example.org/realms/lumi.",
    )
    oidc_audience: str | None = Field(
        None, description="Audience that the issuer's tokens must have. Required with --oidc-issuer."
    )
    oidc_tenant_claim: str = Field("sub", min_length=1, description="Token claim that names the tenant.")
    oidc_scope_claim: str = Field(
        "scope",
        min_length=1,
        description="Token claim that holds the scopes (`inference`, `metrics`, `admin`), as a list or a string.",
    )
    no_auth: bool = Field(
        False,
        description="Serve everyone without a key, also from other machines and through proxies. The server does not"
        " start with this option while a key is active.",
    )
    metrics_open: bool = Field(False, description="Serve /metrics to everyone without a key. It names all tenants.")
    share_prefix_cache: bool | None = Field(
        None,
        description="Let tenants reuse each other's cached prompts. Response times then reveal the prompts of others."
        " Default: off with keys, on without keys.",
    )
    # Limits
    max_completion_tokens: int | None = Field(
        None, ge=1, description="Maximum tokens per choice. It caps the limit that a request sets."
    )
    max_waiting: int = Field(512, ge=0, description="Maximum queued choices. Requests beyond it get 503.")
    max_waiting_tokens: int = Field(
        1_000_000, ge=0, description="Maximum prompt tokens of all queued requests. Requests beyond it get 503."
    )
    max_waiting_per_tenant: int | None = Field(
        None,
        ge=0,
        description="Maximum queued choices of one tenant. Requests beyond it get 503. Default: one tenant may fill"
        " the queue, but loses places to other tenants as they arrive.",
    )
    max_waiting_tokens_per_tenant: int | None = Field(
        None, ge=0, description="Maximum prompt tokens of one tenant's queued requests. Requests beyond it get 503."
    )
    tenant_weight: Strings = Field(
        [], description="TENANT=WEIGHT: this tenant's share of a busy engine, as a multiple of another tenant's share."
    )
    slo: Literal["interactive"] | None = Field(
        None,
        description="Named latency targets. `interactive`: 1 s to the first token and 0.05 s for each further token."
        " A slower engine gets longer targets: the time of four full steps and of three single-choice steps, as"
        " measured at the start. --slo-ttft and --slo-tpot override them.",
    )
    slo_ttft: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Target in seconds from a request's arrival to its first token. Requests that would miss it get"
        " 503.",
    )
    slo_tpot: float | None = Field(
        None,
        gt=0,
        le=60,
        description="Target in seconds for each token after the first. The server runs only as many choices as keep"
        " it.",
    )
    request_timeout: float | None = Field(
        None,
        gt=0,
        description="Maximum seconds per request. Beyond it, the response ends with the text generated so far.",
    )
    queue_timeout: float = Field(
        60, gt=0, le=3600, description="Maximum seconds a request may wait in the queue. Longer waits get 504."
    )
    drain_timeout: float = Field(
        120, ge=0, description="Seconds that open requests have to finish after SIGTERM. Then the server ends them."
    )
    # Engine failures
    stall_timeout: float = Field(
        20,
        ge=3,
        le=3600,
        description="Seconds without progress after which the server restarts the engine. Progress is a step while"
        " there is work, or a reply to a call. While the engine's processes use CPU, the limit is ten times as"
        " long.",
    )
    max_quick_deaths: int = Field(
        5,
        ge=1,
        le=1000,
        description="Consecutive engine deaths, each soon after the engine's start, at which the server exits with"
        " code 3.",
    )
    quarantine_time: float = Field(
        600,
        ge=0,
        description="Seconds for which the server refuses a request that ran during two engine deaths (400), or a"
        " tenant whose requests ran during three in quick succession (503). 0 turns this off.",
    )
    # Files
    state_dir: Path = Field(
        default_factory=lambda: _xdg("XDG_STATE_HOME", ".local/state"),
        description="Folder of the SQLite database for keys and usage.",
    )
    database_url: str | None = Field(
        None,
        description="PostgreSQL database for keys and usage, instead of SQLite, for example"
        " postgresql://user:password@host/name. Several servers may share it.",
    )
    database_url_file: Path | None = Field(
        None, description="File that holds the URL of --database-url, which contains a password."
    )
    database_wait: float = Field(
        60,
        ge=0,
        le=3600,
        description="Seconds to wait at the start for a database that is not available yet. Then the server exits with"
        " code 1.",
    )
    response_ttl: float = Field(
        30,
        gt=0,
        le=3650,
        description="Days for which responses of /v1/responses are stored. Older ones are removed.",
    )
    response_storage: str = Field(
        "1GiB",
        description="Maximum size of a tenant's stored responses, uncompressed. Beyond it, the oldest are removed.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: _xdg("XDG_CACHE_HOME", ".cache"),
        description="Folder for the embedded model and compiled code.",
    )
    # Logs
    log_format: Literal["json", "console"] | None = Field(
        None, description="Log format. Default: console on a terminal, otherwise json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum log level. `debug` also shows the engine's own log and tracebacks."
    )
    log_prompts: bool = Field(
        False, description="Log prompts. They contain the users' text, so they are off by default."
    )
