"""A thousand approvals, each with four racing repetitions of its call, at a sidecar that is killed again and again."""

import asyncio
import collections
import os
import random
import re
import time

from world import Server, Sidecar, Wire, policy, run, tool, until

APPROVED, DENIED, UNDECIDED = 1000, 50, 8
RACERS = 4
# So many are under way at a time, those included that nobody decides.
AT_ONCE = 20
HELD, LATE = "pay_invoice", "wire_money"
# So many items begin between two kills.
BETWEEN_KILLS = (20, 48)
# The exit code of `approvals` where there is no such request, or it is decided or has ended.
NO_LONGER = 3
GONE = (ConnectionError, asyncio.IncompleteReadError)


def document(server):
    approval = {"show": ["args.item"], "expiry": "2m", "pending": 50}
    return policy([tool(HELD, approval=approval | {"hold": "20s"}), tool(LATE, approval=approval | {"hold": "0s"})], server.url())


class Item:
    """One call, what is to become of it, and what became of it."""

    def __init__(self, n, plan, dice):
        self.n, self.plan, self.tool = n, plan, dice.choice((HELD, LATE))
        self.seconds = dice.choice((0, 0, 0.002, 0.01))
        # The name of the request that was approved, when that was tried first, and whether the answer to that came.
        self.approval, self.tried, self.confirmed = None, None, False
        self.under_way, self.passed, self.told = 0, 0, collections.Counter()
        self.decided = asyncio.Event()

    def arguments(self):
        return {"n": self.n, "item": f"item-{self.n}.", "seconds": self.seconds}


class Killer:
    """Kills the sidecar at random points and starts it again."""

    def __init__(self, sidecar, items, dice):
        self.sidecar, self.items, self.dice = sidecar, items, dice
        self.up, self.race = asyncio.Event(), asyncio.Event()
        self.up.set()
        self.kills, self.with_calls = 0, set()
        # Kills go by the items that have begun, not by the clock, so that a fast machine sees as many as a slow one.
        self.begun, self.more = 0, asyncio.Event()

    def count(self):
        self.begun += 1
        self.more.set()

    async def work(self):
        due = 0
        while True:
            due += self.dice.randint(*BETWEEN_KILLS)
            while self.begun < due:
                self.more.clear()
                await self.more.wait()
            await asyncio.sleep(self.dice.uniform(0, 0.2))
            # Half of the time, just when a race begins.
            if self.dice.random() < 0.5:
                self.race.clear()
                await self.race.wait()
                await asyncio.sleep(self.dice.uniform(0, 0.02))
            await self.kill()

    async def kill(self):
        self.up.clear()
        self.sidecar.process.kill()
        # What was under way when it died may be lost: used up, and not delivered.
        self.with_calls |= {item.n for item in self.items.values() if item.under_way and item.tried}
        self.kills += 1
        await until("the sidecar is gone", lambda: self.sidecar.process.poll() is not None, every=0.001)
        self.sidecar.launch()
        await until("the sidecar is ready", self.sidecar.ready, every=0.005)
        self.up.set()


