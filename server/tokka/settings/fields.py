"""The options. Each is written once, here: command line, environment, YAML file and docs/settings.md follow. What their
values must be like, beyond their types, is in `settings.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"

# Repeatable on the command line; separated by commas in the environment.
Strings = Annotated[list[str], NoDecode]


def _xdg(variable: str, fallback: str) -> Path:
    """Return the desktop's folder of a kind. It begins with `~` for a user without a home folder."""
    base = os.environ.get(variable)
    return Path(base or os.path.expanduser(f"~/{fallback}")) / "tokka"


class Options(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TOKKA_", extra="forbid", env_ignore_empty=True)

    # Model
    model: str | None = Field(
        None,
        description="A local folder, a hub id or a preset's name. Without one: the embedded " + EMBEDDED_MODEL + ".",
    )
    served_model_name: Strings = Field(
        [], description="Names requests may use. Default: the folder's name or the hub id."
    )
    engine: Literal["vllm", "fake"] = Field(
        "vllm", description="`fake`: a scripted engine for developing clients without a model."
    )
    engine_arg: Strings = Field(
        [], description="NAME=VALUE, any further field of vLLM's AsyncEngineArgs, or of the fake engine."
    )
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        1,
        description="Devices over which each layer is split. `auto`: as few as hold the model and a KV cache for a"
        " batch.",
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, le=1024, description="Groups of devices over which the layers are spread."
    )
    data_parallel_size: int = Field(1, ge=1, le=1024, description="Copies of the model behind this server.")
    dtype: Literal["auto", "bfloat16", "float16", "float32", "half", "float"] = Field(
        "auto", description="Precision of weights and activations."
    )
    quantization: str | None = Field(
        None, description="Quantization method, where the model's config does not name it."
    )
    max_model_len: int | None = Field(None, ge=1, description="Context length in tokens. Default: the model's own.")
    max_num_seqs: int | None = Field(
        None, ge=1, le=65536, description="Sequences that run at once. Default: the engine's."
    )
    kv_cache_memory: str | None = Field(None, description="KV cache per device, as in 4GiB. Default: from free memory.")
    chat_template: Path | None = Field(
        None, description="Jinja file that replaces the model's chat template, or gives a base model one."
    )
    raw_chat: bool = Field(
        False,
        description="Let control tokens in the text of chats stand for themselves, as in vLLM: whoever writes a part of"
        " a message can then end it and write others. Default: they are text.",
    )
    tool_call_parser: str | None = Field(
        None,
        description="How the model writes calls of functions: a name of docs/tools.md. Default: what its chat template"
        " shows.",
    )
    reasoning_parser: str | None = Field(
        None,
        description="How the model marks what it thinks: a name of docs/tools.md. Default: it is part of the text.",
    )
    optimize: Literal["start", "throughput"] | None = Field(
        None,
        description="`start`: eager execution. `throughput`: compiled; on a CPU the first start takes a minute longer,"
        " later ones reuse what it made. Default: compiled on a GPU; on a CPU where an earlier start has compiled.",
    )
    enforce_eager: bool | None = Field(
        None, description="Eager, or with --no-enforce-eager compiled, whatever --optimize says."
    )
    # Network
    host: str = Field(
        "127.0.0.1",
        description="Address or name to listen on. `::` listens on IPv4 as well; a name on all of its addresses.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    uds: Path | None = Field(None, description="Listen on this unix socket instead of host and port.")
    uds_mode: str = Field(
        "0660", description="Permissions of the unix socket, in octal. To connect takes the right to write."
    )
    uds_group: str | None = Field(
        None,
        description="Group of the unix socket: a name or a number, for instance the group of nginx. Default: the"
        " server's own.",
    )
    root_path: str = Field(
        "",
        description="Prefix under which a reverse proxy publishes the server, as in `/tokka`. Requests are served with"
        " and without it; /openapi.json names it.",
    )
    cors_origin: Strings = Field([], description="Origins whose web pages may call this server; `*` for all.")
    max_body_size: str | None = Field(
        None,
        description="Maximum request body size. Larger bodies get 413. Default: 128 bytes for each token of the model's"
        " context, from 1MiB to 32MiB.",
    )
    unknown_fields: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="Unknown top-level fields of a request. `refuse`: 400, with the field that was probably meant."
        " `ignore`: serve the request, and name the fields in the header `x-tokka-ignored-fields`.",
    )
    body_memory: str = Field(
        "256MiB",
        description="Memory for request bodies that arrive or are parsed. Requests beyond it get 503. One tenant may"
        " use half of it.",
    )
    answer_memory: str = Field(
        "1GiB",
        description="Memory for answers that are not streamed, reserved by their longest possible size. Requests"
        " beyond it get 503. One tenant may use half of it.",
    )
    max_header_size: str = Field("64KiB", description="Largest request line and headers. Beyond: 431.")
    keep_alive_interval: float = Field(
        15,
        gt=0,
        le=3600,
        description="Seconds of silence after which a stream gets a comment, so that proxies keep it open.",
    )
    max_connections: int = Field(
        8192,
        ge=1,
        le=1_000_000,
        description="Connections open at once. Beyond: those without a valid key are closed, then idle ones, then 503.",
    )
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Connections open at once from one address (of IPv6: from one /64). Beyond: the address's own make"
        " room as above, then 503. Behind a reverse proxy all clients have one address. Unix sockets have none.",
    )
    header_timeout: float = Field(
        10, gt=0, le=3600, description="Seconds a client may take to send a request's headers. Beyond: closed."
    )
    body_timeout: float = Field(
        30,
        gt=0,
        le=3600,
        description="Seconds a client may take to send a request's body, and one more for every 64 KiB of it."
        " Beyond: 408.",
    )
    write_timeout: float = Field(
        30, gt=0, le=3600, description="Seconds a client may leave an answer unread. Beyond: its connection is cut."
    )
    idle_timeout: int = Field(
        130,
        ge=1,
        le=7200,
        description="Seconds an idle connection is kept open after its last response. Longer than the idle timeout of a"
        " proxy in front, or the proxy sends requests on connections that are closing.",
    )
    # Access
    api_key: Strings = Field(
        [],
        description="A key for inference. Each key is a tenant of its own. On the command line every user of the"
        " machine can see it: use --api-key-file.",
    )
    api_key_file: Path | None = Field(
        None,
        description="File of keys for inference, one a line. A `#` at the start of a line or after a space begins a"
        " comment.",
    )
    admin_key: Strings = Field([], description="A key for /admin, /metrics and inference.")
    admin_key_file: Path | None = Field(None, description="File of such keys, as --api-key-file.")
    metrics_key: Strings = Field([], description="A key for /metrics only.")
    metrics_key_file: Path | None = Field(None, description="File of such keys, as --api-key-file.")
    oidc_issuer: str | None = Field(
        None,
        description="Also accept tokens (JWT) signed by this issuer, as in https://login.example.org/realms/lumi.",
    )
    oidc_audience: str | None = Field(
        None, description="Who the issuer's tokens must be meant for. Needed with --oidc-issuer."
    )
    oidc_tenant_claim: str = Field("sub", min_length=1, description="The claim that names a token's tenant.")
    oidc_scope_claim: str = Field(
        "scope",
        min_length=1,
        description="The claim that holds a token's scopes: `inference`, `metrics`, `admin`, as a list or a text.",
    )
    no_auth: bool = Field(
        False,
        description="Serve everyone without a key, beyond loopback and behind a proxy too. Refused while a key is"
        " active.",
    )
    metrics_open: bool = Field(False, description="Serve /metrics to everyone, without a key. It names all tenants.")
    share_prefix_cache: bool | None = Field(
        None,
        description="Let tenants reuse each other's cached prompts. Their timing tells what others asked, so: off with"
        " keys, on without.",
    )
    # Limits
    max_completion_tokens: int | None = Field(
        None, ge=1, description="Most tokens a choice may have, whatever a request asks for."
    )
    max_waiting: int = Field(512, ge=0, description="Choices that may wait for the engine. Beyond: 503.")
    max_waiting_tokens: int = Field(
        1_000_000, ge=0, description="Prompt tokens that may wait for the engine. Beyond: 503."
    )
    max_waiting_per_tenant: int | None = Field(
        None,
        ge=0,
        description="Choices of one tenant that may wait. Without it one tenant may fill the queue, and makes room"
        " again as soon as others come.",
    )
    max_waiting_tokens_per_tenant: int | None = Field(
        None, ge=0, description="Prompt tokens of one tenant that may wait."
    )
    tenant_weight: Strings = Field(
        [], description="TENANT=WEIGHT: this tenant's share of a busy engine, as a multiple of the others'."
    )
    slo: Literal["interactive"] | None = Field(
        None,
        description="Targets by name. `interactive`: 1 s to the first token and 0.05 s for each further one, or on a"
        " slower engine four full steps and three lone ones, as measured at the start. --slo-ttft and --slo-tpot hold"
        " beside it.",
    )
    slo_ttft: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Target: seconds from a request's arrival to its first token. What cannot be served within it is"
        " refused at once.",
    )
    slo_tpot: float | None = Field(
        None,
        gt=0,
        le=60,
        description="Target: seconds for each further token. As many choices run as keep it.",
    )
    request_timeout: float | None = Field(
        None, gt=0, description="Seconds a request may take; then the answer so far is returned."
    )
    queue_timeout: float = Field(
        60, gt=0, le=3600, description="Seconds a request may wait for its turn on the engine. Beyond: 504."
    )
    drain_timeout: float = Field(
        120, ge=0, description="Seconds that running requests may take to finish after SIGTERM."
    )
    # Engine failures
    stall_timeout: float = Field(
        20,
        ge=3,
        le=3600,
        description="Seconds without a step or an answer of an idle engine with work to do, after which it is taken for"
        " dead and rebuilt. Ten times that while its processes compute.",
    )
    max_quick_deaths: int = Field(
        5,
        ge=1,
        le=1000,
        description="Deaths of the engine in a row, each soon after its start, at which the server gives up with exit"
        " code 3.",
    )
    quarantine_time: float = Field(
        600,
        ge=0,
        description="Seconds for which the server refuses a request that ran in two deaths of the engine (400), and a"
        " tenant that was present at three in quick succession (503). 0: never.",
    )
    # Files
    state_dir: Path = Field(
        default_factory=lambda: _xdg("XDG_STATE_HOME", ".local/state"),
        description="Where keys and usage are kept, in an SQLite database.",
    )
    database_url: str | None = Field(
        None,
        description="Keep keys and usage in this PostgreSQL instead, as in postgresql://user:password@host/name;"
        " several servers may share it.",
    )
    database_url_file: Path | None = Field(
        None, description="File that holds the URL of --database-url, which has a password in it."
    )
    database_wait: float = Field(
        60,
        ge=0,
        le=3600,
        description="Seconds to wait at the start for a database that is not there yet. Beyond: exit code 1.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: _xdg("XDG_CACHE_HOME", ".cache"),
        description="Where the embedded model and compiled code are kept.",
    )
    # Logs
    log_format: Literal["json", "console"] | None = Field(
        None, description="Default: console on a terminal, else json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="`debug` also shows the engine's own log and tracebacks."
    )
    log_prompts: bool = Field(False, description="Log prompts. They are the users' own words: never on by itself.")
