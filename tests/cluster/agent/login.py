"""The token endpoint of an OAuth server for one client: it gives tokens that live for a minute.

    login.py ID SECRET
"""

import base64
import http.server
import json
import sys
import uuid
from urllib.parse import parse_qs, unquote_plus

CLIENT = (sys.argv[1], sys.argv[2])


class Endpoint(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        form = {name: values[0] for name, values in parse_qs(self.rfile.read(int(self.headers["content-length"])).decode()).items()}
        # RFC 6749, section 2.3.1: as a user and a password, or in the form.
        scheme, _, text = (self.headers["authorization"] or "").partition(" ")
        if scheme.lower() == "basic":
            user, _, password = base64.b64decode(text).decode().partition(":")
            client = (unquote_plus(user), unquote_plus(password))
        else:
            client = (form.get("client_id"), form.get("client_secret"))
        if client != CLIENT:
            self.answer(401, {"error": "invalid_client"})
        elif form.get("grant_type") != "client_credentials":
            self.answer(400, {"error": "unsupported_grant_type"})
        else:
            self.answer(200, {"access_token": uuid.uuid4().hex, "token_type": "Bearer", "expires_in": 60})

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


http.server.ThreadingHTTPServer(("", 8000), Endpoint).serve_forever()
