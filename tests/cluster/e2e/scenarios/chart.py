"""The life of the chart: lint, install, upgrade from the previous one, test, uninstall."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from kube import INJECT, Failure, agent, expect, expect_in, helm, kubectl, until
from settings import CHART, OUT, RELEASE, ROOT, SYSTEM

from . import scenario
from .policies import MESSAGE, send


def previous_chart():
    """The chart before this one, packaged. E2E_PREVIOUS_CHART names one; without it, as there is none yet, this one with a lower
    version stands in for it."""
    if given := os.environ.get("E2E_PREVIOUS_CHART"):
        return Path(given)
    folder = OUT / "previous"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CHART, folder / "toolweir")
    chart = folder / "toolweir/Chart.yaml"
    chart.write_text(re.sub(r"(?m)^version: .*", "version: 0.0.9", chart.read_text()))
    helm("package", folder / "toolweir", "-d", folder)
    return folder / "toolweir-0.0.9.tgz"


@scenario("helm", "the chart: lint, goldens, install, upgrade from the previous chart, `helm test`, uninstall", "pass; after uninstall no webhook is left to block pods, and the CRDs are kept")
def chart(cluster, measured):
    helm("lint", "--strict", CHART, "-f", ROOT / "tests/cluster/values.yaml")
    goldens = subprocess.run([ROOT / "tests/chart/run.sh"], capture_output=True, text=True, timeout=600)
    if goldens.returncode:
        raise Failure(f"tests/chart/run.sh: {goldens.stdout[-1500:]}{goldens.stderr[-500:]}")
    namespace = cluster.namespace("chart")
    policy = cluster.policy(namespace, tools=[send(2)])

    cluster.uninstall()
    cluster.helm("install", chart=previous_chart())
    cluster.webhooks()
    cluster.apply(policy, agent("agent"), namespace=namespace)
    cluster.ready(namespace, "agent")
    uid = cluster.api.get(cluster.path(policy))["metadata"]["uid"]

    # The upgrade changes a value too, and what it changes is in force: with a store, a policy that counts across pods is accepted.
    shared = (ROOT / "crds/samples/valid/shared-scopes.yaml").read_text().replace("namespace: agents", f"namespace: {namespace}")
    code, _, err = kubectl("apply", "-f", "-", input=shared, check=False)
    if not code or "store" not in err:
        raise Failure(f"a policy that needs a store was not refused without one: {err}")
    cluster.helm("upgrade", "--set", "sharedStore.url=redis://store.data.svc")
    cluster.rollout()
    releases = json.loads(helm("list", "-n", SYSTEM, "-o", "json"))
    expect("the release", [(RELEASE, "deployed", "2")], [(r["name"], r["status"], str(r["revision"])) for r in releases])
    until(20, "the changed value is in force", lambda: kubectl("apply", "-f", "-", input=shared), 1)
    kubectl("delete", "-f", "-", input=shared)
    expect("the policy's uid after the upgrade", uid, cluster.api.get(cluster.path(policy))["metadata"]["uid"])
    cluster.programmed(policy, 1)
    said = helm("test", RELEASE, "-n", SYSTEM, "--logs", "--timeout", "120s")
    expect_in("helm test", "Succeeded", said)

    cluster.uninstall()
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        found = cluster.api.get(f"/apis/admissionregistration.k8s.io/v1/{kind}")["items"]
        expect(f"{kind} that are left", [], [o["metadata"]["name"] for o in found if "toolweir" in o["metadata"]["name"]])
    crds = cluster.api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
    kept = sorted(crd["metadata"]["name"] for crd in crds if crd["spec"]["group"] == "toolweir.dev")
    expect("CRDs that are kept", ["mcpapprovals.toolweir.dev", "mcpclusterpolicies.toolweir.dev", "mcppolicies.toolweir.dev", "mcptoolpins.toolweir.dev"], kept)
    expect("the policy's uid after the uninstall", uid, cluster.api.get(cluster.path(policy))["metadata"]["uid"])
    cluster.apply(agent("free"), namespace=namespace)
    spec = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/free")["spec"]
    expect("init containers of a pod that is created then", [], spec.get("initContainers", []))
    cluster.ready(namespace, "free")
    opted_in = agent("opted-in", labels={INJECT: "enabled"})
    cluster.apply(opted_in, namespace=namespace)
    answers = cluster.call(namespace, "agent", "send_dm_to_user", 3, **MESSAGE)
    expect("a sidecar that still runs", "denied", answers[-1]["outcome"])
    # Once more, onto the CRDs that were kept.
    cluster.install()
    cluster.programmed(policy, 1, 60)
    measured.note("lint, goldens, install of the previous one, upgrade with a changed value, helm test, uninstall, install again: pass; no webhook left, CRDs and policies kept, new pods start, the old sidecar enforces")
