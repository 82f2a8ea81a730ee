"""The processes of the scenarios: the MCP server, sidecars, the person who decides, and agents; and what can be seen of each."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "shared")]
from processes import Broken, NotInTime, PrintedChecks, Stage, free_port, tail, wait_until  # noqa: E402, F401

NAMESPACE, POD = "agents", "treasurer"
TOLD = "toolweir.dev/denial"
OTHER_USER = 65532


class Scenario(PrintedChecks):
    """The record of a scenario: a line for each check."""

    def same(self, what, found, right):
        return self.require(found == right, what, f"{right!r}, not {found!r}")

    def each(self, what, faults):
        """`faults`: (what was found, what it is, what it should be) of all that was looked at."""
        wrong = [f"{name}: {found!r}, not {right!r}" for name, found, right in faults if found != right]
        return self.require(not wrong, what, "; ".join(wrong))


def tool(name, *, approval=None, **fields):
    """An entry; `approval` as in a policy."""
    return {"name": name, **fields} | ({} if approval is None else {"approval": approval})


def policy(tools, url=None, name="payments", **more):
    """A policy of the server `bank`, and of others: `{name: (url, tools)}`. JSON is YAML."""
    servers = {"bank": (url, tools)} | more
    listed = [{"name": server, "tools": tools} | ({"url": url} if url else {}) for server, (url, tools) in servers.items()]
    metadata = {"name": name, "namespace": NAMESPACE}
    spec = {"podSelector": {}, "servers": listed}
    return json.dumps({"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy", "metadata": metadata, "spec": spec})


def run(work):
    """Runs a scenario. Of what failed at once, the first error is raised."""
    try:
        asyncio.run(work)
    except BaseExceptionGroup as errors:
        error = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from errors


async def until(what, condition, seconds=10.0, every=0.02, late=NotInTime):
    """What the condition, which may be a coroutine function, gives once it is something. `late` as for `wait_until`."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
        if time.monotonic() > end:
            raise late(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(every)


class Server:
    """The MCP server, and every message that it got. Over stdio, each sidecar starts one of its own."""

    def __init__(self, stage, name="bank"):
        self.file, self.port = stage.dir / f"{name}.messages", free_port()
        self.stage, self.name = stage, name
        self.file.touch()
        self.start()

    def start(self):
        self.process = self.stage.start(self.name, [sys.executable, HERE / "server.py", self.file, "http", self.port])
        wait_until(f"{self.name} listens", lambda: _get(self.port, "/mcp")[0] == 405)

    def url(self, transport="http"):
        return f"http://127.0.0.1:{self.port}/{'sse' if transport == 'sse' else 'mcp'}"

    def stdio(self):
        return [sys.executable, str(HERE / "server.py"), str(self.file), "stdio"]

    def messages(self):
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def calls(self, tool=None, arguments=None):
        """The calls that were delivered: `(monotonic ns, tool, arguments)`."""
        found = []
        for line in self.messages():
            params = line["message"].get("params", {})
            if line["message"].get("method") == "tools/call":
                found.append((line["ns"], params["name"], params.get("arguments")))
        return [one for one in found if tool in (None, one[1]) and arguments in (None, one[2])]


def _get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def as_user(uid, *groups):
    """Words before a command that run it as this user."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"]


def short(name):
    """The name of a request without its namespace."""
    return name.rsplit("/", 1)[-1]


class Person:
    """Who decides, with `toolweir-sidecar approvals`."""

    def __init__(self, binary, socket, prefix=()):
        self.command = [*prefix, str(binary), "approvals", "--socket", str(socket)]

    async def run(self, *words):
        """The exit code, and what it printed on stdout and stderr."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self.command, *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        out, err = await asyncio.wait_for(process.communicate(), 30)
        return process.returncode, out.decode(), err.decode()

    async def listed(self):
        """The lines of the requests that wait, by ID. What follows the heading begins with one."""
        code, out, err = await self.run("list")
        if code:
            raise Broken(f"approvals list ended with {code}: {err}")
        return {line.split()[0]: line for line in out.splitlines()[1:] if line.strip()}

    async def sees(self, *words, seconds=10.0):
        """The ID of the one request whose line has all these words, once it is there."""

        async def there():
            found = [name for name, line in (await self.listed()).items() if all(word in line for word in words)]
            if len(found) > 1:
                raise Broken(f"{len(found)} requests have {' '.join(words)}")
            return found and found[0]

        return await until(f"a request with {' '.join(words)} is listed", there, seconds)

    async def decides(self, *words):
        code, out, err = await self.run(*words)
        if code:
            raise Broken(f"approvals {' '.join(words)} ended with {code}: {out}{err}")
        return out

    async def approve(self, name):
        return await self.decides("approve", name)

    async def deny(self, name, reason=None):
        return await self.decides("deny", name, *(["--reason", reason] if reason else []))


class Answer:
    """What an agent is told of a call."""

    def __init__(self, message, took=0.0):
        self.error, self.result, self.took = message.get("error"), message.get("result") or {}, took
        self.told = (self.result.get("_meta") or {}).get(TOLD) or {}
        self.failed = bool(self.result.get("isError"))
        self.words = "".join(block.get("text", "") for block in self.result.get("content") or [])
        self.reason = self.told.get("reason")
        self.approval = short(self.told.get("approval") or "")

    @property
    def passed(self):
        return self.error is None and not self.failed and self.words.endswith("is done")

    def __repr__(self):
        return f"<{self.error or self.reason or self.words!r} after {self.took:.2f} s>"


class Wire:
    """A connection to a sidecar, one call at a time. What is sent is known to the byte, unlike with an SDK."""

    def __init__(self, sidecar, server="bank"):
        self.port, self.path = sidecar.port, f"/{server}"
        self.reader = self.writer = None
        self.number = 0

    async def open(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        return self

    async def __aenter__(self):
        return await self.open()

    async def __aexit__(self, *_):
        self.close()

    def close(self):
        if self.writer:
            self.writer.close()
        self.writer = None

    def send(self, tool, arguments):
        """Sends a call; `arguments` is a value, or the text of one."""
        self.number += 1
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        params = f'{{"name":{json.dumps(tool)},"arguments":{text}}}'
        body = f'{{"jsonrpc":"2.0","id":{self.number},"method":"tools/call","params":{params}}}'.encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
            "Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2025-11-25\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)

    async def receive(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        if length := re.search(r"\r\ncontent-length: *(\d+)", head):
            body = await self.reader.readexactly(int(length[1]))
        else:
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        status, text = int(head.split()[1]), body.decode()
        if status != 200:
            raise Broken(f"HTTP {status}: {text[:200]}")
        if not text.startswith("{"):
            text = next(line[5:] for line in text.splitlines() if line.startswith("data:") and line[5:].strip())
        return json.loads(text)

    async def call(self, tool, arguments, seconds=70.0):
        began = time.monotonic()
        self.send(tool, arguments)
        await self.writer.drain()
        message = await asyncio.wait_for(self.receive(), seconds)
        return Answer(message, time.monotonic() - began)


async def call(sidecar, tool, arguments, server="bank", seconds=70.0):
    """One call on a connection of its own."""
    async with Wire(sidecar, server) as wire:
        return await wire.call(tool, arguments, seconds)


class Seen:
    """What can be seen of a sidecar, however it runs."""

    def __init__(self, stage, name, document, *, state=True, socket=True, same_user=True, flags=(), prefix=(), folder=None):
        self.stage, self.name, self.prefix, self.folder = stage, name, prefix, folder or stage.dir
        self.policy, self.state = self.folder / f"{name}.yaml", self.folder / f"{name}.state"
        self.audit, self.log = stage.dir / f"{name}.audit", stage.dir / f"{name}.log"
        self.socket, self.metrics_port = self.folder / f"{name}.socket", free_port()
        self.policy.write_text(document)
        self.audit.touch()
        self.log.touch()
        self.flags = ["--policy", self.policy, "--metrics-listen", f"127.0.0.1:{self.metrics_port}", *flags]
        self.flags += ["--pod-name", POD, "--pod-namespace", NAMESPACE]
        if state:
            self.state.mkdir(exist_ok=True)
            self.flags += ["--state-dir", self.state]
        if socket:
            self.flags += ["--approvals-socket", self.socket]
            self.flags += ["--approvals-allow-same-user"] * same_user
        self.person = Person(stage.sidecar_binary, self.socket)

    def metrics(self):
        return _get(self.metrics_port, "/metrics")[1]

    def metric(self, name, **labels):
        """The sum of a metric's series with these labels; nothing where there is no such series."""
        found = None
        for line in self.metrics().splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and all(f'{label}="{value}"' in (match[1] or "") for label, value in labels.items()):
                found = (found or 0) + float(match[2])
        return found

    def outcomes(self):
        """toolweir_approvals_total by outcome, without those at 0."""
        found = {}
        for outcome, value in re.findall(r'^toolweir_approvals_total\{.*?outcome="(\w+)".*\} (\S+)$', self.metrics(), re.M):
            found[outcome] = found.get(outcome, 0) + int(float(value))
        return {outcome: value for outcome, value in found.items() if value}

    def lines(self):
        """The audit lines."""
        return [json.loads(line) for line in self.audit.read_text().splitlines() if line.startswith("{")]

    def steps(self, name=None):
        """The steps of requests in the audit log: of one `(step, by)`, or of all `(step, name)`."""
        lines = [line for line in self.lines() if line.get("event") == "approval"]
        if name is None:
            return [(line["step"], short(line["approval"])) for line in lines]
        return [(line["step"], line.get("by")) for line in lines if short(line["approval"]) == short(name)]

    async def step(self, step, name):
        """Waits until the audit log, whose lines are written together, has this step of a request."""
        await until(f"the audit log has {name} {step}", lambda: (step, short(name)) in self.steps())

    def said(self, *words):
        """Whether one line of the log has all of these words."""
        return any(all(word in line for word in words) for line in self.log.read_text().splitlines())

    def panics(self):
        return re.findall(r".*panicked at.*", self.log.read_text())

    def becomes(self, document):
        """Another policy; it is in force within a second."""
        fresh = self.policy.with_suffix(".new")
        fresh.write_text(document)
        fresh.rename(self.policy)


class Sidecar(Seen):
    """`toolweir-sidecar run`."""

    def __init__(self, stage, name, document, **options):
        super().__init__(stage, name, document, **options)
        self.port, self.admin_port = free_port(), free_port()
        self.launch()
        wait_until(f"{name} is ready", self.ready)

    def launch(self):
        command = [*self.prefix, self.stage.sidecar_binary, "run", *self.flags, "--listen", f"127.0.0.1:{self.port}"]
        command += ["--admin-listen", f"127.0.0.1:{self.admin_port}"]
        with open(self.audit, "ab") as lines:
            self.process = self.stage.start(self.name, command, stdout=lines)

    def ready(self):
        if self.process.poll() is not None:
            raise Broken(f"{self.name} ended: {tail(self.log)}")
        return _get(self.metrics_port, "/readyz")[0] == 200

    def stop(self, kill=False):
        (self.process.kill if kill else self.process.terminate)()
        self.process.wait(10)

    def restart(self, kill=False):
        self.stop(kill)
        self.launch()
        wait_until(f"{self.name} is ready", self.ready)

    def admin(self, path):
        return _get(self.admin_port, path)[1]

    def url(self, server="bank"):
        return f"http://127.0.0.1:{self.port}/{server}"

    def resident(self):
        """Resident memory in KiB."""
        return int(re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text(), re.M)[1])

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))


