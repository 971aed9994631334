#!/usr/bin/env bash
# Complete a text without a chat. `echo` also returns the prompt; `logprobs` gives the log-probability of each token.
set -euo pipefail

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

url=${TOKKA_URL:-http://127.0.0.1:8000}
auth="Authorization: Bearer ${TOKKA_API_KEY:-none}"
models=$(curl -sS --fail-with-body "$url/v1/models" -H "$auth") || fail "$models"
model=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])' <<<"$models")

answer=$(
  curl -sS --fail-with-body "$url/v1/completions" -H "$auth" -H "Content-Type: application/json" -d @- <<JSON
{
  "model": "$model",
  "prompt": "The capital of France is",
  "max_tokens": 8,
  "temperature": 0,
  "echo": true,
  "logprobs": 1
}
JSON
) || fail "$answer"
python3 -c '
import json, sys
choice = json.load(sys.stdin)["choices"][0]
scored = choice["logprobs"]
print("text:         ", choice["text"])
print("finish_reason:", choice["finish_reason"])
print("logprob  token")
for token, logprob in zip(scored["tokens"], scored["token_logprobs"]):
    # The first token has no logprob, because no token precedes it.
    print("      -" if logprob is None else f"{logprob:7.2f}", repr(token), sep="  ")
' <<<"$answer"
