"""Facts that the server takes from a model's files: its name, its sampling defaults, and its own code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.program import failing, running

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

TEMPLATE = "{% for message in messages %}Päivää: {{ message.content }}{% endfor %}"


@pytest.fixture
def model(bloom_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bloom_folder, tmp_path / "snapshots-0123abcd"))


def test_dummy_weights_link_and_model_defaults_serve(model: Path, tmp_path: Path) -> None:
    for weights in model.glob("*.safetensors"):
        weights.unlink()
    (model / "generation_config.json").write_text(json.dumps({"max_new_tokens": 7, "temperature": 0.5}))
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    link = tmp_path / "Poro-link"
    os.symlink(model, link)
    options = ("--engine-arg", "load_format=dummy", "--chat-template", str(template))
    with running(str(link), *options) as program, program.client() as client:
        assert program.model == "Poro-link"
        (told,) = [line for line in program.log if line.get("event") == "model_sampling_defaults"]
        assert (told["max_tokens"], told["temperature"]) == (7, 0.5)
        question = {"model": "Poro-link", "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}
        chat = client.post("/v1/chat/completions", json=question).json()
        assert chat["usage"]["completion_tokens"] == 7
        asked = client.post("/v1/chat/completions", json={**question, "max_completion_tokens": 9}).json()
        assert asked["usage"]["completion_tokens"] == 9


def test_model_with_code_of_its_own_names_the_remedy(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    own = {"model_type": "poro_of_tomorrow", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (model / "config.json").write_text(json.dumps({**config, **own}))
    (model / "configuration_own.py").write_text("from transformers import BloomConfig as OwnConfig\n")
    code, lines = failing(str(model), "--port", "0")
    assert code == 2
    (line,) = lines
    assert "--engine-arg trust_remote_code=true" in line
