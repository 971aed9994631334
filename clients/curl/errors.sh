#!/usr/bin/env bash
# Show refusals: an HTTP status, and a body that names the field (param) and the reason (code).
set -euo pipefail

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

url=${TOKKA_URL:-http://127.0.0.1:8000}
auth="Authorization: Bearer ${TOKKA_API_KEY:-none}"
models=$(curl -sS --fail-with-body "$url/v1/models" -H "$auth") || fail "$models"
model=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["id"])' <<<"$models")

# refused STATUS BODY: send a chat request and fail unless the response has this status.
refused() {
  local answer status
  answer=$(curl -sS -w '\n%{http_code}' "$url/v1/chat/completions" -H "$auth" -H "Content-Type: application/json" -d "$2")
  status=${answer##*$'\n'}
  echo "$2"
  echo "-> HTTP $status"
  python3 -m json.tool --no-ensure-ascii <<<"${answer%$'\n'*}"
  [[ $status == "$1" ]] || fail "Expected HTTP $1."
}

message='{"role": "user", "content": "Hello"}'
refused 404 '{"model": "no-such-model", "messages": ['"$message"']}'
refused 400 '{"model": "'"$model"'"}'
refused 400 '{"model": "'"$model"'", "messages": ['"$message"'], "temperature": 9}'
refused 400 '{"model": "'"$model"'", "messages": ['"$message"'], "max_completion_tokens": 100000000}'