class Agent:
    """An agent with an SDK: a program of this folder."""

    def __init__(self, name, command, log, env=None):
        self.name, self.command, self.log = name, [str(word) for word in command], log
        self.env = os.environ | (env or {})
        self.waiting, self.number = {}, 0

    async def __aenter__(self):
        pipe = asyncio.subprocess.PIPE
        with open(self.log, "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, stdin=pipe, stdout=pipe, stderr=log, limit=1 << 24, env=self.env
            )
        first = await asyncio.wait_for(self.process.stdout.readline(), 30)
        if not first:
            raise Broken(f"the agent {self.name} ended: {tail(self.log)}")
        self.reading = asyncio.create_task(self.read())
        return self

    async def read(self):
        async for line in self.process.stdout:
            message = json.loads(line)
            self.waiting.pop(message["id"]).set_result(message)
        for waiting in self.waiting.values():
            waiting.set_exception(Broken(f"the agent {self.name} ended: {tail(self.log)}"))

    async def __aexit__(self, *_):
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 5)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        self.reading.cancel()

    async def call(self, tool, arguments, seconds=70.0):
        self.number += 1
        waiting = self.waiting[self.number] = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        self.process.stdin.write(json.dumps({"id": self.number, "call": tool, "args": arguments}).encode() + b"\n")
        message = await asyncio.wait_for(waiting, seconds)
        return Answer(message, time.monotonic() - began)
