"""Compares the chart's ValidatingAdmissionPolicy with the Pod Security Standard, in an API server.

    pod_security.py URL TOKEN_FILE CHART FIXTURES PODS

Every fixture is created (as a dry run) in three namespaces: one where nothing is enforced, one with the Standard `restricted`, one with
the policy. The verdicts of the last two must be equal, also with the init container of capture added in the last one. Says what does not
hold, a line each, and exits with 1.
"""
import concurrent.futures, copy, json, pathlib, sys

import yaml

from api import Api, wait

POLICY = "toolweir-restricted"
problems = []


def expect(holds, *words):
    if not holds:
        problems.append(" ".join(map(str, words)))
    return holds


class Pods(Api):
    def create(self, namespace, pod):
        """Returns whether a pod can be created, and why not."""
        status, answer = self.ask("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)
        return status == 201, answer.get("message", "")


def fixtures(folder):
    """Returns the distinct fixtures of all versions and levels, each with the name of one file."""
    found = {}
    for path in sorted(folder.rglob("*.yaml"), reverse=True):
        pod = yaml.safe_load(path.read_text())
        pod["metadata"]["name"] = "fixture"
        found.setdefault(json.dumps(pod, sort_keys=True), "/".join(path.parts[-4:]))
    return [(name, json.loads(text)) for text, name in found.items()]


def with_capture(pod, capture):
    pod = copy.deepcopy(pod)
    pod["spec"]["initContainers"] = [capture, *pod["spec"].get("initContainers", [])]
    return pod


def is_stricter(pod):
    """Tells whether the Standard relaxes for this pod, and the policy does not: where the pod has users of its own."""
    return pod["spec"].get("hostUsers") is False


def changes():
    """Yields changes to the init container, each of which must be refused."""
    token = "/var/run/secrets/kubernetes.io/serviceaccount"
    for name, change in {
        "another image": lambda c: c.update(image="example.com/other:1"),
        "a command": lambda c: c.update(command=["/bin/sh"]),
        "no arguments": lambda c: c.pop("args"),
        "another subcommand": lambda c: c["args"].__setitem__(0, "run"),
        "one argument more": lambda c: c["args"].append("--x"),
        "one argument fewer": lambda c: c["args"].pop(),
        "user 0": lambda c: c["args"].__setitem__(2, "0"),
        "a user that is none": lambda c: c["args"].__setitem__(2, "5 --gid"),
        "two arguments in one": lambda c: c.update(args=[" ".join(c["args"][:2]), *c["args"][2:], "x"]),
        "another port": lambda c: c["args"].__setitem__(6, "16001"),
        "a variable": lambda c: c.update(env=[{"name": "A", "value": "b"}]),
        "variables": lambda c: c.update(envFrom=[{"configMapRef": {"name": "a"}}]),
        "a folder": lambda c: c.update(workingDir="/tmp"),
        "a restart policy": lambda c: c.update(restartPolicy="Always"),
        "a terminal": lambda c: c.update(stdin=True),
        "a port": lambda c: c.update(ports=[{"containerPort": 80}]),
        "a mount": lambda c: c.update(volumeMounts=[{"name": "v", "mountPath": "/etc"}]),
        "a mount of a token that can be written": lambda c: c.update(volumeMounts=[{"name": "v", "mountPath": token}]),
        "no securityContext": lambda c: c.pop("securityContext"),
        "one capability more": lambda c: c["securityContext"]["capabilities"]["add"].append("SYS_ADMIN"),
        "capabilities that stay": lambda c: c["securityContext"]["capabilities"].pop("drop"),
        "privileged": lambda c: c["securityContext"].update(privileged=True, allowPrivilegeEscalation=True),
        "no seccomp": lambda c: c["securityContext"].update(seccompProfile={"type": "Unconfined"}),
        "another user": lambda c: c["securityContext"].update(runAsUser=1),
        "files that can be written": lambda c: c["securityContext"].update(readOnlyRootFilesystem=False),
        "a field more": lambda c: c["securityContext"].update(seLinuxOptions={"type": "spc_t"}),
        "an unmasked /proc": lambda c: c["securityContext"].update(procMount="Unmasked"),
    }.items():
        yield name, change


def check_capture(api, base, capture):
    allowed, why = api.create("policy", with_capture(base, capture))
    expect(allowed, "the init container of capture is refused:", why)
    allowed, _ = api.create("standard", with_capture(base, capture))
    expect(not allowed, "the Standard lets in the init container of capture: the policy is not needed")
    base["spec"]["volumes"] = [{"name": "v", "emptyDir": {}}]
    mounted = capture | {"volumeMounts": [{"name": "v", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}]}
    allowed, why = api.create("policy", with_capture(base, mounted))
    expect(allowed, "the mount of the account's token is refused:", why)
    for name, change in changes():
        changed = copy.deepcopy(capture)
        change(changed)
        pod = with_capture(base, changed)
        if name == "an unmasked /proc":
            pod["spec"]["hostUsers"] = False
        plain, why = api.create("plain", pod)
        expect(plain, f"capture with {name}: not even a pod:", why)
        allowed, why = api.create("policy", pod)
        expect(not allowed and POLICY in why and "toolweir-capture is the operator's" in why, f"capture with {name}: is let in, or not for that:", why)
    for list_of in ("containers", "initContainers"):
        pod = copy.deepcopy(base)
        pod["spec"].setdefault(list_of, []).append(capture | {"name": "toolweir-capture" if list_of == "containers" else "other"})
        allowed, why = api.create("policy", pod)
        expect(not allowed and POLICY in why, f"a container like that of capture in {list_of} is let in")


def check_whole(api, base, injected):
    """A pod as it is after its injection, whose own containers meet the Standard, is let in."""
    injected["spec"]["initContainers"][0]["args"] += ["--admin-port", "16000"]
    for container in injected["spec"]["initContainers"] + injected["spec"]["containers"]:
        if not container["name"].startswith("toolweir-"):
            container["securityContext"] = base["spec"]["containers"][0]["securityContext"]
    # No controller of accounts runs here.
    injected["spec"].update(securityContext=base["spec"]["securityContext"], serviceAccountName="default")
    expect("--agent-ca-dir" in injected["spec"]["initContainers"][1]["args"], "the sidecar of the pod has no folder for authorities")
    allowed, why = api.create("policy", injected)
    expect(allowed, "a captured pod whose TLS is opened is refused:", why)
    injected["spec"]["containers"][0]["securityContext"] = {}
    allowed, why = api.create("policy", injected)
    expect(not allowed and POLICY in why, "a captured pod with a container that is not restricted is let in, or refused by another:", why)


def check_updates(api, base, capture):
    """Pods that are there can be labelled and debugged, also after the chart has another image; their image cannot become another."""
    old = with_capture(base, capture | {"image": "example.com/older:1"})
    status, answer = api.ask("POST", "/api/v1/namespaces/later/pods", old)
    expect(status == 201, "no pod to update:", answer.get("message"))
    status, answer = api.ask("PATCH", "/api/v1/namespaces/later", {"metadata": {"labels": {"toolweir.dev/pod-security": "restricted"}}}, "application/merge-patch+json")
    path, merge, strategic = "/api/v1/namespaces/later/pods/fixture", "application/merge-patch+json", "application/strategic-merge-patch+json"
    good = base["spec"]["containers"][0]["securityContext"]

    def debug(context):
        body = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "example.com/debug:1", "securityContext": context}]}}
        return api.ask("PATCH", f"{path}/ephemeralcontainers?dryRun=All", body, strategic)

    wait("a label takes effect", lambda: debug({})[0] == 422)
    status, answer = debug(good)
    expect(status == 200, "a pod with an older image cannot be debugged:", answer.get("message"))
    status, answer = debug({})
    expect(status == 422 and POLICY in answer["message"], "an ephemeral container that is not restricted is let in:", answer.get("message"))
    status, answer = api.ask("PATCH", f"{path}?dryRun=All", {"metadata": {"labels": {"a": "b"}}}, merge)
    expect(status == 200, "a pod with an older image cannot be labelled:", answer.get("message"))
    status, answer = api.ask("PATCH", f"{path}?dryRun=All", {"spec": {"initContainers": [{"name": "toolweir-capture", "image": "example.com/other:1"}]}}, strategic)
    expect(status == 422 and POLICY in answer["message"], "the image of capture can be changed:", answer.get("message"))


