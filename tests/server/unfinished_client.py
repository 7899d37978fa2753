"""A client that does not finish its body."""

from __future__ import annotations

import json
from typing import Any

from tests.server.conftest import AsgiClient


class UnfinishedClient(AsgiClient):
    """Sends `content` and then nothing more, without ending the body."""

    def __init__(self, app: Any, content: bytes, key: str = "") -> None:
        super().__init__(app, key)
        self.body = content

    async def receive(self) -> Any:
        if self.body:
            body, self.body = self.body, b""
            return {"type": "http.request", "body": body, "more_body": True}
        await self.disconnect.wait()
        return {"type": "http.disconnect"}

    @property
    def error(self) -> tuple[int, str]:
        start, body = self.messages
        return start["status"], json.loads(body["body"])["error"]["code"]
