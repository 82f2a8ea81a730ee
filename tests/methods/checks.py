"""The rows of the table on one transport, under one policy."""

import asyncio
import contextlib
import json
from collections import Counter

import messages
from packages import meta
from policies import NAMED, WORDS
from table import (
    BASE, CARRY, CLIENT, INPUT, LEGACY, LEGACY_TASK, LEVEL, LIST, MODERN, MODERN_TASK, NOTIFICATION, OTHER, PAY, REQUEST, REVIEW, ROWS,
    SERVER, TASK, TASKS, TEMPLATE, TOLD, TOOL, UNKNOWN_TASK, UPDATED, URI,
)
from ways import NAME, STREAM, Broken, NotInTime, Plan, headers

# What the label `operation` calls `_other`.
OTHER_LABEL = "_other"
# Of extensions that the label does not know.
NOT_OF_MCP = ("skills/list", "skills/get", "resources/directory/read")
# What is not counted as an operation. A subscriptions/listen is, once for each resource.
NOT_COUNTED = {(CLIENT, "tools/call"), *((row.sender, row.method) for row in ROWS if row.decided in (BASE, LIST))}
# What lists show of these, the denying policy hides.
HIDDEN = {PAY, REVIEW, URI, TEMPLATE, UNKNOWN_TASK}
# What opens the streams of a POST.
OPENING = {
    "POST": ("tools/call", {"name": CARRY}),
    "listen": ("subscriptions/listen", {"notifications": {"toolsListChanged": True}}),
}
# After so many faults on one transport, the rest of its rows would only wait.
MOST_FAULTS = 12


# What the sidecar's answer to a server has of the request for the stream on which the server asked.
OF_THE_STREAM = ("authorization", "mcp-session-id", "mcp-protocol-version")


class Wrong(Broken):
    """What was seen is not what must be."""


def same(what, found, right):
    if found != right:
        raise Wrong(f"{what} is {found!r}, not {right!r}")


def holds(what, holding):
    if not holding:
        raise Wrong(what)


def operation(row):
    """The label of a row's method."""
    return OTHER_LABEL if row.invented or row.method in NOT_OF_MCP else row.method


def passes(row, sample, allowing):
    """Whether a sample must reach the other side."""
    if row.decided in (BASE, LIST, TOLD):
        return True
    if row.decided == TASK:
        # Both policies let the call pass that made the known one.
        return sample != UNKNOWN_TASK
    return allowing


