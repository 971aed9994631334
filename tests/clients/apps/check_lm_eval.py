"""lm-eval: likelihoods and generated texts of a server's model, on tasks with local data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from facts import API, HEADERS, MODEL, NO_MODEL, error_of, report
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

TASKS = Path(__file__).with_name("lm_eval_tasks")
# The task files name their data relative to this folder.
os.chdir(TASKS)
manager = TaskManager(include_path=str(TASKS), include_defaults=False)


def evaluate(kind: str, path: str, tasks: list[str], model: str = MODEL, **options: Any) -> dict[str, Any]:
    fields = {"model": model, "base_url": f"{API}/{path}", "max_retries": 1, "header": HEADERS, **options}
    found: dict[str, Any] = simple_evaluate(
        model=kind,
        model_args=fields,
        tasks=tasks,
        task_manager=manager,
        apply_chat_template="chat" in kind,
        bootstrap_iters=0,
    )
    return found


# lm-eval counts tokens too, so it needs the model's own tokenizer: a folder or a name on the hub.
scored = evaluate(
    "local-completions",
    "completions",
    ["tokka_capitals", "tokka_perplexity", "tokka_answers"],
    tokenizer=os.environ["TOKKA_TOKENIZER"],
    tokenizer_backend="huggingface",
    num_concurrent=2,
)
chatted = evaluate("local-chat-completions", "chat/completions", ["tokka_answers"])
try:
    evaluate("local-chat-completions", "chat/completions", ["tokka_answers"], NO_MODEL)
except Exception as caught:
    error = error_of(caught)


def samples(results: dict[str, Any], task: str) -> list[list[Any]]:
    """Return a task's questions, each with its first response."""
    return [[one["doc"]["question"], one["resps"][0][0]] for one in results["samples"][task]]


report(
    likelihoods=[
        [
            [one["doc"]["question"], f" {text}", responses[0]]
            for text, responses in zip(one["doc"]["choices"], one["resps"], strict=True)
        ]
        for one in scored["samples"]["tokka_capitals"]
    ],
    accuracy=scored["results"]["tokka_capitals"]["acc,none"],
    rolling=samples(scored, "tokka_perplexity"),
    answers=samples(scored, "tokka_answers"),
    chat_answers=samples(chatted, "tokka_answers"),
    error=error,
)