class Race:
    def __init__(self, sidecar, dice):
        self.sidecar, self.dice = sidecar, dice
        plans = [True] * APPROVED + [False] * DENIED + [None] * UNDECIDED
        dice.shuffle(plans)
        self.items = {n: Item(n, plan, dice) for n, plan in enumerate(plans)}
        self.killer = Killer(sidecar, self.items, dice)
        self.deciding = asyncio.Semaphore(3)
        self.listed, self.listed_at, self.vanished = {}, 0, set()
        self.taken, self.tasks = set(), set()
        self.refused, self.wrong = collections.Counter(), []

    async def call(self, item):
        """A repetition of the item's call: made again where the sidecar died under it. Returns the answer."""
        while True:
            await self.killer.up.wait()
            item.under_way += 1
            try:
                async with Wire(self.sidecar) as wire:
                    return await wire.call(item.tool, item.arguments())
            except GONE:
                item.told["hung up"] += 1
                await asyncio.sleep(0.005)
            finally:
                item.under_way -= 1

    async def repetition(self, item):
        answer = await self.call(item)
        while answer.reason == "approval_full":
            await asyncio.sleep(0.05)
            answer = await self.call(item)
        item.passed += answer.passed
        item.told["passed" if answer.passed else answer.reason or str(answer.error)] += 1

    async def item(self, item):
        """Asks, and repeats the call once it is decided; a call that is held races from the beginning."""
        if item.tool == LATE:
            await self.repetition(item)
            if item.plan is not None:
                await item.decided.wait()
        self.killer.race.set()
        await asyncio.gather(*(self.repetition(item) for _ in range(RACERS)))

    async def person(self):
        """Decides what is listed, as planned: each item's call is approved once, and what is asked anew is denied."""
        while True:
            await self.killer.up.wait()
            kills = self.killer.kills
            code, out, _ = await self.sidecar.person.run("list")
            if code == 0 and self.killer.kills == kills:
                self.look({name: int(n) for name, n in re.findall(r"^(\S+).*item-(\d+)\.", out, re.M)}, kills)
            await asyncio.sleep(0.02)

    def look(self, listed, kills):
        if self.listed_at != kills:
            # What waited before the crash, and was not decided, must wait after it.
            self.vanished |= {name for name in self.listed if name not in listed and name not in self.taken}
        self.listed, self.listed_at = listed, kills
        for name, n in listed.items():
            if name not in self.taken and self.items[n].plan is not None:
                self.taken.add(name)
                self.tasks.add(asyncio.create_task(self.decide(self.items[n], name)))

    async def decide(self, item, name):
        """Decides, and asks again what became of that where the sidecar died."""
        approves = item.plan and item.approval is None
        if approves:
            item.approval, item.tried = name, time.monotonic_ns()
        while True:
            await self.killer.up.wait()
            async with self.deciding:
                code, out, err = await self.sidecar.person.run("approve" if approves else "deny", name)
            words = (out + err).strip()
            if code in (0, NO_LONGER):
                break
            self.refused[words.rsplit(":", 1)[-1].strip()[:80]] += 1
        if code == NO_LONGER and f"is {'approved' if approves else 'denied'} already" not in words:
            self.wrong.append(words)
        item.confirmed |= bool(approves)
        item.decided.set()

    async def run(self):
        work = [asyncio.create_task(self.killer.work()), asyncio.create_task(self.person())]
        waiting, left = set(), list(self.items.values())
        # Those that nobody decides come first, so that crashes meet them all the time.
        left.sort(key=lambda item: item.plan is not None)
        while left or waiting:
            while left and len(waiting) < AT_ONCE:
                waiting.add(asyncio.create_task(self.item(left.pop(0))))
                self.killer.count()
            done, waiting = await asyncio.wait([*waiting, *work], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            waiting -= set(work)
        await asyncio.gather(*self.tasks)
        for task in work:
            task.cancel()


async def races(scenario, stage):
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"once: SEED={seed}", flush=True)
    server = Server(stage)
    sidecar = Sidecar(stage, "sidecar", document(server))
    race = Race(sidecar, random.Random(seed))
    await race.run()
    judge(scenario, race, server, sidecar)


def judge(scenario, race, server, sidecar):
    items, killer = race.items, race.killer
    calls = server.calls()
    times = collections.Counter(arguments["n"] for _, _, arguments in calls)
    twice = [n for n, count in times.items() if count > 1]
    never_approved = [n for n in times if not items[n].tried]
    early = [arguments["n"] for ns, _, arguments in calls if (items[arguments["n"]].tried or 0) > ns]
    approved = [item for item in items.values() if item.confirmed]
    lost = {item.n for item in approved if not times[item.n]}
    wrongly = [item.n for item in items.values() if item.passed != bool(times[item.n] and item.passed)]
    told = sum((item.told for item in items.values()), collections.Counter())
    figures = f"{len(approved)} approved, {killer.kills} kills, {len(calls)} delivered, {len(lost)} lost; told: {dict(told.most_common())}"
    print(f"once: {figures}; decisions that failed: {dict(race.refused.most_common(6))}", flush=True)
    scenario.require(not twice, f"no call of {len(calls)} was delivered twice", twice[:10])
    scenario.require(not never_approved, f"none of {DENIED + UNDECIDED} that were not approved was delivered", never_approved[:10])
    scenario.require(not early, "none was delivered before it was approved", early[:10])
    scenario.require(lost <= killer.with_calls, f"{len(lost)} lost, all under way at a kill ({len(killer.with_calls)} were)", lost - killer.with_calls)
    scenario.require(not wrongly, "an agent was told of a result only where there was one, and once", wrongly[:10])
    scenario.same(f"{len(approved)} approvals count", len(approved), APPROVED)
    scenario.require(len(calls) >= 0.8 * APPROVED, f"{len(calls)} of {APPROVED} were delivered", "at least 80 %")
    scenario.require(killer.kills >= 20, f"{killer.kills} kills", "at least 20")
    scenario.require(not race.vanished, "what waited before a kill was listed after it", sorted(race.vanished)[:10])
    scenario.require(not race.wrong, "each decision counted, once", race.wrong[:5])
    scenario.require(not sidecar.panics(), "no panic", sidecar.panics()[:3])


def once(scenario, stage, args):
    """1 000 approvals, each with 4 racing repetitions, and a sidecar that is killed at random: none twice, none unapproved. SEED repeats it."""
    run(races(scenario, stage))
