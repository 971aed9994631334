#!/usr/bin/env bash
# Ask one question and stream the answer. Each event is a line that begins with "data: ".
set -euo pipefail

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

url=${TOKKA_URL:-http://127.0.0.1:8000}
auth="Authorization: Bearer ${TOKKA_API_KEY:-none}"
models=$(curl -sS --fail-with-body "$url/v1/models" -H "$auth") || fail "$models"
model=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])' <<<"$models")

# -N: print each event when it arrives.
stream() {
  curl -sSN --fail-with-body "$url/v1/chat/completions" -H "$auth" -H "Content-Type: application/json" -d @- <<JSON
{
  "model": "$model",
  "messages": [{"role": "user", "content": "What is the capital of France?"}],
  "max_completion_tokens": 200,
  "temperature": 0,
  "stream": true,
  "stream_options": {"include_usage": true}
}
JSON
}

# The status came before the first event, so only the stream itself shows whether it is complete.
end=missing
while IFS= read -r line || [[ -n $line ]]; do
  printf '%s\n' "$line"
  case $line in
    'data: {"error"'*) end=error ;;
    'data: [DONE]') [[ $end == error ]] || end=complete ;;
  esac
done < <(stream)

[[ $end == complete ]] || fail "The answer is not complete."
