"""Finds the config.json of a hub model, in the hub's cache on this machine or on the hub itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokka.errors import ConfigurationError, StartupError
from tokka.planner.files import read_object
from tokka.planner.presets import presets
from tokka.suggestions import did_you_mean

# Maximum seconds to connect to the hub, and to wait for its answer. A person waits for both.
_CONNECT_S = 2.0
_ANSWER_S = 10.0
# Maximum seconds for the whole lookup. HTTP client timeouts do not cover the DNS lookup.
_MOST_S = 10.0
_REMEDY = "or download the model and give its folder"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model found on the hub or in its cache."""

    # Empty if the hub has the model without a config.json.
    config: Mapping[str, Any]
    # The folder in the hub's cache that holds the config; None if the hub sent it.
    snapshot: Path | None
    # HF_HUB_OFFLINE is set: only files in the cache are available.
    is_offline: bool


def find_on_hub(model: str, revision: str | None = None) -> HubModel:
    """Find a model by its hub id. Blocks for up to 10 seconds.

    Raises ConfigurationError if the hub does not have the model or refuses it, StartupError if the lookup fails.
    """
    from huggingface_hub import constants, try_to_load_from_cache  # noqa: PLC0415

    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    is_offline = bool(constants.HF_HUB_OFFLINE)
    if isinstance(cached, str):
        return HubModel(read_object(Path(cached)), Path(cached).parent, is_offline)
    if is_offline:
        raise StartupError(
            f"{_unknown(model)} is not in the hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; unset "
            f"HF_HUB_OFFLINE, {_REMEDY}{_meant(model)}"
        )
    return HubModel(_ask(model, revision), None, is_offline)


def _ask(model: str, revision: str | None) -> Mapping[str, Any]:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError  # noqa: PLC0415

    try:
        content = json.loads(_within(_MOST_S, lambda: _download_config(model, revision)))
    except GatedRepoError:
        raise ConfigurationError(
            f"{model} has restricted access on the hub; accept its licence there and set HF_TOKEN, {_REMEDY}"
        ) from None
    except RevisionNotFoundError:
        raise ConfigurationError(f"{model} has no revision {revision} on the hub; check the revision's name") from None
    except EntryNotFoundError:
        # A model in another format, for example Mistral's with params.json. The engine can read it.
        return {}
    except Exception as error:
        # The hub also answers 401 for a model that does not exist.
        if getattr(getattr(error, "response", None), "status_code", 0) in (401, 404):
            raise ConfigurationError(
                f"{_unknown(model)} is not on the hub either, or it is private; check the spelling, set HF_TOKEN for a "
                f"private model, {_REMEDY}{_meant(model)}"
            ) from None
        # The hub client raises many error types; here all mean that the lookup failed.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise StartupError(
            f"{_unknown(model)} is not in the hub's cache, and the lookup on the hub failed ({reason}); check the "
            f"network, {_REMEDY}{_meant(model)}"
        ) from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"the config.json of {model} on the hub must hold a JSON object")
    return content


def _within(seconds: float, ask: Callable[[], str]) -> str:
    """Call a function in a thread; return its result or raise its error. Raises TimeoutError after `seconds`."""
    answer: Future[str] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    # A daemon thread, not a pool: the program must be able to exit without waiting for it.
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
        # Connect, read, write and pool timeouts.
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
