#!/usr/bin/env bash
# Stream an answer with curl. The request body selects the strategy.
set -euo pipefail
url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
curl --silent --show-error --fail-with-body --no-buffer "$url/chat/completions" -H 'Content-Type: application/json' -d @- <<JSON
{
  "model": "onlyseen-tiny",
  "messages": [{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,$(base64 -w0 embedded/samples/kitchen.png)"}},
    {"type": "text", "text": "Is there a cup in the image?"}
  ]}],
  "temperature": 0,
  "stream": true,
  "decoding": {"strategy": "vcd", "vcd": {"alpha": 0.5}}
}
JSON
