"""The clients of docs/clients.md: the environment of each, and the run of its check."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
APPS = Path(__file__).parent / "apps"
NODE = APPS / "node"
DOCUMENT = ROOT / "docs" / "clients.md"
RUN_S = 110
QUESTION = "What is the capital of Japan?"
STOP = " Tokyo"
NO_MODEL = "no-such-model"
ASK = "What is the weather in Oulu?"
PERSON = "Matti Virtanen is 42 years old. Who is he? Answer as JSON."

# Turns off the clients' telemetry and downloads. The checks assert that clients contact only the server.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_PROXY": "127.0.0.1",
}


@dataclass(frozen=True)
class Client:
    """A row of the table: name, check, package of the version, environment (`home`), exception class (`error`)."""

    name: str
    check: str
    package: str
    home: str
    error: str

    @property
    def stamp(self) -> Path:
        folder = NODE / "node_modules" if self.home == "node" else ROOT / f".venv-clients-{self.home}"
        return folder / ".tokka-installed"

    @property
    def lock(self) -> Path:
        return NODE / "package-lock.json" if self.home == "node" else ROOT / f"requirements/clients-{self.home}.txt"

    @property
    def version(self) -> str:
        """Return the locked version."""
        if self.home == "node":
            return str(json.loads(self.lock.read_text())["packages"][f"node_modules/{self.package}"]["version"])
        found: list[str] = re.findall(rf"^{re.escape(self.package)}==(\S+)", self.lock.read_text(), re.MULTILINE)
        return found[0]

    @property
    def is_installed(self) -> bool:
        """Tell whether the environment was made from the current lock file."""
        return self.stamp.is_file() and hashlib.sha256(self.lock.read_bytes()).hexdigest() in self.stamp.read_text()

    def example(self) -> str:
        """Return the client's first code block in the document."""
        title = self.name.removesuffix(" (Python)")
        section = DOCUMENT.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        blocks: list[str] = re.findall(r"^```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        return blocks[0]


CLIENTS = [
    Client("openai (Python)", "openai", "openai", "openai3", "NotFoundError"),
    Client("openai (Node.js)", "openai_node", "openai", "node", "NotFoundError"),
    Client("langchain-openai", "langchain", "langchain-openai", "openai3", "OpenAIModelNotFoundError"),
    Client("litellm", "litellm", "litellm", "openai2", "NotFoundError"),
    Client("instructor", "instructor", "instructor", "openai2", "InstructorRetryException"),
    Client("pydantic-ai", "pydantic_ai", "pydantic-ai-slim", "openai3", "ModelNotFoundError"),
    Client("openai-agents", "agents", "openai-agents", "openai3", "NotFoundError"),
    Client("llama-index", "llama_index", "llama-index-llms-openai-like", "openai2", "NotFoundError"),
    Client("haystack", "haystack", "haystack-ai", "openai2", "NotFoundError"),
    Client("lm-eval", "lm_eval", "lm-eval", "openai3", "HTTPError"),
    Client("Vercel AI SDK", "ai_sdk", "ai", "node", "APICallError"),
    Client("aitta-client", "aitta", "aitta-client", "openai3", "ModelNotFoundError"),
]

BY_CHECK = {client.check: client for client in CLIENTS}


def run_check(client: Client, url: str, model: str, tokenizer: Path, home: Path) -> dict[str, Any]:
    """Run a client's check in its own environment against the server and return the facts it prints."""
    example = client.example().replace("http://127.0.0.1:8000", url).replace("/path/to/the/model", str(tokenizer))
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TOKKA_URL": url,
        "TOKKA_MODEL": model,
        **QUIET,
        "TOKKA_CHECK": f"check-{client.check}",
        "TOKKA_EXAMPLE": example,
        "TOKKA_TOKENIZER": str(tokenizer),
        "TOKKA_QUESTION": QUESTION,
        "TOKKA_STOP": STOP,
        "TOKKA_PERSON": PERSON,
        "TOKKA_NO_MODEL": NO_MODEL,
        "TOKKA_ASK": ASK,
    }
    if client.home == "node":
        # With `-e`, Node.js looks for packages in the working folder.
        facts = json.loads(_run(["node", f"check_{client.check}.mjs"], NODE, env))
        return {**facts, "example": _run(["node", "--input-type=module", "-e", example], NODE, env)}
    bin_folder = client.stamp.parent / "bin"
    printed = _run([str(bin_folder / "python"), str(APPS / f"check_{client.check}.py")], home, env)
    facts = json.loads(printed.splitlines()[-1])
    if client.check == "lm_eval":
        env |= {"PATH": f"{bin_folder}:{env['PATH']}"}
        facts["example"] = _run(["bash", "-euc", example], APPS / "lm_eval_tasks", env)
    return dict(facts)


def _run(command: list[str], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def missing(client: Client) -> str | None:
    """Return why a client cannot run and the command that helps, or None if it can."""
    if client.home == "node" and shutil.which("node") is None:
        return "Node.js is not installed: TOKKA_SYSTEM_PACKAGES=1 scripts/test"
    return None if client.is_installed else "not installed from its lock file: scripts/clients"