class Rows:
    """The rows on one way. `today`: the sidecar decides calls of tools alone."""

    def __init__(self, record, way, allowing, today=False):
        self.record, self.way, self.allowing, self.today = record, way, allowing, today
        self.counted, self.faults, self.pairs, self.strays = Counter(), 0, {}, []

    async def run(self):
        await self.make_tasks()
        for row in ROWS:
            versions = [version for version in row.versions if version in self.way.versions]
            if versions:
                await self.row(row, versions)
        if not self.allowing:
            await self.of_another_era()
        await self.close_streams()
        self.nothing_else(await self.left())
        if not self.today:
            self.metrics()

    async def row(self, row, versions):
        """One row, in all versions that this way has: one check."""
        checked, wrong = 0, []
        for version in versions:
            for sample, params in row.samples(version):
                passing = passes(row, sample, self.allowing)
                if self.today and not passing:
                    continue
                for what, check in self.attempts(row, version, sample, params, passing):
                    if self.faults >= MOST_FAULTS:
                        check.close()
                        continue
                    checked += 1
                    try:
                        await check
                    except (Broken, OSError) as error:
                        wrong.append((f"{version} {sample} {what}".replace("  ", " "), error))
                        self.faults += 1
                        await self.recover()
        rule = "passes" if passes(row, UNKNOWN_TASK, self.allowing) else "does not pass"
        if row.decided == TASK:
            rule = "passes if its task is known"
        self.judge(f"{row.sender}'s {row.kind} {row.method} {rule}: {checked} times", checked, wrong)

    def judge(self, what, checked, wrong):
        """Records a check of many tries, of which these went `wrong`: `(what, error)`."""
        late = wrong and all(isinstance(error, NotInTime) for _, error in wrong)
        verdict = self.record.in_time if late else self.record.require
        verdict(checked and not wrong, what, "; ".join(f"{what}: {error}" for what, error in wrong[:3]) or "at least once")

    def attempts(self, row, version, sample, params, passing):
        """The ways to send a sample: `(what, coroutine)`."""
        if row.kind == INPUT:
            for form in self.way.forms:
                yield f"in a result, {form}", self.input(row, version, params, form, passing, False)
                yield f"in a task, {form}", self.input(row, version, params, form, passing, True)
        elif row.sender == CLIENT and row.kind == REQUEST:
            for form in self.way.forms:
                yield form, self.client_request(row, version, sample, params, form, passing)
        elif row.sender == CLIENT:
            yield "", self.client_notification(row, version, params, passing)
        else:
            check = self.server_request if row.kind == REQUEST else self.server_notification
            for number, kind in enumerate(self.way.streams(version), 1):
                yield f"on {kind}", check(row, version, params, kind, number if kind == "GET" else None, passing)

    # What the client sends.

    def request(self, version, method, params):
        """A request of the client: its id, its bytes and its headers."""
        identifier = messages.identifier(CLIENT)
        if version in MODERN:
            params = (params or {}) | {"_meta": meta()}
        return identifier, messages.message(identifier, method=method, params=params), headers(version, method, params)

    def count(self, name, passing, times=1, sender=CLIENT):
        """What is decided is counted: not the base protocol, nor lists; calls of tools have a metric of their own."""
        if (sender, name) not in NOT_COUNTED:
            self.counted[(name, "allowed" if passing else "denied")] += times

    async def arrival(self, what):
        """The next message that reached the server; the sidecar may answer a stray request, or not."""
        while True:
            found = await self.way.arrival(what)
            if not self.answers_a_stray(found.body):
                return found

    def answers_a_stray(self, body):
        message = json.loads(body)
        return "error" in message and message.get("id") in self.strays

    async def delivered(self, what, body):
        same(f"what reaches the server of {what}", (await self.arrival(what)).body, body)

    async def exchange(self, version, method, params, result, form=None, label=None):
        """A request that passes, and gives the bytes of its answer at the server and at the client."""
        identifier, body, fields = self.request(version, method, params)
        answer = messages.message(identifier, result=result)
        self.way.server.will(identifier, Plan(form or self.way.forms[0], answer))
        self.count(label or method, True, self.times(method, params))
        found = await self.way.ask(body, fields)
        await self.delivered(method, body)
        return answer, found

    @staticmethod
    def times(method, params):
        """How often a request that passes is counted."""
        if method != "subscriptions/listen":
            return 1
        return len((params or {}).get("notifications", {}).get("resourceSubscriptions", []))

    async def nothing_before(self, version):
        """What the server gets next is a request that always passes: nothing came before."""
        method = "server/discover" if version in MODERN else "ping"
        await self.exchange(version, method, {} if version in MODERN else None, {})

    async def make_tasks(self):
        """Has calls answered with the task that the rows know."""
        for version in (*TASKS, *MODERN):
            task = {"task": LEGACY_TASK} if version in LEGACY else {"resultType": "task", **MODERN_TASK}
            params = {"name": CARRY, "arguments": {}} | ({"task": {"ttl": 60000}} if version in LEGACY else {})
            if version in self.way.versions:
                await self.exchange(version, "tools/call", params, task)

    async def client_request(self, row, version, sample, params, form, passing):
        result = row.answer(version)
        if row.decided == LIST:
            result = self.with_hidden(row, result)
        if passing:
            answer, found = await self.exchange(version, row.method, params, result, form, operation(row))
            if row.decided == LIST and not self.allowing:
                same("the list at the client", json.loads(_text(found)), self.filtered(answer))
            else:
                same("the answer at the client", found, self.way.framed(form, answer))
            return
        identifier, body, fields = self.request(version, row.method, params)
        self.way.server.will(identifier, Plan(form, messages.message(identifier, result=result)))
        self.count(operation(row), False)
        found = await self.way.ask(body, fields)
        self.way.server.plans.pop(json.dumps(identifier), None)
        self.is_denial(row, _text(found), identifier, "tool result" if row.decided == TOOL and "task" not in params else 403)
        await self.nothing_before(version)

    def with_hidden(self, row, result):
        """A list as the server has it: under the denying policy also with what stays."""
        if self.allowing:
            return result
        tool, task = {"name": CARRY, "inputSchema": {"type": "object"}}, LEGACY_TASK | {"taskId": UNKNOWN_TASK}
        beside = {"tools/list": tool, "tasks/list": task}
        more = [beside[row.method]] if row.method in beside else []
        return {key: value + more if isinstance(value, list) else value for key, value in result.items()}

    def filtered(self, answer):
        message = json.loads(answer)
        for value in message["result"].values():
            if isinstance(value, list):
                value[:] = [item for item in value if not HIDDEN & {text for text in item.values() if isinstance(text, str)}]
        return message

    def is_denial(self, row, body, identifier, right=403):
        """The sender can act on it: its id, an error of the `right` code or a tool result that is one, and the policy's words."""
        code, words, denial = messages.error_of(body)
        same("the id of the answer", json.loads(body).get("id"), identifier)
        same(f"the kind of the answer {body!r}", code, right)
        holds(f"the answer does not say why: {body!r}", words and denial.get("reason"))
        if row.decided in NAMED:
            holds(f"the words of the policy are not in {words!r}", WORDS in words)
            same("the policy in the answer", denial.get("policy"), "tests/denies")

    async def client_notification(self, row, version, params, passing):
        if version in MODERN:
            params = (params or {}) | {"_meta": meta()}
        body = messages.message(method=row.method, params=params)
        self.count(operation(row), passing)
        await self.way.tell(body, headers(version, row.method, params))
        if passing:
            await self.delivered(row.method, body)
        else:
            await self.nothing_before(version)

    # What the server sends.

    async def stream(self, version, kind):
        """A stream of this kind, which stays open for all rows, and the request that opened it."""
        if (version, kind) not in self.pairs:
            if kind in ("POST", "listen"):
                method, params = OPENING[kind]
                identifier, body, fields = self.request(version, method, params)
                self.way.server.will(identifier, Plan(STREAM))
                pair = await self.way.open(kind, version, body, fields)
                await self.delivered(method, body)
                self.count(method, True, self.times(method, params))
                last = messages.message(identifier, result={"content": [], "resultType": "complete"})
            else:
                pair, last = await self.way.open(kind, version, None, headers(version)), None
            self.pairs[version, kind] = (pair, last)
        return self.pairs[version, kind][0]

    async def close_streams(self):
        for pair, last in self.pairs.values():
            with contextlib.suppress(Broken, OSError):
                await pair.close(last and pair.framed(last))
        self.pairs.clear()

    async def server_request(self, row, version, params, kind, number, passing):
        pair = await self.stream(version, kind)
        identifier = messages.identifier(SERVER)
        said = pair.framed(messages.message(identifier, method=row.method, params=params), number)
        self.count(operation(row), passing, sender=SERVER)
        await pair.say(said)
        if passing:
            same("what reaches the client", await pair.next(row.method), said)
            answer = messages.message(identifier, result=row.answer(version))
            await self.way.tell(answer, headers(version))
            await self.delivered("the client's answer", answer)
            return
        try:
            arrival = await self.arrival(f"an answer to its denied {row.method}")
        except NotInTime:
            # Whether the client was asked matters more than time.
            await self.only_the_number(pair, number)
            raise
        self.is_denial(row, arrival.body, identifier)
        if pair.opening:
            same("where the answer goes", (arrival.method, arrival.path), ("POST", pair.answers))
            for name in OF_THE_STREAM:
                same(f"{name} of the answer", arrival.header(name), pair.opening.header(name))
            same("content-type of the answer", arrival.header("content-type"), ["application/json"])
        await self.only_the_number(pair, number)

    async def server_notification(self, row, version, params, kind, number, passing):
        pair = await self.stream(version, kind)
        said = pair.framed(messages.message(method=row.method, params=params), number)
        if row.decided == OTHER or (row.decided == UPDATED and not passing):
            self.count(operation(row), passing)
        await pair.say(said)
        if passing:
            same("what reaches the client", await pair.next(row.method), said)
        else:
            await self.only_the_number(pair, number)

    async def of_another_era(self):
        """A server of 2026-07-28 asks nothing on a stream. One that does so all the same gets no further than one of before."""
        checked, wrong = 0, []
        for row in (row for row in ROWS if row.sender == SERVER and row.kind == REQUEST and row.decided != BASE):
            for version in (version for version in MODERN if version in self.way.versions and row.versions[-1] in LEGACY):
                for kind in self.way.streams(version):
                    _, params = next(row.samples(row.versions[-1]))
                    self.strays.append(messages.identifier(SERVER))
                    self.count(operation(row), False, sender=SERVER)
                    checked += 1
                    try:
                        pair = await self.stream(version, kind)
                        await pair.say(pair.framed(messages.message(self.strays[-1], method=row.method, params=params)))
                        await self.only_the_number(pair, None)
                    except (Broken, OSError) as error:
                        wrong.append((f"{row.method} on {kind}", error))
                        await self.recover()
        if checked:
            self.judge(f"a server of 2026-07-28 that asks as before does not pass: {checked} times", checked, wrong)

    async def only_the_number(self, pair, number):
        """Of a dropped event, the client gets what it needs to resume the stream, and then what comes after."""
        after = pair.framed(messages.message(method="notifications/message", params=LEVEL))
        await pair.say(after)
        found = await pair.next("what comes after a dropped message")
        if number is not None:
            same("the lines of the dropped event", sorted(found.decode().split()), sorted(f"id: {number} retry: 1500".split()))
            found = await pair.next("what comes after a dropped message")
        same("what comes after a dropped message", found, after)

    async def input(self, row, version, params, form, passing, task):
        """A request in a result; a task that needs input carries it in the same way."""
        wanted = {"a": {"method": row.method} | ({} if params is None else {"params": params})}
        result = {"resultType": "input_required", "inputRequests": wanted, "requestState": "state"}
        method, asked = "tools/call", {"name": CARRY, "arguments": {}}
        if task:
            method, asked = "tasks/get", {"taskId": MODERN_TASK["taskId"]}
            result = {"resultType": "complete", **MODERN_TASK, "status": "input_required", "inputRequests": wanted}
        answer, found = await self.exchange(version, method, asked, result, form)
        self.count(operation(row), passing)
        if passing:
            same("the answer at the client", found, self.way.framed(form, answer))
            return
        left = json.loads(_text(found)).get("result", {}).get("inputRequests")
        holds(f"the client is asked: {found!r}", row.method not in json.dumps(left))
        if not task:
            self.is_denial(row, _text(found), json.loads(answer)["id"], "tool result")

    # What must not be there.

    async def recover(self):
        """After a fault: streams anew, and what is under way is not mistaken for what comes later."""
        await self.close_streams()
        await self.left(client=True)
        self.way.server.plans.clear()

    async def left(self, client=False):
        """What reached the server, and nobody waited for."""
        await asyncio.sleep(0.3)
        found = []
        while not self.way.server.arrived.empty():
            body = self.way.server.arrived.get_nowait().body
            found += [] if self.answers_a_stray(body) else [body]
        if client:
            await self.way.forget()
        return found

    def nothing_else(self, found):
        self.record.require(not found, "nothing else reached the server", f"nothing; it got {found[:3]!r}")

    def metrics(self):
        """`toolweir_operations_total` counts what was sent, and nothing else."""
        found = Counter()
        for labels, value in self.way.metrics().get("toolweir_operations_total", []):
            if labels["server"] == NAME and value:
                found[labels["operation"], labels["decision"]] += int(value)
        told = {row.method for row in ROWS if row.kind == NOTIFICATION and row.decided == TOLD}
        found = Counter({key: value for key, value in found.items() if key[0] not in told or key in self.counted})
        wrong = {key: (found[key], self.counted[key]) for key in found | self.counted if found[key] != self.counted[key]}
        self.record.require(
            not wrong, f"toolweir_operations_total has {sum(self.counted.values())} operations",
            "; ".join(f"{' '.join(key)} {right}, not {value}" for key, (value, right) in wrong.items()),
        )


def _text(found):
    """The message in an answer as the client got it: the body, a line, or the data of one event."""
    if found.lstrip().startswith(b"{"):
        return found
    return b"\n".join(line[5:].removeprefix(b" ") for line in found.split(b"\n") if line.startswith(b"data:"))