def main():
    url, token, chart, folder, pods = sys.argv[1:]
    api = Pods(url, pathlib.Path(token).read_text().strip())
    wait("the API server answers", lambda: api.ask("GET", "/readyz")[0] == 200)
    kinds = {"ValidatingAdmissionPolicy": "validatingadmissionpolicies", "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings"}
    for document in yaml.safe_load_all(pathlib.Path(chart).read_text()):
        if document and document["kind"] in kinds:
            status, answer = api.ask("POST", f"/apis/admissionregistration.k8s.io/v1/{kinds[document['kind']]}", document)
            if status != 201:
                sys.exit(f"pod_security.py: the API server refuses the {document['kind']}: {answer['message']}")
    labels = {"plain": {}, "standard": {"pod-security.kubernetes.io/enforce": "restricted"}, "policy": {"toolweir.dev/pod-security": "restricted"}, "later": {}}
    for name, these in labels.items():
        wait(f"the namespace {name} is there", lambda: api.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": these}})[0] in (201, 409))
    versions = (pathlib.Path(folder) / "restricted").iterdir()
    latest = max(versions, key=lambda path: int(path.name.removeprefix("v1.")))
    base = yaml.safe_load((latest / "pass/base_linux.yaml").read_text())
    base["metadata"]["name"] = "fixture"
    bad = copy.deepcopy(base)
    bad["spec"]["containers"][0]["securityContext"]["privileged"] = True
    bad["spec"]["containers"][0]["securityContext"].pop("allowPrivilegeEscalation", None)
    wait("the policy is in force", lambda: POLICY in api.create("policy", bad)[1])

    golden = yaml.safe_load((pathlib.Path(pods) / "captured.golden.yaml").read_text())
    capture = golden["spec"]["initContainers"][0]
    capture["args"] += ["--admin-port", "16000"]
    check_capture(api, copy.deepcopy(base), capture)
    check_updates(api, copy.deepcopy(base), capture)
    check_whole(api, base, yaml.safe_load((pathlib.Path(pods) / "captured-intercepted.golden.yaml").read_text()))

    def compare(fixture):
        name, pod = fixture
        plain, why = api.create("plain", pod)
        if not plain:
            return "invalid", name
        (standard, _), (policy, why) = api.create("standard", pod), api.create("policy", pod)
        captured, why_captured = api.create("policy", with_capture(pod, capture))
        if is_stricter(pod) and standard:
            expect(not policy or captured == policy, name, "differs with capture:", why_captured)
            return "stricter", name
        expect(standard == policy, name, "is", "let in by the Standard and refused:" if standard else "refused by the Standard and let in", why)
        windows = pod["spec"].get("os", {}).get("name") == "windows"
        # Its init container has fields that are Linux's, so there is no such pod.
        expect(captured == standard or windows, name, "with capture is", "refused:" if standard else "let in", why_captured)
        expect(policy or POLICY in why, name, "is refused by another than the policy:", why)
        return ("let in" if standard else "refused"), name

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(compare, fixtures(pathlib.Path(folder))))
    counts = {kind: sum(1 for result, _ in results if result == kind) for kind in ("let in", "refused", "stricter", "invalid")}
    print("fixtures:", ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    for kind in ("stricter", "invalid"):
        print(f"  {kind}:", *sorted(name for result, name in results if result == kind))
    # Those of the latest version are what the Standard promises; of each there must be some, or nothing was compared.
    expect(counts["let in"] >= 20 and counts["refused"] >= 80, "fewer fixtures than there are:", counts)
    for verdict in ("pass", "fail"):
        for path in (latest / verdict).glob("*.yaml"):
            pod = yaml.safe_load(path.read_text())
            pod["metadata"]["name"] = "fixture"
            allowed, why = api.create("policy", pod)
            expect(allowed == (verdict == "pass") or is_stricter(pod), f"{latest.name}/{verdict}/{path.name}", "is", "let in" if allowed else f"refused: {why}")
    sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    main()
