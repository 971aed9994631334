"""Hub ids before the engine is imported: found in the hub's cache or on a local hub, or refused with a reason."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.models.folders import CONFIG, POINTER, write_index, write_model, write_shard
from tests.program import failing
from tokka.errors import StartupError
from tokka.planner import hub as hub_module

# Maximum seconds until the whole program has reported the error, on a busy machine. 3 s is the aim.
TOLD_WITHIN_S = 30.0


class Hub:
    """A local hub. `answers`: status, error code and body for each path."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str, str]] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(self.path)
                status, code, body = hub.answers.get(self.path, (404, "RepoNotFound", ""))
                self.send_response(status)
                if code:
                    self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def line_of(model: str, *arguments: str, code: int, cache: Path, **env: str) -> str:
    began = time.monotonic()
    given = {"HF_HUB_CACHE": str(cache), **env}
    exit_code, lines = failing(model, "--port", "0", *arguments, env=given)
    assert time.monotonic() - began < TOLD_WITHIN_S
    assert (exit_code, len(lines)) == (code, 1), lines
    return lines[0]


def snapshot(cache: Path, model: str) -> Path:
    """Write a model into the hub's cache, as the hub's client does."""
    folder = cache / f"models--{model.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc")
    return write_model(folder / "snapshots" / "0123abc")


def test_typo_in_a_hub_id_gets_a_suggestion(hub: Hub, cache: Path) -> None:
    snapshot(cache, "my-team/finnish-llama-7b")
    line = line_of("Qwen/Qwen3-0.6", code=2, cache=cache, HF_ENDPOINT=hub.url)
    assert "Qwen/Qwen3-0.6 is not a folder and not a preset" in line
    assert "did you mean Qwen/Qwen3-0.6B" in line
    assert hub.asked == ["/Qwen/Qwen3-0.6/resolve/main/config.json"]
    line = line_of("my-team/finish-llama-7b", code=2, cache=cache, HF_ENDPOINT=hub.url)
    assert line.endswith("did you mean my-team/finnish-llama-7b?")


def test_hub_that_cannot_be_asked_is_not_a_wrong_use(cache: Path) -> None:
    line = line_of("Poro-34B-chatt", code=3, cache=cache, HF_ENDPOINT="http://127.0.0.1:9")
    assert "the lookup on the hub failed" in line
    assert "did you mean Poro-34B-chat?" in line


def test_hub_lookup_fails_when_dns_does_not_answer_in_time(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    found = threading.Event()
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    # Acts like a DNS resolver that gets no answer.
    monkeypatch.setattr(hub_module, "_download_config", lambda *_: str(found.wait()))
    monkeypatch.setattr(hub_module, "_MOST_S", 0.01)
    try:
        with pytest.raises(StartupError, match="no answer within 0 s"):
            hub_module.find_on_hub("no-such-org/no-such-model")
    finally:
        found.set()


def test_offline_without_cache_names_the_cache(cache: Path) -> None:
    line = line_of("no-such-org/no-such-model", code=3, cache=cache, HF_HUB_OFFLINE="1")
    assert str(cache) in line
    assert "HF_HUB_OFFLINE" in line
    assert "did you mean" not in line


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((401, "GatedRepo", ""), 2, "accept its licence"),
        ((401, "", ""), 2, "HF_TOKEN"),
        ((404, "RevisionNotFound", ""), 2, "no revision v7"),
        ((404, "", ""), 2, "is not on the hub"),
        ((500, "", ""), 3, "lookup on the hub failed"),
        ((200, "", "<html>"), 3, "lookup on the hub failed"),
        ((200, "", "[]"), 2, "must hold a JSON object"),
    ],
)
def test_hub_error_becomes_our_own_message(
    hub: Hub, cache: Path, answer: tuple[int, str, str], code: int, words: str
) -> None:
    hub.answers["/a/b/resolve/v7/config.json"] = answer
    line = line_of("a/b", "--engine-arg", "revision=v7", code=code, cache=cache, HF_ENDPOINT=hub.url)
    assert words in line


def test_config_of_the_hub_sizes_the_cache_before_any_download(hub: Hub, cache: Path) -> None:
    config = json.dumps({**CONFIG, "max_position_embeddings": 2_000_000_000})
    hub.answers["/a/b/resolve/main/config.json"] = (200, "", config)
    line = line_of("a/b", code=3, cache=cache, HF_ENDPOINT=hub.url)
    assert "not enough memory" in line
    assert "2000000000 tokens" in line


def test_cached_model_is_checked_as_a_folder_when_offline(cache: Path) -> None:
    folder = snapshot(cache, "a/b")
    write_shard(folder / "model-00001-of-00002.safetensors", ["x"])
    line = line_of("a/b", code=3, cache=cache, HF_HUB_OFFLINE="1")
    assert "lacks model-00002-of-00002.safetensors" in line
    write_shard(folder / "model-00002-of-00002.safetensors", ["y"])
    write_index(folder, {"x": "model-00001-of-00002.safetensors", "z": "model-00002-of-00002.safetensors"})
    assert "does not hold the tensor z" in line_of("a/b", code=3, cache=cache, HF_HUB_OFFLINE="1")
    (folder / "tokenizer.json").write_text(POINTER)
    assert "tokenizer.json is a Git LFS pointer" in line_of("a/b", code=3, cache=cache, HF_HUB_OFFLINE="1")


def test_missing_folder_gets_a_suggestion(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "poro-34b-chat").mkdir()
    line = line_of(str(tmp_path / "poro-34b-cat"), code=3, cache=cache)
    assert "does not exist" in line
    assert line.endswith("did you mean poro-34b-chat?")


@pytest.mark.parametrize("content", [[], ["README.md"]])
def test_empty_folder_may_be_a_missing_mount(tmp_path: Path, cache: Path, content: list[str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in content:
        (folder / name).write_text("")
    line = line_of(str(folder), code=2 if content else 3, cache=cache)
    assert ("has no config.json" if content else "check that its file system is mounted") in line
