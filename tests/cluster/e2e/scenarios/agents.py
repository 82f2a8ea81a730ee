"""The agent's view: its calls, its start, its end."""

import json

from kube import Failure, agent, expect, expect_in, until
from settings import FIRST_CALLS

from . import scenario

README = [{"name": "send_dm_to_user", "limits": [{"max": 30, "window": "minute"}]}]


@scenario("run", "install, apply, run", "agent pod with a real SDK client: 30 of 35 calls delivered, 5 denied with the right text; the MCP server's own log agrees")
def run(cluster, measured):
    if cluster.installed_in:
        measured.note(f"helm install {cluster.installed_in:.0f} s")
    namespace = cluster.namespace("run")
    cluster.apply(cluster.policy(namespace, tools=README))
    before = len(cluster.delivered())
    # The address comes from the environment that the injection gives.
    cluster.apply(agent("social", "/opt/agent/agent.py", "$(TOOLWEIR_URL)/facebook", restart="Never"), namespace=namespace)
    phase = cluster.ended(namespace, "social")
    said = cluster.logs(namespace, "social")
    if phase != "Succeeded":
        raise Failure(f"the agent failed: {said}")
    expect_in("the agent's log", "30 delivered, 5 denied", said)
    expect_in("what the model reads", f"Denied by policy {namespace}/facebook: send_dm_to_user is limited to 30 calls a minute. Try again in ", said)
    expect_in("what the model reads", f"Denied by policy {namespace}/facebook: delete_post is not among the tools that may be called.", said)
    got = [line["tool"] for line in cluster.delivered()[before:]]
    expect("what the server got", {"send_dm_to_user": 30}, {tool: got.count(tool) for tool in got})
    audit = [line for line in cluster.logs(namespace, "social", "toolweir-sidecar").splitlines() if '"decision"' in line]
    decisions = [json.loads(line)["decision"] for line in audit]
    expect("decisions in the audit log", {"allowed": 30, "denied": 6}, {d: decisions.count(d) for d in decisions})
    measured.note("30 delivered, 5 denied with the right text, delete_post denied; the server's log and the audit log agree")


@scenario("first-call", "an agent that starts at once", "its first call on 127.0.0.1 succeeds: never ECONNREFUSED")
def first_call(cluster, measured):
    namespace = cluster.namespace("first-call")
    cluster.apply(cluster.policy(namespace, tools=README))
    pod = agent("first", "/opt/agent/call.py", "first", "facebook", "send_dm_to_user", "--arguments", '{"user_id": "1", "message": "first"}', restart="Never")
    template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}
    cluster.apply(
        {
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "first"},
            "spec": {"completions": FIRST_CALLS, "parallelism": 10, "backoffLimit": 0, "template": template},
        },
        namespace=namespace,
    )
    finished(cluster, namespace, "first", 60 + 6 * FIRST_CALLS)
    pods = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    outcomes = [json.loads(cluster.logs(namespace, pod["metadata"]["name"])) for pod in pods]
    bad = [outcome for outcome in outcomes if outcome["outcome"] != "ok"]
    expect("first calls that went wrong", [], bad)
    expect("first calls", FIRST_CALLS, len(outcomes))
    measured.note(f"{len(outcomes)} of {FIRST_CALLS} agents: the first call succeeded")


@scenario("job", "a Job with a sidecar", "completes")
def job(cluster, measured):
    namespace = cluster.namespace("job")
    cluster.apply(cluster.policy(namespace, tools=README))
    pod = agent("job", "/opt/agent/agent.py", "$(TOOLWEIR_URL)/facebook", restart="Never")
    template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}
    cluster.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": {"backoffLimit": 0, "template": template}}, namespace=namespace)
    finished(cluster, namespace, "job", 90)
    pod = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"][0]
    names = [container["name"] for container in pod["spec"]["initContainers"]]
    expect("its init containers", ["toolweir-sidecar"], names)
    sidecar = until(30, "the sidecar has ended", lambda: cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}")["status"]["initContainerStatuses"][0]["state"].get("terminated"))
    expect("the sidecar's exit code", 0, sidecar["exitCode"])
    measured.note("the Job completed; its sidecar ended with 0")


def finished(cluster, namespace, name, seconds):
    """Waits until a Job is complete; fails if the Job fails."""

    def probe():
        status = cluster.api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}").get("status", {})
        conditions = {c["type"] for c in status.get("conditions", []) if c["status"] == "True"}
        return conditions & {"Complete", "Failed"} or None

    if "Complete" not in until(seconds, f"Job {name} completes", probe, 0.3):
        raise Failure(f"Job {name} failed")


@scenario("restricted", "restricted namespace", "injected pods are admitted (pod-security.kubernetes.io/enforce: restricted)")
def restricted(cluster, measured):
    standard = {f"pod-security.kubernetes.io/{level}": "restricted" for level in ("enforce", "warn")}
    namespace = cluster.namespace("restricted", **standard)
    cluster.apply(cluster.policy(namespace, tools=README))
    careless = agent("careless")
    del careless["spec"]["securityContext"], careless["spec"]["containers"][0]["securityContext"]
    expect_in("a pod that does not meet the standard", "violates PodSecurity", cluster.refused(careless, namespace=namespace))
    said = cluster.apply(agent("agent"), namespace=namespace)
    if "PodSecurity" in said:
        raise Failure(f"a warning: {said}")
    cluster.ready(namespace, "agent")
    expect("a call", ["ok"], [answer["outcome"] for answer in cluster.call(namespace, "agent", "send_dm_to_user", user_id="1", message="x")])
    measured.note("admitted without a warning, ready, and a call passes; a careless pod is refused there")
