"""Agents: the official SDK's client, and requests that no SDK would send."""

import asyncio
import http.client
import json
import time
from dataclasses import dataclass

import httpx2
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from world import JUNK, TOOL

JUNK_HEADERS = {"Authorization": f"Bearer {JUNK}"}
ACCEPT = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}


async def calls(url, count, mode="auto", sse=False, headers=None, before=lambda number: None):
    """So many calls with the SDK's client, which shows a token of its own: what the tools are called, `allowed` or the reason of each
    denial, and all texts that the client got. `before` is told the number of each call."""
    headers = JUNK_HEADERS if headers is None else headers
    async with asyncio.timeout(60), httpx2.AsyncClient(headers=headers, timeout=30) as http:
        transport = sse_client(url, headers=headers) if sse else streamable_http_client(url, http_client=http)
        async with Client(transport, mode="legacy" if sse else mode) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            outcomes, texts = [], []
            for number in range(count):
                before(number)
                result = await client.call_tool(TOOL, {"account": str(number)})
                text = "".join(block.text for block in result.content)
                denial = (result.meta or {}).get("toolweir.dev/denial", {}) if result.is_error else {}
                outcomes.append(denial.get("reason", text) if result.is_error else "allowed")
                texts.append(result.model_dump_json())
            return tools, outcomes, texts


@dataclass
class Answer:
    status: int
    headers: list
    body: str
    took: float

    @property
    def result(self):
        text = self.body
        if not text.startswith("{"):
            lines = [line[5:] for line in text.splitlines() if line.startswith("data:") and line[5:].strip()]
            text = lines[0] if lines else "{}"
        return json.loads(text).get("result", {})

    @property
    def text(self):
        return "".join(block.get("text", "") for block in self.result.get("content", []))

    @property
    def reason(self):
        return self.result.get("_meta", {}).get("toolweir.dev/denial", {}).get("reason", "")

    @property
    def allowed(self):
        """Whether the server carried the call out."""
        return self.status == 200 and bool(self.result) and not self.result.get("isError")

    @property
    def denied(self):
        """Whether it is a denial in words: a tool's result that is an error, with a reason."""
        return self.status == 200 and self.result.get("isError") is True and bool(self.text) and bool(self.reason)

    def __str__(self):
        return f"HTTP {self.status}, {self.reason or ('allowed' if self.allowed else '-')}: {self.text or self.body[:300]}"

    def all(self):
        return f"{self.status} {self.headers} {self.body}"


def body(account="-"):
    params = {"name": TOOL, "arguments": {"account": account}}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})


def call(url, headers=None, timeout=30, context=None):
    """One call of the tool, without a session."""
    return request("POST", url, body(), ACCEPT | (headers or {}), timeout, context)


def request(method, url, text=None, headers=None, timeout=30, context=None):
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(host, timeout=timeout, **({"context": context} if context else {}))
    try:
        began = time.monotonic()
        connection.request(method, f"/{path}", text, headers or {})
        answer = connection.getresponse()
        received = answer.read().decode()
        return Answer(answer.status, answer.getheaders(), received, time.monotonic() - began)
    finally:
        connection.close()
