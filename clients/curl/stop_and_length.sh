#!/usr/bin/env bash
# Show the three ways an answer ends: the model, a stop string, or the length limit. finish_reason and stop_reason say which.
set -euo pipefail

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

url=${TOKKA_URL:-http://127.0.0.1:8000}
auth="Authorization: Bearer ${TOKKA_API_KEY:-none}"
models=$(curl -sS --fail-with-body "$url/v1/models" -H "$auth") || fail "$models"
model=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])' <<<"$models")

# ask TITLE FIELDS: ask the same question with these fields added to the request.
ask() {
  local answer
  answer=$(
    curl -sS --fail-with-body "$url/v1/chat/completions" -H "$auth" -H "Content-Type: application/json" -d @- <<JSON
{
  "model": "$model",
  "messages": [{"role": "user", "content": "Tell me about Helsinki in three sentences."}],
  "temperature": 0,
  $2
}
JSON
  ) || fail "$answer"
  echo "$1"
  python3 -c '
import json, sys
choice = json.load(sys.stdin)["choices"][0]
print("  answer:       ", choice["message"]["content"])
print("  finish_reason:", choice["finish_reason"])
print("  stop_reason:  ", choice["stop_reason"])
' <<<"$answer"
}

ask "Room for 10 tokens: the answer is cut off. finish_reason is length." '"max_completion_tokens": 10'
ask "Room for 300 tokens: the model ends by itself. finish_reason is stop." '"max_completion_tokens": 300'
ask "A stop string: the answer ends before it. stop_reason names it." '"max_completion_tokens": 300, "stop": ["."]'
