"""The tools of the Just Facebook MCP server (github.com/HagaiHen/facebook-mcp-server) on a page that lives in memory.

Names and parameters are those of the public server, so a policy written for that one fits this one, and nobody needs a
Facebook account to try it. It is written with the official Python SDK and served over Streamable HTTP.

    just_facebook.py PORT LOG

Every tools/call that arrives becomes one JSON line in LOG, before the SDK looks at it: what was delivered, as the server
saw it, and not as anything in front of it says.
"""

import json
import sys
import time
from collections import Counter
from itertools import count
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

PAGE = "104255"
INSIGHTS = (
    ["post_impressions", "post_impressions_unique", "post_impressions_paid", "post_impressions_organic"]
    + ["post_engaged_users", "post_clicks"]
    + [f"post_reactions_{kind}_total" for kind in ("like", "love", "wow", "haha", "sorry", "anger")]
)
NEGATIVE = ("bad", "terrible", "awful", "hate", "dislike", "problem", "issue")

port, log = int(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
ids = count(1)
posts: dict[str, dict[str, Any]] = {}
comments: dict[str, dict[str, Any]] = {}
messages: list[dict[str, str]] = []


async def log_delivered(ctx, call_next):
    if ctx.method == "tools/call":
        params = ctx.params or {}
        line = {"time": time.time(), "tool": params.get("name"), "arguments": params.get("arguments")}
        print(json.dumps(line), file=log)
    return await call_next(ctx)


mcp = MCPServer("just-facebook", middleware=[log_delivered], log_level="WARNING")


def find(things: dict[str, dict[str, Any]], id: str) -> dict[str, Any]:
    if id not in things:
        raise ToolError(f"(#100) Object with ID '{id}' does not exist")
    return things[id]


def add_post(message: str, **more: Any) -> dict[str, Any]:
    post = {"id": f"{PAGE}_{next(ids)}", "message": message, "created_time": int(time.time()), **more}
    return posts.setdefault(post["id"], post)


def add_comment(parent: str, user: str, message: str) -> dict[str, Any]:
    comment = {"id": f"{parent}_{next(ids)}", "parent": parent, "from": {"id": user}, "message": message, "is_hidden": False}
    return comments.setdefault(comment["id"], comment)


def children(parent: str) -> list[dict[str, Any]]:
    return [c for c in comments.values() if c["parent"] == parent]


def remove_comment(comment_id: str) -> dict[str, Any]:
    find(comments, comment_id)
    for reply in children(comment_id):
        remove_comment(reply["id"])
    del comments[comment_id]
    return {"success": True}


def set_hidden(comment_id: str, hidden: bool) -> dict[str, Any]:
    find(comments, comment_id)["is_hidden"] = hidden
    return {"success": True}


def insight(post_id: str, metric: str) -> dict[str, Any]:
    post = find(posts, post_id)
    return {"name": metric, "period": "lifetime", "values": [{"value": post.get("insights", {}).get(metric, 0)}]}


# Posts


@mcp.tool()
def post_to_facebook(message: str) -> dict[str, Any]:
    """Publish a text post on the page."""
    return {"id": add_post(message)["id"]}


@mcp.tool()
def post_image_to_facebook(image_url: str, caption: str) -> dict[str, Any]:
    """Publish an image with a caption on the page."""
    return {"id": add_post(caption, image_url=image_url)["id"]}


@mcp.tool()
def schedule_post(message: str, publish_time: int) -> dict[str, Any]:
    """Publish a text post later, at a Unix time."""
    if publish_time <= time.time():
        raise ToolError("(#100) The publish time must be in the future")
    return {"id": add_post(message, scheduled_publish_time=publish_time)["id"]}


@mcp.tool()
def update_post(post_id: str, new_message: str) -> dict[str, Any]:
    """Change the text of a post."""
    find(posts, post_id)["message"] = new_message
    return {"success": True}


@mcp.tool()
def delete_post(post_id: str) -> dict[str, Any]:
    """Delete a post and everything below it."""
    find(posts, post_id)
    for comment in children(post_id):
        remove_comment(comment["id"])
    del posts[post_id]
    return {"success": True}


@mcp.tool()
def get_page_posts() -> dict[str, Any]:
    """List the posts of the page, the newest first."""
    return {"data": [p for p in reversed(posts.values()) if p.get("scheduled_publish_time", 0) <= time.time()]}


@mcp.tool()
def get_scheduled_posts() -> dict[str, Any]:
    """List the posts that are not published yet."""
    return {"data": [p for p in posts.values() if p.get("scheduled_publish_time", 0) > time.time()]}


@mcp.tool()
def get_post_permalink(post_id: str) -> str:
    """Give the address of a post."""
    return f"https://www.facebook.com/{find(posts, post_id)['id']}"


# Comments


@mcp.tool()
def get_post_comments(post_id: str) -> dict[str, Any]:
    """List the comments on a post."""
    return {"data": children(find(posts, post_id)["id"])}


@mcp.tool()
def get_comment_replies(comment_id: str) -> dict[str, Any]:
    """List the replies to a comment."""
    return {"data": children(find(comments, comment_id)["id"])}


@mcp.tool()
def reply_to_comment(post_id: str, comment_id: str, message: str) -> dict[str, Any]:
    """Answer a comment as the page."""
    find(posts, post_id)
    return {"id": add_comment(find(comments, comment_id)["id"], PAGE, message)["id"]}


@mcp.tool()
def delete_comment(comment_id: str) -> dict[str, Any]:
    """Delete a comment and its replies."""
    return remove_comment(comment_id)


@mcp.tool()
def delete_comment_from_post(post_id: str, comment_id: str) -> dict[str, Any]:
    """Delete a comment of a post and its replies."""
    find(posts, post_id)
    return remove_comment(comment_id)


@mcp.tool()
def hide_comment(comment_id: str) -> dict[str, Any]:
    """Hide a comment from the public."""
    return set_hidden(comment_id, True)


@mcp.tool()
def unhide_comment(comment_id: str) -> dict[str, Any]:
    """Show a hidden comment again."""
    return set_hidden(comment_id, False)


@mcp.tool()
def bulk_delete_comments(comment_ids: list[str]) -> list[dict[str, Any]]:
    """Delete several comments."""
    return [{"comment_id": id, "result": remove_comment(id)} for id in comment_ids]


@mcp.tool()
def bulk_hide_comments(comment_ids: list[str]) -> list[dict[str, Any]]:
    """Hide several comments."""
    return [{"comment_id": id, "result": set_hidden(id, True)} for id in comment_ids]


@mcp.tool()
def bulk_unhide_comments(comment_ids: list[str]) -> list[dict[str, Any]]:
    """Show several hidden comments again."""
    return [{"comment_id": id, "result": set_hidden(id, False)} for id in comment_ids]


@mcp.tool()
def filter_negative_comments(comments: dict[str, Any]) -> list[dict[str, Any]]:
    """Pick the unfriendly ones out of what get_post_comments gave."""
    return [c for c in comments.get("data", []) if any(word in c.get("message", "").lower() for word in NEGATIVE)]


@mcp.tool()
def get_number_of_comments(post_id: str) -> int:
    """Count the comments on a post."""
    return len(children(find(posts, post_id)["id"]))


@mcp.tool()
def get_post_top_commenters(post_id: str) -> list[dict[str, Any]]:
    """List who commented on a post, the most frequent first."""
    users = Counter(c["from"]["id"] for c in children(find(posts, post_id)["id"]))
    return [{"user_id": user, "count": n} for user, n in users.most_common()]


# Messages


@mcp.tool()
def send_dm_to_user(user_id: str, message: str) -> dict[str, Any]:
    """Send a direct message to a person."""
    messages.append({"recipient_id": user_id, "message_id": f"m_{next(ids)}", "message": message})
    return {"recipient_id": user_id, "message_id": messages[-1]["message_id"]}


# The page and its numbers


@mcp.tool()
def get_page_info() -> dict[str, Any]:
    """Describe the page."""
    return {"id": PAGE, "name": "Weir & Sons Bakery", "category": "Bakery", "about": "Bread by the river since 1911."}


@mcp.tool()
def get_page_fan_count() -> int:
    """Count the fans of the page."""
    return 1911


@mcp.tool()
def get_number_of_likes(post_id: str) -> int:
    """Count the likes of a post."""
    return insight(post_id, "post_reactions_like_total")["values"][0]["value"]


@mcp.tool()
def get_post_share_count(post_id: str) -> int:
    """Count how often a post was shared."""
    return find(posts, post_id).get("shares", 0)


@mcp.tool()
def get_post_insights(post_id: str) -> dict[str, Any]:
    """Give every number that there is for a post."""
    return {"data": [insight(post_id, metric) for metric in INSIGHTS]}


@mcp.tool()
def get_post_reactions_breakdown(post_id: str) -> dict[str, Any]:
    """Give the number of each kind of reaction to a post."""
    return {m: insight(post_id, m)["values"][0]["value"] for m in INSIGHTS if "reactions" in m}


def offer_insight(metric: str) -> None:
    def tool(post_id: str) -> dict[str, Any]:
        return {"data": [insight(post_id, metric)]}

    mcp.add_tool(tool, name=f"get_{metric}", description=f"Give {metric} of a post.")


for metric in INSIGHTS:
    offer_insight(metric)

first = add_post("Sourdough at seven.", shares=3, insights={"post_impressions": 240, "post_reactions_like_total": 12})
add_comment(first["id"], "2001", "Lovely bread, as always.")
add_comment(first["id"], "2002", "Terrible queue today, and that is a problem.")

mcp.run("streamable-http", host="127.0.0.1", port=port)
