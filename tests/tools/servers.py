"""The MCP servers of the stage: how each is started, what an agent calls, and what is then to be seen without asking the server."""

import functools
import http.server
import json
import os
import socket
import subprocess
import sys
import threading

from processes import free_port, wait_until

DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "demo", "just_facebook.py")


class Server:
    """An MCP server. `command` serves stdio, `urls` are those of the same server by transport; a server has one or both."""

    command, urls = None, {}

    def __init__(self, stage):
        self.stage, self.dir = stage, stage.dir
        self.prepare()

    def prepare(self):
        """Makes what the server works on, and starts it if it serves HTTP."""

    def calls(self):
        """Calls that the suggested policy allows: (tool, arguments, text that the answer has)."""
        return []

    def effects(self):
        """What these calls did: (what, whether it is so)."""
        return []

    def forbidden(self):
        """Calls that the suggested policy denies, with arguments that the server would carry out."""
        return {}

    def harm(self):
        """What the forbidden calls would have done: (what, whether it is so)."""
        return []


class Everything(Server):
    """npm @modelcontextprotocol/server-everything, over stdio, Streamable HTTP and HTTP+SSE."""

    command = ["mcp-server-everything", "stdio"]

    def prepare(self):
        self.urls = {"http": self.serve("streamableHttp", "/mcp"), "sse": self.serve("sse", "/sse")}

    def serve(self, transport, path):
        port = free_port()
        self.stage.start(transport, ["mcp-server-everything", transport], env={**os.environ, "PORT": str(port)})
        wait_until(f"{transport} listens", functools.partial(listens, port), 30)
        return f"http://127.0.0.1:{port}{path}"

    def calls(self):
        return [("echo", {"message": "weir"}, "Echo: weir"), ("get-sum", {"a": 2, "b": 3}, "The sum of 2 and 3 is 5.")]


class Filesystem(Server):
    """npm @modelcontextprotocol/server-filesystem, on a folder of its own."""

    def prepare(self):
        self.files = self.dir / "files"
        self.files.mkdir()
        (self.files / "letter.txt").write_text("Flour, water, salt.\n")
        self.command = ["mcp-server-filesystem", str(self.files)]

    def calls(self):
        return [
            ("read_text_file", {"path": str(self.files / "letter.txt")}, "Flour, water, salt."),
            ("create_directory", {"path": str(self.files / "recipes")}, "recipes"),
        ]

    def effects(self):
        return [("the folder that was to be made exists", (self.files / "recipes").is_dir())]

    def forbidden(self):
        return {"write_file": {"path": str(self.files / "letter.txt"), "content": "overwritten"}}

    def harm(self):
        return [("the file was overwritten", (self.files / "letter.txt").read_text() != "Flour, water, salt.\n")]


class Memory(Server):
    """npm @modelcontextprotocol/server-memory, with a file of its own."""

    def prepare(self):
        self.graph = self.dir / "memory.jsonl"
        self.command = ["env", f"MEMORY_FILE_PATH={self.graph}", "mcp-server-memory"]

    def calls(self):
        entity = {"name": "Weir", "entityType": "building", "observations": ["holds water back"]}
        return [("create_entities", {"entities": [entity]}, "holds water back"), ("read_graph", {}, "holds water back")]

    def effects(self):
        return [("the entity is in the server's file", "holds water back" in self.graph.read_text())]

    def forbidden(self):
        return {"delete_entities": {"entityNames": ["Weir"]}}

    def harm(self):
        return [("the entity was deleted", "holds water back" not in self.graph.read_text())]


class Git(Server):
    """PyPI mcp-server-git, on a repository of its own."""

    def prepare(self):
        self.repository = self.dir / "repository"
        self.git("init", "--quiet", "--initial-branch", "main", self.repository, within=self.dir)
        (self.repository / "letter.txt").write_text("Flour, water, salt.\n")
        self.command = ["mcp-server-git", "--repository", str(self.repository)]

    def git(self, *words, within=None):
        return subprocess.run(["git", *words], cwd=within or self.repository, check=True, capture_output=True, text=True).stdout

    def staged(self):
        return self.git("diff", "--cached", "--name-only").split()

    def calls(self):
        here = {"repo_path": str(self.repository)}
        return [("git_status", here, "letter.txt"), ("git_add", {**here, "files": ["letter.txt"]}, "staged")]

    def effects(self):
        return [("letter.txt is staged", self.staged() == ["letter.txt"])]

    def forbidden(self):
        return {"git_reset": {"repo_path": str(self.repository)}}

    def harm(self):
        return [("the staged file was reset", self.staged() != ["letter.txt"])]


class Fetch(Server):
    """PyPI mcp-server-fetch, which gets a page of this process."""

    # It fetches from the Internet only, unless it is told otherwise.
    command = ["mcp-server-fetch", "--allow-private-ips"]

    def prepare(self):
        self.requests = requests = []

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                robots = self.path == "/robots.txt"
                self.send_response(404 if robots else 200)
                self.send_header("Content-Type", "text/plain")
                self.end_headers()
                self.wfile.write(b"" if robots else b"Bread by the river since 1911.")

            def log_message(self, *_):
                pass

        page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
        threading.Thread(target=page.serve_forever, daemon=True).start()
        self.page = f"http://127.0.0.1:{page.server_port}/about"

    def calls(self):
        return [("fetch", {"url": self.page, "raw": True}, "Bread by the river since 1911.")]

    def effects(self):
        return [("the page was fetched once", self.requests.count("/about") == 1)]


class Facebook(Server):
    """Our demo's server, over Streamable HTTP; its own log says what was delivered."""

    CALLS, DELIVERED = 35, 30

    def prepare(self):
        port = free_port()
        self.log = self.dir / "delivered.jsonl"
        self.stage.start("server", [sys.executable, DEMO, port, self.log])
        wait_until("just_facebook.py listens", functools.partial(listens, port), 30)
        self.urls = {"http": f"http://127.0.0.1:{port}/mcp"}

    def delivered(self, tool):
        return sum(json.loads(line)["tool"] == tool for line in self.log.read_text().splitlines())

    def calls(self):
        return [("get_page_info", {}, "Weir & Sons Bakery"), ("get_page_posts", {}, "Sourdough at seven.")]

    def effects(self):
        return [("the server got get_page_info once", self.delivered("get_page_info") == 1)]

    def forbidden(self):
        return {"delete_post": {"post_id": "104255_1"}}

    def harm(self):
        return [("delete_post was delivered", self.delivered("delete_post") > 0)]


def listens(port):
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


SERVERS = {"everything": Everything, "filesystem": Filesystem, "memory": Memory, "git": Git, "fetch": Fetch, "facebook": Facebook}
