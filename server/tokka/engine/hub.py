"""A model of the hub: its config.json, from the hub's cache on this machine or from the hub itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokka.engine.presets import presets
from tokka.engine.suggestions import did_you_mean
from tokka.engine.vllm.files import read_object
from tokka.errors import ConfigurationError, StartupError

# Seconds for a connection to the hub, and for its answer. People wait for this.
_CONNECT_S = 2.0
_ANSWER_S = 10.0
# Seconds for all of it: no timeout of a client bounds the search for the hub's address.
_MOST_S = 10.0
_REMEDY = "or download it and give its folder"


@dataclass(frozen=True, slots=True)
class HubModel:
    # Empty for a model that the hub has without a config.json.
    config: Mapping[str, Any]
    # The folder in the hub's cache that holds the config; None if the hub was asked.
    snapshot: Path | None
    # The hub must not be asked: what is not in the cache cannot be had.
    is_offline: bool


def find_on_hub(model: str, revision: str | None = None) -> HubModel:
    """Return what is known of a hub id. Blocks for seconds at most.

    Raises ConfigurationError for an id that the hub does not have, StartupError if the hub cannot be asked.
    """
    from huggingface_hub import constants, try_to_load_from_cache  # noqa: PLC0415

    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    is_offline = bool(constants.HF_HUB_OFFLINE)
    if isinstance(cached, str):
        return HubModel(read_object(Path(cached)), Path(cached).parent, is_offline)
    if is_offline:
        raise StartupError(
            f"{_unknown(model)} is not in the hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to ask "
            f"the hub; unset it, {_REMEDY}{_meant(model)}"
        )
    return HubModel(_ask(model, revision), None, is_offline)


def _ask(model: str, revision: str | None) -> Mapping[str, Any]:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError  # noqa: PLC0415

    try:
        content = json.loads(_within(_MOST_S, lambda: _download_config(model, revision)))
    except GatedRepoError:
        raise ConfigurationError(
            f"{model} is not open to everybody: accept its licence on the hub and set HF_TOKEN, {_REMEDY}"
        ) from None
    except RevisionNotFoundError:
        raise ConfigurationError(f"{model} has no revision {revision} on the hub") from None
    except EntryNotFoundError:
        # Of another form, as Mistral's own with params.json: the engine knows what to do with it.
        return {}
    except Exception as error:
        # The hub answers 401 for a model that does not exist, too.
        if getattr(getattr(error, "response", None), "status_code", 0) in (401, 404):
            raise ConfigurationError(
                f"{_unknown(model)} is not on the hub either, or it is private; write it as the hub does, set HF_TOKEN "
                f"for a private model, {_REMEDY}{_meant(model)}"
            ) from None
        # The errors of its client are many, and all mean the same here.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise StartupError(
            f"{_unknown(model)} is not in the hub's cache, and the hub cannot be asked ({reason}); see to the network, "
            f"{_REMEDY}{_meant(model)}"
        ) from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"the config.json of {model} on the hub must hold a JSON object")
    return content


def _within(seconds: float, ask: Callable[[], str]) -> str:
    """Return what a function returns, or raise what it raises. Raises TimeoutError after so many seconds."""
    answer: Future[str] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    # Not of a pool: the program's end must not wait for it.
    threading.Thread(target=run, name="hub", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None


def _download_config(model: str, revision: str | None) -> str:
    from huggingface_hub import get_session, get_token, hf_hub_url  # noqa: PLC0415
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # noqa: PLC0415

    token = get_token()
    answer = get_session().get(
        hf_hub_url(model, "config.json", revision=revision),
        headers={"Authorization": f"Bearer {token}"} if token else {},
        # To connect, to read, to write, and for a free connection.
        timeout=(_CONNECT_S, _ANSWER_S, _ANSWER_S, _CONNECT_S),
        follow_redirects=True,
    )
    hf_raise_for_status(answer)
    return answer.text


def _unknown(model: str) -> str:
    return f"{model} is not a folder and not a preset; it"


def _meant(model: str) -> str:
    names = [name for preset in presets().values() for name in (preset.name, preset.hub_id)]
    return did_you_mean(model, [*names, *_cached_models()])


def _cached_models() -> Iterator[str]:
    from huggingface_hub import constants  # noqa: PLC0415

    for folder in Path(constants.HF_HUB_CACHE).glob("models--*"):
        yield folder.name.removeprefix("models--").replace("--", "/")
