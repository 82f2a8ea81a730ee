"""The Python part of tests/dashboards/live.sh.

    live.py config OUT API TOKEN CA      docs/prometheus.yaml for a Prometheus outside of the cluster, that also scrapes the API server
    live.py targets PROMETHEUS SIDECARS  all targets are up: this many sidecars, two operators, the API server
    live.py alerts PROMETHEUS            rules are in order, and what was brought about is seen
"""
import json
import sys
import urllib.request

import yaml

from ask import ask
from boards import ROOT, rules


def config(out, api, token, ca):
    plain = yaml.safe_load((ROOT / "docs/prometheus.yaml").read_text())
    reach = {"authorization": {"credentials_file": token}, "tls_config": {"ca_file": ca}}
    plain["global"] = {"scrape_interval": "5s", "evaluation_interval": "5s"}
    plain["rule_files"] = [str(ROOT / "charts/toolweir/alerts.yaml")]
    for job in plain["scrape_configs"]:
        for discovery in job["kubernetes_sd_configs"]:
            discovery.update({"api_server": api, **reach})
    host = api.removeprefix("https://")
    plain["scrape_configs"].append({"job_name": "kubernetes-apiservers", "scheme": "https", "static_configs": [{"targets": [host]}], **reach})
    with open(out, "w") as file:
        yaml.safe_dump(plain, file, sort_keys=False)


def get(url, path):
    with urllib.request.urlopen(f"{url}/api/v1/{path}", timeout=30) as response:
        return json.load(response)["data"]


def targets(url, sidecars):
    active = get(url, "targets?state=active")["activeTargets"]
    down = [f"{target['labels']}: {target['lastError']}" for target in active if target["health"] != "up"]
    found = {}
    for target in active:
        found.setdefault(target["labels"]["job"], []).append(target["labels"])
    counts = {job: len(labels) for job, labels in found.items()}
    wanted = {"toolweir-sidecar": int(sidecars), "toolweir-operator": 2, "kubernetes-apiservers": 1}
    if down or counts != wanted:
        sys.exit(f"expected {wanted}, all of them up; found {counts}; down: {down}")
    workloads = sorted({labels["workload"] for labels in found["toolweir-sidecar"]})
    if not {"research-agent", "social-agent"} <= set(workloads):
        sys.exit(f"workloads are {workloads}")
    print(f"{counts}, workloads {', '.join(workloads)}")


def alerts(url):
    groups = get(url, "rules")["groups"]
    bad = [f"{rule['name']}: {rule.get('lastError')}" for group in groups for rule in group["rules"] if rule["health"] != "ok"]
    if bad:
        sys.exit("\n".join(bad))
    # What `for` waits for is time that the unit tests do not need; that the condition is met is seen at once.
    wanted = {
        "ToolweirDenialSpike": lambda labels: labels["workload"] == "social-agent" and labels["policy"] == "agents/facebook",
        "ToolweirToolDrift": lambda labels: labels["workload"] == "social-agent" and labels["server"] == "facebook",
        "ToolweirPodWithoutSidecar": lambda labels: labels["pod_namespace"] == "agents" and labels["reason"] == "NotInjected",
        "ToolweirPolicyNotProgrammed": lambda labels: labels["policy"] == "guardrail" and labels["programmed"] == "NoSidecar",
    }
    missed, fired = [], []
    for rule in rules():
        if "alert" not in rule:
            continue
        met = [series["metric"] for series in ask(url, "query", query=rule["expr"])]
        if rule["alert"] in wanted:
            if not any(wanted[rule["alert"]](labels) for labels in met):
                missed.append(f"{rule['alert']}: its condition is not met; {met}")
        elif met:
            fired.append(f"{rule['alert']}: {met}")
    if missed or fired:
        sys.exit("\n".join(missed + [f"not brought about: {line}" for line in fired]))
    print(f"the conditions of {', '.join(wanted)} are met, and of no other")


{"config": config, "targets": targets, "alerts": alerts}[sys.argv[1]](*sys.argv[2:])
