"""An API server, for the checks of the chart."""
import http.client, json, ssl, sys, threading, time, urllib.parse


class Api:
    """An API server, over one connection for each thread."""

    def __init__(self, url, token):
        self.address, self.token, self.local = urllib.parse.urlsplit(url).netloc, token, threading.local()

    def ask(self, method, path, body=None, kind="application/json", user=None):
        """Returns the status and the answer, to this user if there is one; 0 while nobody listens."""
        if not hasattr(self.local, "connection"):
            context = ssl._create_unverified_context()  # It made its certificate itself, a moment ago.
            self.local.connection = http.client.HTTPSConnection(self.address, context=context, timeout=60)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind} | ({"Impersonate-User": user} if user else {})
        try:
            self.local.connection.request(method, path, body and json.dumps(body), headers)
            answer = self.local.connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] == b"{" else {"message": text.decode()}
        except (OSError, http.client.HTTPException) as error:
            self.local.connection.close()
            return 0, {"message": str(error)}


def wait(what, holds):
    for _ in range(120):
        if holds():
            return
        time.sleep(0.5)
    sys.exit(f"after a minute, {what} is not so")
