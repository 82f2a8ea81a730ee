"""The two policies of the stage: one lets everything pass, one denies what can be denied."""

from table import CARRY, COMPLETION, ELICIT, LISTEN, PAY, PROMPT, RESOURCE, REVIEW, ROOTS, SAMPLING, TOOL
from ways import NAME

WORDS = "Ask the platform team."
# Whatever is asked of these kinds.
URIS = "file:///data/*"


def document(name, url, **server):
    server = {"name": NAME, **({"url": url} if url else {}), **server}
    metadata, spec = {"name": name, "namespace": "tests"}, {"podSelector": {}, "servers": [server]}
    return {"apiVersion": "toolweir.dev/v1alpha1", "kind": "MCPPolicy", "metadata": metadata, "spec": spec}


def entries(**more):
    """An entry for each name that the samples have; `more` in each."""
    return {
        "prompts": [{"name": REVIEW, **more}],
        "resources": [{"uri": URIS, **more}],
        "requests": [{"name": name, **more} for name in (SAMPLING, ELICIT, ROOTS)],
    }


def allowing(url):
    return document("allows", url, tools=[{"name": CARRY}, {"name": PAY}], defaultActions={"other": "Allow"}, **entries())


def tools_alone(url):
    """That of a sidecar which decides calls of tools alone."""
    return document("allows", url, tools=[{"name": CARRY}, {"name": PAY}])


def denying(url):
    """One tool stays, so that a call can carry what is denied."""
    denied = {"action": "Deny", "reason": WORDS}
    nothing = {kind: "Deny" for kind in ("prompts", "resources", "requests", "other")}
    return document("denies", url, tools=[{"name": CARRY}, {"name": PAY, **denied}], defaultActions=nothing, **entries(**denied))


# What these rows ask for, an entry of the denying policy names, with its words.
NAMED = {TOOL, PROMPT, RESOURCE, COMPLETION, LISTEN, SAMPLING, ELICIT, ROOTS}
