#!/usr/bin/env bash
# Ask one question and print the response, one JSON object.
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
  curl -sS --fail-with-body "$url/v1/chat/completions" -H "$auth" -H "Content-Type: application/json" -d @- <<JSON
{
  "model": "$model",
  "messages": [{"role": "user", "content": "What is the capital of France?"}],
  "max_completion_tokens": 200,
  "temperature": 0
}
JSON
) || fail "$answer"
python3 -m json.tool --no-ensure-ascii <<<"$answer"
