"""An API server as far as one operator needs it: objects that are kept, listed, watched, written and patched, and reviews of tokens. It
signs nobody in and checks no schema: what is measured is the operator. `apiserver.py PORT FILE`; the file has the objects to begin with.

A token `NAMESPACE/POD/UID` is taken as that of the pod's sidecar.
"""

import copy
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

WRITTEN = threading.Condition()
# (collection, namespace, name) -> object; every change, oldest first, as (version, type, key, object).
OBJECTS, CHANGES = {}, []


def place(path):
    """The collection, namespace and name of a path; none of these where it has none."""
    parts = path.strip("/").split("/")
    group, rest = ("/".join(parts[:2]), parts[2:]) if parts[0] == "api" else ("/".join(parts[:3]), parts[3:])
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    return f"{group}/{rest[0]}" if rest else None, namespace, rest[1] if len(rest) > 1 else None


def write(key, made, how):
    """Keeps an object, whose version is that of the change."""
    version = len(CHANGES) + 1
    meta = made.setdefault("metadata", {})
    meta |= {"name": key[2], "resourceVersion": str(version), "uid": meta.get("uid") or f"uid-{version}", "generation": 1}
    meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
    if key[1]:
        meta["namespace"] = key[1]
    OBJECTS[key] = made
    CHANGES.append((version, how, key, copy.deepcopy(made)))
    WRITTEN.notify_all()
    return made


def merge(target, change):
    """A merge patch (RFC 7396); also what is left of an apply where nobody else owns a field."""
    for name, value in change.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict) and isinstance(target.get(name), dict):
            merge(target[name], value)
        else:
            target[name] = value


def step(document, patch):
    """One step of a JSON patch (RFC 6902) that adds, replaces or tests a member. Whether it can be taken."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in patch["path"].split("/")[1:]]
    for part in way:
        document = document[int(part)] if isinstance(document, list) else document[part]
    if patch["op"] == "test":
        return document.get(last) == patch["value"]
    document[last] = patch["value"]
    return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status, reason):
        self.answer(status, {"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": status, "message": reason})

    def body(self):
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def do_GET(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/version":
            return self.answer(200, {"major": "1", "minor": "37", "gitVersion": "v1.37.0"})
        collection, namespace, name = place(url.path)
        if name:
            with WRITTEN:
                found = OBJECTS.get((collection, namespace, name))
            return self.answer(200, found) if found else self.fail(404, "NotFound")
        fields = dict(part.split("=", 1) for part in query.get("fieldSelector", "").split(",") if part)
        labels = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if "=" in part)

        def selected(key, found):
            own = found["metadata"].get("labels") or {}
            return (
                key[0] == collection
                and namespace in ("", key[1])
                and fields.get("metadata.name", key[2]) == key[2]
                and all(own.get(label) == value for label, value in labels.items())
            )

        if query.get("watch") in ("true", "1"):
            return self.watch(int(query.get("resourceVersion") or 0), float(query.get("timeoutSeconds") or 3600), selected)
        with WRITTEN:
            items, version = [found for key, found in OBJECTS.items() if selected(key, found)], len(CHANGES)
            self.answer(200, {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": str(version)}, "items": items})

    def watch(self, since, seconds, selected):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while True:
            with WRITTEN:
                if not WRITTEN.wait_for(lambda: len(CHANGES) > since, seconds):
                    return
                new, since = CHANGES[since:], len(CHANGES)
            for _, how, key, found in new:
                if selected(key, found):
                    self.wfile.write(json.dumps({"type": how, "object": found}).encode() + b"\n")
            self.wfile.flush()

    def do_POST(self):
        made = self.body()
        collection, namespace, _ = place(urlsplit(self.path).path)
        if collection.endswith("/tokenreviews"):
            namespace, pod, uid = (made["spec"]["token"].split("/") + ["", ""])[:3]
            extra = {"authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [uid]}
            user = {"username": f"system:serviceaccount:{namespace}:default", "extra": extra}
            known = ("api/v1/pods", namespace, pod) in OBJECTS
            made["status"] = {"authenticated": known, "audiences": ["toolweir"], "user": user} if known else {"authenticated": False}
            return self.answer(201, made)
        key = (collection, namespace, made["metadata"].get("name") or f"made-{len(CHANGES)}")
        with WRITTEN:
            if key in OBJECTS:
                return self.fail(409, "AlreadyExists")
            self.answer(201, write(key, made, "ADDED"))

    def do_PUT(self):
        made, key = self.body(), place(urlsplit(self.path).path)
        with WRITTEN:
            if key not in OBJECTS:
                return self.fail(404, "NotFound")
            version = made["metadata"].get("resourceVersion")
            if version and version != OBJECTS[key]["metadata"]["resourceVersion"]:
                return self.fail(409, "Conflict")
            self.answer(200, write(key, made, "MODIFIED"))

    def do_PATCH(self):
        change, key = self.body(), place(urlsplit(self.path).path)
        kind = self.headers.get("Content-Type")
        with WRITTEN:
            found = copy.deepcopy(OBJECTS.get(key))
            if found is None and "apply" not in kind:
                return self.fail(404, "NotFound")
            if isinstance(change, list):
                if not all(step(found, patch) for patch in change):
                    return self.fail(422, "Invalid")
            else:
                how = "MODIFIED" if found else "ADDED"
                found = found or {}
                merge(found, change)
                return self.answer(200, write(key, found, how))
            self.answer(200, write(key, found, "MODIFIED"))


def main(port, file):
    with open(file) as begin, WRITTEN:
        for path, found in json.load(begin).items():
            write(place(path), found, "ADDED")
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
