"""The one typed settings object. Each option is written once, here: command line, environment, YAML file and
docs/settings.md follow.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from tokka.settings.values import is_key, is_loopback, parse_size, parse_weight

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"

_SIZES = ("max_body_size", "max_header_size", "body_memory", "answer_memory")
# Repeatable on the command line; separated by commas in the environment.
Strings = Annotated[list[str], NoDecode]


def _xdg(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / fallback) / "tokka"


class Settings(BaseSettings):
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
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    uds: Path | None = Field(None, description="Listen on this unix socket instead of host and port.")
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
        False, description="While there are no keys: serve everyone, beyond loopback and behind a proxy too."
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
        description="Seconds a request that ran in two deaths of the engine is refused with 400. 0: never.",
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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings)

    @field_validator(
        *("served_model_name", "engine_arg", "cors_origin", "api_key", "admin_key", "metrics_key", "tenant_weight"),
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        # The value of an engine argument may be JSON with commas of its own.
        commas = r",(?=\s*[\w-]+=)" if info.field_name == "engine_arg" else ","
        return [item.strip() for item in re.split(commas, value) if item.strip()]

    @field_validator("tensor_parallel_size", mode="before")
    @classmethod
    def _is_number_or_auto(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "auto" and not value.strip().isdigit():
            raise ValueError("write a number of devices, or auto")
        return value

    @field_validator("kv_cache_memory", *_SIZES, mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # A file holds a number of bytes as a number.
        return str(value) if type(value) is int else value

    @field_validator("kv_cache_memory", *_SIZES)
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None and parse_size(value) <= 0:
            raise ValueError("a size must be positive")
        return value

    @field_validator("served_model_name")
    @classmethod
    def _is_name(cls, value: list[str]) -> list[str]:
        if any(not name or len(name) > 512 for name in value):
            raise ValueError("a model name has 1 to 512 characters")
        return list(dict.fromkeys(value))

    @field_validator("root_path")
    @classmethod
    def _is_prefix(cls, value: str) -> str:
        prefix = value.rstrip("/")
        if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
            raise ValueError("a prefix is a path such as /tokka")
        return prefix

    @field_validator("engine_arg")
    @classmethod
    def _is_pair(cls, value: list[str]) -> list[str]:
        for item in value:
            if "=" not in item:
                raise ValueError(f"{item!r} is not NAME=VALUE")
        return value

    @field_validator("tenant_weight")
    @classmethod
    def _is_weight(cls, value: list[str]) -> list[str]:
        for item in value:
            parse_weight(item)
        return value

    @field_validator("api_key", "admin_key", "metrics_key")
    @classmethod
    def _is_key(cls, value: list[str]) -> list[str]:
        if not all(map(is_key, value)):
            # The key itself is a secret and stays out of the message.
            raise ValueError("a key is printable ASCII without spaces")
        return value

    @property
    def on_loopback(self) -> bool:
        return self.uds is not None or is_loopback(self.host)

    @property
    def needs_keys(self) -> bool:
        """Whether to serve only if there are keys: else everyone who reaches the address could use the model."""
        return not (self.no_auth or self.on_loopback)

    @property
    def names_database(self) -> bool:
        """Whether somebody has said where to keep keys and usage."""
        return bool({"state_dir", "database_url", "database_url_file"} & self.model_fields_set)

    @property
    def tenant_weights(self) -> dict[str, float]:
        return dict(map(parse_weight, self.tenant_weight))

    def names(self) -> tuple[str, ...]:
        """Return the names requests may use; the first is the one answers would call the model by."""
        if self.served_model_name:
            return tuple(self.served_model_name)
        if self.model is None:
            return (EMBEDDED_MODEL,) if self.engine == "vllm" else ("fake",)
        folder = Path(self.model).expanduser()
        return (folder.resolve().name,) if folder.is_dir() else (self.model,)
