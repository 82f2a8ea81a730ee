"""The ways from a client of the official SDK through the sidecar to the server, and what can be seen of the sidecar on each."""

import contextlib
import http.client
import json
import re
import subprocess
import sys
from pathlib import Path

from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.stdio import stdio_client

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "shared"))
from definitions import BASE, OTHER, text  # noqa: E402
from processes import Broken, free_port, tail, wait_until  # noqa: E402

NAMESPACE = "tests"


class Server:
    """The server of the stage, and what it was asked. Over stdio, each client starts one of its own."""

    def __init__(self, stage):
        self.dir, self.port = stage.dir, free_port()
        self.serve()
        (self.dir / "records").touch()
        stage.start("server", [sys.executable, HERE / "server.py", self.dir, "http", self.port])
        wait_until("the server listens", lambda: _get(self.port, "/json")[0] == 405)

    def serve(self, *pages):
        """These definitions from the next list on, each a page of its own; by default those that are pinned."""
        fresh = self.dir / "pages.new"
        fresh.write_text("".join(f"[{page}]\n" for page in pages or (text(OTHER), text(BASE))))
        fresh.rename(self.dir / "pages")

    def serve_tool(self, definition):
        """This definition of the tool, on the second page."""
        self.serve(text(OTHER), definition)

    def refuse_lists(self):
        (self.dir / "pages").write_text("")

    def records(self):
        """What was asked, in order: `(method, tool)`."""
        lines = map(json.loads, (self.dir / "records").read_text().splitlines())
        return [(line["method"], line["tool"]) for line in lines if line["method"].startswith("tools/")]

    def url(self, way):
        return f"http://127.0.0.1:{self.port}/{way}"

    def command(self):
        return [sys.executable, str(HERE / "server.py"), str(self.dir), "stdio"]


def _get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def pinned(toolweir, stage, source, server, name="mail", code=0):
    """The manifest that `toolweir pin` writes."""
    return toolweir_says(toolweir, stage, "pin", "--server", server, "--name", name, "-n", NAMESPACE, *source, code=code)


def toolweir_says(toolweir, stage, *words, code=0):
    """What `toolweir WORDS` prints."""
    words = [str(word) for word in (toolweir, *words)]
    with open(stage.dir / "toolweir.log", "ab") as log:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, timeout=60)
    if done.returncode != code:
        raise Broken(f"toolweir {' '.join(words[1:])} ended with {done.returncode}, not {code}: {tail(stage.dir / 'toolweir.log')}")
    return done.stdout.decode()


def policy(servers, name="mail", kind="MCPPolicy"):
    """A policy with these servers, each a dict of its fields."""
    metadata = {"name": name} if kind == "MCPClusterPolicy" else {"name": name, "namespace": NAMESPACE}
    return text({"apiVersion": "toolweir.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": {"servers": servers}})


def held(server, url=None, **pins):
    """A server of which everything is allowed that pins do not forbid."""
    named = {"name": server, "defaultAction": "Allow", "pins": {"name": "mail"} | pins}
    return named | ({"url": url} if url else {})


class Sidecar:
    """What can be seen of a sidecar, however it runs."""

    def __init__(self, stage, name, documents):
        self.stage, self.name = stage, name
        self.policies, self.state = stage.dir / f"{name}.policies", stage.dir / f"{name}.state"
        self.audit, self.log = stage.dir / f"{name}.audit", stage.dir / f"{name}.log"
        self.metrics_port = free_port()
        self.policies.mkdir()
        self.state.mkdir()
        for number, document in enumerate(documents):
            (self.policies / f"{number}.yaml").write_text(document)
        self.audit.touch()
        self.log.touch()

    def flags(self):
        return ["--policy", self.policies, "--state-dir", self.state, "--metrics-listen", f"127.0.0.1:{self.metrics_port}"]

    def metric(self, name, **labels):
        """The series of a metric with these labels: their values, by all labels as they are written."""
        found = {}
        for line in _get(self.metrics_port, "/metrics")[1].splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and all(f'{label}="{value}"' in (match[1] or "") for label, value in labels.items()):
                found[match[1]] = float(match[2])
        return found

    def drift(self, server):
        """toolweir_tool_drift_total by part, without those at 0."""
        series = self.metric("toolweir_tool_drift_total", server=server)
        return {re.search(r'part="([^"]*)"', labels)[1]: int(value) for labels, value in series.items() if value}

    def drifted(self, server):
        """toolweir_tools_drifted; nothing where there is no such series."""
        return next(iter(self.metric("toolweir_tools_drifted", server=server).values()), None)

    def lines(self):
        """The audit lines."""
        return [json.loads(line) for line in self.audit.read_text().splitlines() if line.startswith("{")]

    def said(self, *words):
        """Whether one line of the log has all of these words."""
        return any(all(word in line for word in words) for line in self.log.read_text().splitlines())

    def kept(self):
        """What is kept of the tools that were seen."""
        file = self.state / "tools.json"
        return file.read_bytes() if file.exists() else b""

    def panics(self):
        return re.findall(r".*panicked at.*", self.log.read_text())


class Run(Sidecar):
    """`toolweir-sidecar run`."""

    def __init__(self, stage, name, documents):
        super().__init__(stage, name, documents)
        self.port = free_port()
        self.start()

    def start(self):
        command = [self.stage.sidecar_binary, "run", *self.flags(), "--listen", f"127.0.0.1:{self.port}"]
        command += ["--admin-listen", f"127.0.0.1:{free_port()}"]
        with open(self.audit, "ab") as lines:
            self.process = self.stage.start(self.name, command, stdout=lines)

        def ready():
            if self.process.poll() is not None:
                raise Broken(f"{self.name} ended: {tail(self.log)}")
            return _get(self.metrics_port, "/readyz")[0] == 200

        wait_until(f"{self.name} is ready", ready)

    def stop(self, kill=False):
        (self.process.kill if kill else self.process.terminate)()
        self.process.wait(10)

    @contextlib.asynccontextmanager
    async def client(self, server):
        url = f"http://127.0.0.1:{self.port}/{server}"
        async with Client(sse_client(url) if server.startswith("sse") else url, mode="legacy") as client:
            yield client


class Stdio(Sidecar):
    """`toolweir-sidecar stdio`, which lives as long as its client."""

    def __init__(self, stage, name, documents, command):
        super().__init__(stage, name, documents)
        self.command = command

    def start(self):
        pass

    def stop(self, kill=False):
        pass

    @contextlib.asynccontextmanager
    async def client(self, server):
        flags = ["stdio", *self.flags(), "--audit-log", self.audit, "--server", server, "--", *self.command]
        parameters = StdioServerParameters(command=str(self.stage.sidecar_binary), args=[str(flag) for flag in flags])
        with open(self.log, "a") as log:
            async with Client(stdio_client(parameters, errlog=log), mode="legacy") as client:
                yield client


async def listed(client):
    """The names of all tools, page by page; never those that the client has kept."""
    names, cursor = [], None
    while True:
        page = await client.list_tools(cursor=cursor, cache_mode="refresh")
        names += [tool.name for tool in page.tools]
        if not (cursor := page.next_cursor):
            return names


async def called(client, tool, arguments):
    """What an agent is told: `(whether it failed, text, the sidecar's own words of a denial)`."""
    result = await client.call_tool(tool, arguments)
    words = "".join(getattr(block, "text", "") for block in result.content)
    return bool(result.is_error), words, (result.meta or {}).get("toolweir.dev/denial", {})
