"""Checks that the chart uses every value, and that the schema knows it.

    values.py HELM

Says what does not hold, a line each, and exits with 1.
"""
import concurrent.futures, json, pathlib, subprocess, sys

import yaml

import readme

CHART, HERE = readme.CHART, pathlib.Path(__file__).parent


# What makes a value that says nothing alone be used.
STORES = {
    "sharedStore.store": {"embedded": True, "passwordSecret": {"name": "counts"}},
    "sharedStore.tls.caSecret.key": {"url": "rediss://store", "tls": {"caSecret": {"name": "ca"}}},
    "sharedStore.passwordSecret.key": {"url": "rediss://store", "passwordSecret": {"name": "counts"}},
    "sharedStore.embedded": {},
    "sharedStore.url": {},
    "sharedStore": {"url": "rediss://store"},
}
CLIENTS = {"webhooks": {"clientCA": {"configMap": "ca"}}}
CHAT = {"approvals": {"webhook": {"existingSecret": "chat"}}}


def base(path):
    """Returns the values with which a value is tested."""
    if path.startswith("webhooks.clientCA.") and not path.endswith(".configMap"):
        return CLIENTS
    if path.startswith("approvals.webhook.") and not path.endswith(".existingSecret"):
        return CHAT
    found = next((store for prefix, store in STORES.items() if path == prefix or path.startswith(f"{prefix}.")), {})
    return {"sharedStore": found} if found else {}


def merged(one, other):
    both = {**one, **other}
    return both | {key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict) and isinstance(other[key], dict)}


def at(values, path):
    for key in path.split("."):
        values = values[key]
    return values


def only(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def render(helm, values):
    # With the CRDs of the Prometheus operator, so that what depends on them is there.
    command = [helm, "template", "toolweir", CHART, "-n", "toolweir-system", "-f", "-", "--api-versions", "monitoring.coreos.com/v1"]
    return subprocess.run(command, input=json.dumps(values), text=True, capture_output=True)


def schema_paths(schema, node, documented, path=""):
    """Returns the paths of a schema, as deep as values are documented."""
    while "$ref" in node:
        node = schema["definitions"][node["$ref"].removeprefix("#/definitions/")]
    if path in documented or "properties" not in node:
        yield path
    else:
        for key, below in node["properties"].items():
            yield from schema_paths(schema, below, documented, f"{path}.{key}".lstrip("."))


def main():
    helm, problems = sys.argv[1], []
    documented = {path: default for _, path, default, _ in readme.rows((CHART / "values.yaml").read_text())}
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(schema_paths(schema, schema, documented)) - {"global"}
    problems += [f"{path} is in values.yaml and not in the schema" for path in sorted(documented.keys() - known)]
    problems += [f"{path} is in the schema and not in values.yaml" for path in sorted(known - documented.keys())]

    everything = yaml.safe_load((HERE / "values/everything.yaml").read_text())
    plain = {json.dumps(store): render(helm, store).stdout for store in {json.dumps(base(path)): base(path) for path in documented}.values()}

    def used(path):
        default = documented[path]
        try:
            value = at(everything, path)
        except (KeyError, TypeError):
            return f"{path} is not in tests/chart/values/everything.yaml"
        if isinstance(default, bool):
            value = not default
        elif default == "auto":
            value = False
        elif value == default:
            return f"{path} is in tests/chart/values/everything.yaml as it is by default"
        under = base(path)
        done = render(helm, merged(under, only(path, value)))
        if done.returncode:
            return f"{path} alone: {done.stderr.strip()}"
        if done.stdout == plain[json.dumps(under)]:
            return f"{path} makes no difference: nothing uses it"

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        problems += filter(None, pool.map(used, documented))
    sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    main()
