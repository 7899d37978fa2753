#!/usr/bin/env bash
# Install the client packages into environments of their own, start a server, and run the cases of docs/clients.md.
#
#     bash bench/clients/run.sh [FOLDER]
#
# FOLDER holds the environments; the default is a temporary folder. PYTHON and PORT override .venv/bin/python and 8077.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "${1:-$(mktemp -d)}")
python=${PYTHON:-.venv/bin/python}
port=${PORT:-8077}
url=http://127.0.0.1:$port/v1
sets=(
    "openai litellm"
    "instructor pydantic-ai-slim[openai]"
    "langchain-openai langchain-tests llama-index-llms-openai-like autogen-ext[openai] autogen-agentchat"
    "dspy inspect-ai openai"
    "guidellm"
)

"$python" -m server --port "$port" --device cpu >"$folder.log" 2>&1 &
server=$!
trap 'kill "$server"' EXIT
until curl -sf "http://127.0.0.1:$port/ready" >/dev/null; do
    kill -0 "$server"
    sleep 1
done

failed=0
echo "| package | case | result |"
echo "|---|---|---|"
for number in "${!sets[@]}"; do
    environment=$folder/$number
    [ -d "$environment" ] || python3 -m venv "$environment"
    read -ra packages <<<"${sets[$number]}"
    "$environment/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
    "$environment/bin/python" bench/clients/run.py --base-url "$url" 2>/dev/null || failed=1
done
OPENAI_BASE_URL=$url "$folder/2/bin/python" -m pytest -q -c /dev/null --rootdir bench/clients -o asyncio_mode=auto \
    -p no:cacheprovider bench/clients/langchain_standard.py || failed=1
if command -v npm >/dev/null; then
    mkdir -p "$folder/node"
    node_script=$PWD/bench/clients/run.mjs
    (cd "$folder/node" && npm install --silent openai ai @ai-sdk/openai-compatible zod && node "$node_script" "$url") ||
        failed=1
fi
exit "$failed"
