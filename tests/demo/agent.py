"""An agent, as far as a policy can see one: a client of the official Python SDK that lists tools and calls them.

    agent.py URL        lists the tools, sends 35 direct messages, deletes a post, and says what came of it; exit 1 when
                        that is not what the demo promises
    agent.py URL N      the same, if a policy shows N tools rather than send_dm_to_user alone
    agent.py URL list   only prints the number of tools
    agent.py URL delete POST   only deletes a post, and prints what the model reads
"""

import asyncio
import sys

from mcp import Client

CALLS, MAX = 35, 30


async def list_tools(client: Client) -> list[str]:
    names, cursor = [], None
    while True:
        page = await client.list_tools(cursor=cursor)
        names += [tool.name for tool in page.tools]
        if not (cursor := page.next_cursor):
            return names


def text(result) -> str:
    return "".join(block.text for block in result.content)


def denial(result) -> dict:
    return (result.meta or {}).get("toolweir.dev/denial", {}) if result.is_error else {}


def expect(what: str, want, got) -> None:
    if want != got:
        sys.exit(f"agent.py: {what}: expected {want!r:.300}, got {got!r:.300}")


async def main(url: str, shown: int = 1) -> None:
    async with Client(url) as client:
        tools = await list_tools(client)
        # In a few words: a policy can allow very many.
        others = [tool for tool in tools if tool != "send_dm_to_user"]
        seen = ["send_dm_to_user"] * ("send_dm_to_user" in tools) + others[:2] + ["..."] * (len(others) > 2)
        print(f"tools it sees: {len(tools)} ({', '.join(seen)})")

        results = []
        print(f"send_dm_to_user, {CALLS} times: ", end="", flush=True)
        for n in range(CALLS):
            results.append(await client.call_tool("send_dm_to_user", {"user_id": "2001", "message": f"Offer {n + 1}"}))
            print("x" if results[-1].is_error else ".", end="", flush=True)
        denied = [r for r in results if r.is_error]
        print(f"\n  {CALLS - len(denied)} delivered, {len(denied)} denied. The model reads:")
        print(f"  {text(denied[0]) if denied else '(nothing: all went through)'}")

        deleted = await client.call_tool("delete_post", {"post_id": "104255_1"})
        print(f"delete_post, once. The model reads:\n  {text(deleted)}")

    expect("the tools that the agent sees", shown, len(tools))
    expect("whether it sees these", [True, False], [tool in tools for tool in ("send_dm_to_user", "delete_post")])
    # Not only how many: the first 30 pass, and none after them.
    expect("which calls were denied", list(range(MAX + 1, CALLS + 1)), [n for n, r in enumerate(results, 1) if r.is_error])
    expect("why they were", {"rate_limit"}, {denial(r).get("reason") for r in denied})
    expect("a time to try again in each", True, all(0 < denial(r)["retryAfterSeconds"] <= 61 for r in denied))
    # A policy denies it by name, or does not list it.
    expect("the answer to delete_post is a denial", True, denial(deleted).get("reason") in ("denied", "not_listed"))


async def count_tools(url: str) -> None:
    async with Client(url) as client:
        print(len(await list_tools(client)))


async def delete_post(url: str, post: str) -> None:
    async with Client(url) as client:
        deleted = await client.call_tool("delete_post", {"post_id": post})
    print(text(deleted))
    expect("whether the post is deleted", False, bool(deleted.is_error))


match sys.argv[1:]:
    case [url, "list"]:
        asyncio.run(count_tools(url))
    case [url, "delete", post]:
        asyncio.run(delete_post(url, post))
    case [url, *shown]:
        asyncio.run(main(url, *map(int, shown)))
