"""Checks that must pass for every rendering of the chart.

    rendered.py CHECK FILE NAMESPACE [WORD]

Says what does not hold, a line each, and exits with 1. The selectors are evaluated as the API server evaluates them, over made-up
pods and namespaces; no check looks at the text of a template but the one for comments.
"""
import itertools, pathlib, re, sys

import yaml

ROOT = pathlib.Path(__file__).parents[2]
CLUSTER_SCOPED = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration",
                  "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
PROTECTED = ["kube-system", "kube-public", "kube-node-lease"]
INJECT = "toolweir.dev/inject"
CAPTURE = "toolweir.dev/capture"


class Strict(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):
    """Refuses duplicate keys in a map; Kubernetes would silently use one of them."""


def unique(loader, node):
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.YAMLError(f"{key!r} stands twice in a map{node.start_mark}")
    return loader.construct_mapping(node, deep=True)


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, unique)

problems = []


def expect(holds, *words):
    if not holds:
        problems.append(" ".join(str(word) for word in words))
    return holds


def load(path):
    return [document for document in yaml.load_all(pathlib.Path(path).read_text(), Strict) if document]


class Rendered:
    def __init__(self, path, namespace):
        self.objects, self.namespace = load(path), namespace
        self.deployment = self.one("Deployment")
        self.pod = self.deployment["spec"]["template"]
        self.container = self.pod["spec"]["containers"][0]
        self.fullname = self.one("MutatingWebhookConfiguration")["metadata"]["name"].removesuffix("-injector")
        self.operator = f"{self.fullname}-operator"
        [self.service] = [service for service in self.all("Service") if service["metadata"]["name"] == self.operator]
        # The store that the chart runs.
        self.store = self.one("StatefulSet") if self.all("StatefulSet") else None
        self.check = self.one("Pod")

    def all(self, kind):
        return [object for object in self.objects if object["kind"] == kind]

    def one(self, kind):
        found = self.all(kind)
        if len(found) != 1:
            sys.exit(f"{len(found)} objects of kind {kind}")
        return found[0]

    def config_map(self):
        """Returns the operator's ConfigMap; others contain dashboards."""
        found = [map for map in self.all("ConfigMap") if map["metadata"]["name"] == self.operator]
        if len(found) != 1:
            sys.exit(f"{len(found)} ConfigMaps of the operator")
        return found[0]

    def flags(self):
        """Returns the operator's flags."""
        return dict(arg.removeprefix("--").split("=", 1) for arg in self.container["args"][1:])

    def config(self):
        return yaml.load(self.config_map()["data"]["config.yaml"], Strict)


def selects(selector, labels):
    """Tells whether a label selector selects these labels. An absent selector selects everything, as in a webhook."""
    selector = selector or {}
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for one in selector.get("matchExpressions") or []:
        key, operator, values = one["key"], one["operator"], one.get("values", [])
        if not {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[operator]:
            return False
    return True


# ---- the checks ----------------------------------------------------------------------------------------------------


def parses(rendered):
    """Each document is a unique object with a name, the release's namespace and the labels of the chart."""
    seen = set()
    for object in rendered.objects:
        meta = object["metadata"]
        name = f"{object['kind']} {meta['name']}"
        expect(name not in seen, name, "is there twice")
        seen.add(name)
        if object["kind"] in CLUSTER_SCOPED:
            expect("namespace" not in meta, name, "has a namespace")
        else:
            expect(meta.get("namespace") == rendered.namespace, name, "is not in the namespace of the release")
        for label in ("helm.sh/chart", "app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by"):
            expect(label in meta.get("labels", {}), name, "lacks the label", label)
        if object["kind"] != "CustomResourceDefinition":
            expect(len(meta["name"]) <= 63, name, "is longer than 63 characters")


def names(rendered):
    """References between objects are correct: names, ports, selectors."""
    flags = rendered.flags()
    expect(rendered.container["args"][0] == "run", "the operator does not get `run`")
    expect(flags["service"] == rendered.service["metadata"]["name"] == rendered.operator, "--service", flags["service"])
    expect(flags["lease"] == rendered.operator, "--lease", flags["lease"])
    expect(flags["ca-secret"] == f"{rendered.fullname}-ca", "--ca-secret", flags["ca-secret"])
    expect(flags["injector"] == rendered.one("MutatingWebhookConfiguration")["metadata"]["name"], "--injector", flags["injector"])
    expect(flags["validator"] == rendered.one("ValidatingWebhookConfiguration")["metadata"]["name"], "--validator", flags["validator"])
    [mount] = [mount for mount in rendered.container["volumeMounts"] if mount["name"] == "config"]
    [volume] = [volume for volume in rendered.pod["spec"]["volumes"] if volume["name"] == "config"]
    map = rendered.config_map()
    expect(volume["name"] == mount["name"] and volume["configMap"]["name"] == map["metadata"]["name"], "the configuration is not mounted")
    expect(flags["config"] == f"{mount['mountPath']}/config.yaml", "--config", flags["config"])
    expect("config.yaml" in map["data"], "the ConfigMap has no config.yaml")
    env = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in rendered.container["env"]}
    expect(env == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace", "POD_UID": "metadata.uid"}, "environment", env)

    labels, ports = rendered.pod["metadata"]["labels"], {port["name"]: port["containerPort"] for port in rendered.container["ports"]}
    expect(ports == {"webhook": 8443, "stream": 8444, "metrics": 8080, "probes": 8081}, "ports of the container", ports)
    served = {port["name"]: (port["port"], ports.get(port["targetPort"])) for port in rendered.service["spec"]["ports"]}
    expect(served == {"webhook": (443, 8443), "stream": (8444, 8444), "metrics": (8080, 8080)}, "ports of the Service", served)
    for probe in ("livenessProbe", "readinessProbe"):
        expect(ports.get(rendered.container[probe]["httpGet"]["port"]) == 8081, "port of the", probe)

    selectors = [("Service", {"matchLabels": rendered.service["spec"]["selector"]}), ("Deployment", rendered.deployment["spec"]["selector"])]
    selectors += [("PodDisruptionBudget", one["spec"]["selector"]) for one in rendered.all("PodDisruptionBudget")]
    selectors += [("NetworkPolicy", one["spec"]["podSelector"]) for one in rendered.all("NetworkPolicy") if one["metadata"]["name"] == rendered.operator]
    selectors += [("topology spread", one["labelSelector"]) for one in rendered.pod["spec"]["topologySpreadConstraints"]]
    for what, selector in selectors:
        expect(selector.get("matchLabels"), "the selector of the", what, "is empty")
        expect(selects(selector, labels), "the selector of the", what, "does not select the operator's pods")
        expect(not selects(selector, rendered.check["metadata"]["labels"]), "the selector of the", what, "selects the pod of the test")

    args = rendered.check["spec"]["containers"][0]["args"]
    expect(args == ["check", f"--service={rendered.operator}", f"--namespace={rendered.namespace}"], "arguments of the test", args)
    expect(rendered.check["metadata"]["annotations"]["helm.sh/hook"] == "test", "the pod of the test is no test")
    account = rendered.pod["spec"]["serviceAccountName"]
    for one in rendered.all("ServiceAccount"):
        expect(one["metadata"]["name"] == account, "the service account is not that of the Deployment")


def configuration(rendered):
    """config.yaml has the keys that the operator knows, with values of their types: it refuses any other."""
    config = rendered.config()
    shape = {
        "sidecar": {"image": str, "imagePullPolicy": str, "resources": {"requests": dict, "limits": dict}, "logLevel": str, "tokenExpirationSeconds": int, "scrapeAnnotations": bool,
                    "ports": {"admin": int, "proxy": int, "metrics": int, "capture": int}},
        "capture": {"method": str, "userRange": str, "privateCidrs": list},
        "protectedNamespaces": list,
        "certificates": {"caLife": str, "leafLife": str},
    }

    def compare(value, shape, path):
        if isinstance(shape, type):
            expect(isinstance(value, shape), path, "is", repr(value))
        elif expect(isinstance(value, dict) and set(value) == set(shape), path, "has", value):
            for key in shape:
                compare(value[key], shape[key], f"{path}.{key}")

    # Left out where there are none.
    for section, key, kind in (("sidecar", "credentialsSecret", str), ("sidecar", "tokenAudiences", list), ("capture", "extraRoots", str)):
        if key in config[section]:
            shape[section][key] = kind
    if store := config.pop("sharedStore", None):
        certificate = {"secret": str, "service": str}
        shape_of_store = {"url": str, "username": str, "passwordFile": str, "caFile": str, "certificate": certificate, "prefix": str, "leases": bool, "budgetMilliseconds": int}
        optional = {key for key in ("username", "passwordFile", "caFile", "certificate") if key not in store}
        compare(store, {key: kind for key, kind in shape_of_store.items() if key not in optional}, "config.sharedStore")
    if webhooks := config.pop("webhooks", None):
        clients = {"clientCaFile": str, "clientNames": list}
        compare(webhooks, {key: kind for key, kind in clients.items() if key in webhooks or key == "clientCaFile"}, "config.webhooks")
        mounts = {mount["name"]: mount["mountPath"] for mount in rendered.container["volumeMounts"]}
        [volume] = [volume["configMap"] for volume in rendered.pod["spec"]["volumes"] if volume["name"] == "client-ca"]
        files = [f"{mounts['client-ca']}/{item['path']}" for item in volume["items"]]
        expect(files == [webhooks["clientCaFile"]] and not volume.get("optional"), "the authorities of API servers are not mounted", files)
    compare(config, shape, "config")
    for kind in ("requests", "limits"):
        for resource, quantity in config["sidecar"]["resources"][kind].items():
            expect(isinstance(quantity, str), "the sidecar's", kind, resource, "is no string:", repr(quantity))
    expect(set(PROTECTED) <= set(config["protectedNamespaces"]), "protectedNamespaces", config["protectedNamespaces"])


def webhooks(rendered):
    """The webhooks match no pods of protected namespaces, and all others that opted in exactly once."""
    pods, checked = [], []
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        for hook in rendered.one(kind)["webhooks"]:
            name, client = hook["name"], hook["clientConfig"]
            expect("caBundle" not in client, name, "has a caBundle, which is the operator's to write")
            service = client["service"]
            expect(service["name"] == rendered.operator and service["namespace"] == rendered.namespace, name, "asks", service)
            expect(service["port"] in [port["port"] for port in rendered.service["spec"]["ports"] if port["name"] == "webhook"], name, "asks port", service["port"])
            expect(hook["failurePolicy"] == "Fail", name, "fails open")
            expect(hook["sideEffects"] == "None", name, "has side effects")
            expect(hook["admissionReviewVersions"] == ["v1"], name, "speaks", hook["admissionReviewVersions"])
            expect(1 <= hook["timeoutSeconds"] <= 30, name, "waits", hook["timeoutSeconds"])
            [rule] = hook["rules"]
            if kind == "MutatingWebhookConfiguration":
                pods.append(hook)
                expect(service["path"] == "/inject", name, "asks", service["path"])
                expect(hook["reinvocationPolicy"] == "IfNeeded", name, "is not invoked again")
                expect(rule == {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "Namespaced"}, name, "has the rule", rule)
            elif service["path"] == "/check":
                checked.append(hook)
                debug = name.startswith("debug.")
                what = {"operations": ["UPDATE"], "resources": ["pods/ephemeralcontainers"]} if debug else {"operations": ["CREATE"], "resources": ["pods"]}
                expect(rule == {"apiGroups": [""], "apiVersions": ["v1"], "scope": "Namespaced"} | what, name, "has the rule", rule)
                expect(len(hook.get("matchConditions", [])) == debug, name, "has the conditions", hook.get("matchConditions"))
            else:
                expect(service["path"] == "/validate", name, "asks", service["path"])
                expect(rule["apiGroups"] == ["toolweir.dev"] and rule["resources"] == ["mcppolicies", "mcpclusterpolicies"], name, "has the rule", rule)
                expect(sorted(rule["operations"]) == ["CREATE", "UPDATE"], name, "has the rule", rule)

    protected = [*PROTECTED, rendered.namespace, *rendered.config()["protectedNamespaces"]]
    values = [None, "enabled", "disabled", "Enabled", ""]
    for label, hooks in ((INJECT, pods), (CAPTURE, checked)):
        what = label.rpartition("/")[2].replace("capture", "check")
        for namespace, of_namespace, of_pod in itertools.product([*protected, "agents", "kube-systems"], values, values):
            labels = {"kubernetes.io/metadata.name": namespace} | ({label: of_namespace} if of_namespace is not None else {})
            pod = {"app": "agent"} | ({label: of_pod} if of_pod is not None else {})
            seen = [hook["name"] for hook in hooks if selects(hook.get("namespaceSelector"), labels) and selects(hook.get("objectSelector"), pod)]
            should = []
            # The injector also sees pods that opted out, and lets them through.
            if namespace not in protected and of_namespace == "enabled" and (label == INJECT or of_pod != "disabled"):
                should.append(f"namespaces.{what}.toolweir.dev")
            elif namespace not in protected and of_namespace != "enabled" and of_pod == "enabled":
                should.append(f"pods.{what}.toolweir.dev")
            # Ephemeral containers are looked at whatever the labels are.
            if namespace not in protected and label == CAPTURE:
                should.append("debug.check.toolweir.dev")
            expect(seen == should, f"a pod with {label}={of_pod} in namespace {namespace} with {label}={of_namespace} is seen by {seen}")


def rbac(rendered):
    """The roles equal rbac.txt, are bound only to the operator's account, and each verb has a comment with its use."""
    there = set()
    for kind, where in (("ClusterRole", "cluster"), ("Role", "namespace")):
        [role] = [role for role in rendered.all(kind) if role["metadata"]["name"] == rendered.operator]
        for rule in role["rules"]:
            expect(set(rule) <= {"apiGroups", "resources", "resourceNames", "verbs"}, kind, "has a rule with", sorted(rule))
            for group, resource, name in itertools.product(rule["apiGroups"], rule["resources"], rule.get("resourceNames", ["*"])):
                base, _, sub = resource.partition("/")
                full = (f"{base}.{group}" if group else base) + (f"/{sub}" if sub else "")
                there.add((where, full, name, " ".join(sorted(rule["verbs"]))))
        binding = rendered.one(f"{kind}Binding")
        expect(binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role["metadata"]["name"]}, "the binding of the", kind)
        account = {"kind": "ServiceAccount", "name": rendered.pod["spec"]["serviceAccountName"], "namespace": rendered.namespace}
        expect(binding["subjects"] == [account], "the", kind, "is given to", binding["subjects"])
    lines = (ROOT / "tests/chart/rbac.txt").read_text().splitlines()
    # What a line needs, if it does not always hold.
    only = {"?tls": "certificate" in rendered.config().get("sharedStore", {}), "?approvals": "approvals" in rendered.flags()}
    lines = [line.partition(" ")[2] if line.startswith("?") else line for line in lines if only.get(line.partition(" ")[0], True)]
    should = {tuple(line.split(None, 3)) for line in lines if line and not line.startswith("#")}
    should = {(where, what, name.replace("toolweir", rendered.fullname, 1), verbs) for where, what, name, verbs in should}
    for line in sorted(there - should):
        expect(False, "not in rbac.txt:", *line)
    for line in sorted(should - there):
        expect(False, "only in rbac.txt:", *line)
    for number, line in enumerate((ROOT / "charts/toolweir/templates/rbac.yaml").read_text().splitlines(), 1):
        if re.match(r"  - [a-z*\"]+( |$)", line):
            expect(re.match(r"  - [a-z]+ +# \S", line), f"templates/rbac.yaml:{number}: a verb without its use:", line.strip())


def store(rendered):
    """The operator mounts the Secret files that its configuration names; the chart's store is reachable, and closed to others."""
    config = rendered.config().get("sharedStore", {})
    volumes = {volume["name"]: volume for volume in rendered.pod["spec"]["volumes"]}
    files = {}
    for mount in rendered.container["volumeMounts"]:
        secret = volumes[mount["name"]].get("secret")
        if secret and mount["name"] != "approvals-webhook":
            expect(secret["optional"] is True, "an operator would wait for the Secret", secret["secretName"])
            expect(mount["readOnly"] is True, mount["name"], "may be written")
            files |= {f"{mount['mountPath']}/{item['path']}": (secret["secretName"], item["key"]) for item in secret["items"]}
    expect(set(files) == {config[key] for key in ("passwordFile", "caFile") if key in config}, "files of the store:", files, config)
    mounted = [volume["secret"]["secretName"] for name, volume in volumes.items() if "secret" in volume and name != "approvals-webhook"]
    for object in rendered.objects:
        if object["kind"] not in ("Secret", "Deployment", "StatefulSet"):
            continue
        for container in object.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            expect(not any("secretKeyRef" in (one.get("valueFrom") or {}) for one in container.get("env", [])), "a password is in the environment of", container["name"])
    if not rendered.store:
        expect(not rendered.all("Secret"), "Secrets that nothing needs")
        return
    name, labels = f"{rendered.fullname}-store", rendered.store["spec"]["template"]["metadata"]["labels"]
    certificate = config.get("certificate")
    expect(config["url"] == f"{'rediss' if certificate else 'redis'}://{name}.{rendered.namespace}.svc:6379", "the operator asks", config["url"])
    [service] = [service for service in rendered.all("Service") if service is not rendered.service]
    expect(service["metadata"]["name"] == rendered.store["metadata"]["name"] == rendered.store["spec"]["serviceName"] == name, "the store's name")
    pod = rendered.store["spec"]["template"]["spec"]
    [container] = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    expect([(port["port"], ports.get(port["targetPort"])) for port in service["spec"]["ports"]] == [(6379, 6379)], "ports of the store")
    for what, selector in (("Service", {"matchLabels": service["spec"]["selector"]}), ("StatefulSet", rendered.store["spec"]["selector"])):
        expect(selects(selector, labels), "the", what, "does not select the store")
        expect(not selects(selector, rendered.pod["metadata"]["labels"]), "the", what, "of the store selects operators")
    expect(not selects({"matchLabels": rendered.service["spec"]["selector"]}, labels), "the operator's Service selects the store")
    expect(rendered.store["spec"]["replicas"] == 1, "the store has replicas that count apart")
    secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    secret = secrets.pop("password")
    expect(certificate in (None, {"secret": f"{name}-tls", "service": name}), "the operator's certificate is for", certificate)
    expect(secrets == ({"tls": {"secretName": certificate["secret"]}} if certificate else {}), "the store has the Secrets", secrets)
    expect([secret["secretName"]] == mounted, "operator and store do not have the same password")
    expect(files[config["passwordFile"]] == (secret["secretName"], secret["items"][0]["key"]), "operator and store do not have the same password")
    for made in rendered.all("Secret"):
        expect(made["metadata"]["name"] == secret["secretName"] and set(made["data"]) == {secret["items"][0]["key"]}, "the Secret that is made is not the one that is used")
    for policy in rendered.all("NetworkPolicy"):
        if policy["metadata"]["name"] == rendered.operator:
            [out] = [rule for rule in policy["spec"]["egress"] if rule.get("ports") == [{"port": 6379}]]
            expect(selects(out["to"][0]["podSelector"], labels), "the operator may not reach the store")
        else:
            expect(selects(policy["spec"]["podSelector"], labels), "the NetworkPolicy does not select the store")
            expect(policy["spec"]["egress"] == [] and "Egress" in policy["spec"]["policyTypes"], "the store may connect to others")
            expect(policy["spec"]["ingress"] == [{"ports": [{"port": 6379}], "from": [{"namespaceSelector": {}}]}], "who reaches the store:", policy["spec"]["ingress"])
    expect(len(rendered.all("NetworkPolicy")) in (0, 2), "NetworkPolicies of one of the two alone")
    settings = container["args"][0]
    for setting in ("appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction", "requirepass"):
        expect(setting in settings, "the store does without", setting)
    spoken = {line.strip() for line in settings.splitlines()} & {"port 0", "port 6379", "tls-port 6379", "tls-auth-clients no"}
    expect(spoken == ({"port 0", "tls-port 6379", "tls-auth-clients no"} if certificate else {"port 6379"}), "the store speaks", spoken)
    probe = container["readinessProbe"]["exec"]["command"][-1]
    expect(("--tls" in probe) == bool(certificate), "the store is asked whether it is ready with", probe)
    data = [claim["metadata"]["name"] for claim in rendered.store["spec"].get("volumeClaimTemplates", [])]
    data += [volume["name"] for volume in pod["volumes"] if "emptyDir" in volume]
    expect([mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in data] == ["/data"], "the store's file is nowhere")


def images(rendered):
    """Each image has a fixed tag or a digest."""
    containers = [*rendered.pod["spec"]["containers"], *rendered.check["spec"]["containers"]]
    containers += rendered.store["spec"]["template"]["spec"]["containers"] if rendered.store else []
    for image in [container["image"] for container in containers] + [rendered.config()["sidecar"]["image"]]:
        by_tag = re.fullmatch(r"[^@]+:(?!latest$)[A-Za-z0-9_][A-Za-z0-9._-]*", image.rpartition("/")[2])
        by_digest = re.fullmatch(r"[^@]+@sha256:[0-9a-f]{64}", image)
        expect(by_tag or by_digest, image, "is not pinned")
    expect(not [object for object in rendered.objects if object["kind"] in ("Job", "DaemonSet", "CronJob")], "objects whose images are not looked at")


def restricted(rendered):
    """The pods meet the restricted Pod Security Standard, and write nothing to their image."""
    of_store = [("store", rendered.store["spec"]["template"])] if rendered.store else []
    for name, pod in (("operator", rendered.pod), ("test", rendered.check), *of_store):
        spec, of_pod = pod["spec"], pod["spec"].get("securityContext", {})
        for host in ("hostNetwork", "hostPID", "hostIPC"):
            expect(not spec.get(host), name, "has", host)
        allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
        for volume in spec.get("volumes", []):
            expect(set(volume) - {"name"} <= allowed, name, "has a volume of", volume)
        expect(not of_pod.get("sysctls") and not of_pod.get("supplementalGroups"), name, "has sysctls or groups")
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            own = container.get("securityContext", {})
            both = of_pod | own
            expect(both.get("runAsNonRoot") is True, name, "may run as root")
            expect(both.get("runAsUser", 0) != 0, name, "has no user, or root")
            expect(both.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"), name, "has no seccomp profile")
            expect(own.get("allowPrivilegeEscalation") is False, name, "may escalate")
            expect(not own.get("privileged"), name, "is privileged")
            expect(own.get("capabilities") == {"drop": ["ALL"]}, name, "has capabilities", own.get("capabilities"))
            expect(own.get("readOnlyRootFilesystem") is True, name, "may write to its image")
            expect(own.get("procMount", "Default") == "Default", name, "has its own /proc")
            expect(not any("hostPort" in port for port in container.get("ports", [])), name, "has a port of the host")
    for _, pod in of_store:
        expect(pod["spec"]["automountServiceAccountToken"] is False, "the store has a token, which it does not need")
    expect(rendered.check["spec"]["automountServiceAccountToken"] is False, "the test has a token, which it does not need")
    for account in rendered.all("ServiceAccount"):
        expect(account["automountServiceAccountToken"] is False, "pods that happen to use the account get its token")


def approvals(rendered, how):
    """The policy that checks who decides is the one that the operator looks for, and the approvers' role is bound to nobody; or there are
    none of them. `on` or `off`."""
    flags, name = rendered.flags(), f"{rendered.fullname}-approvals"
    guards = [one for kind in ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding") for one in rendered.all(kind) if one["metadata"]["name"] == name]
    roles = [role for role in rendered.all("ClusterRole") if role["metadata"]["name"] != rendered.operator]
    secrets = {volume["name"]: volume["secret"] for volume in rendered.pod["spec"]["volumes"] if volume["name"] == "approvals-webhook"}
    if how == "off":
        return expect(not (guards or roles or secrets or [flag for flag in flags if flag.startswith("approvals")]), "approvals are off, and there are", guards, roles, secrets)
    expect(flags.get("approvals") == "on" and flags["approvals-guard"] == name, "the operator's flags are", flags)
    guard, binding = guards
    expect(binding["spec"] == {"policyName": name, "validationActions": ["Deny"]}, "the binding is", binding["spec"])
    expect(guard["spec"]["failurePolicy"] == "Fail", "the policy fails open")
    account = f"system:serviceaccount:{rendered.namespace}:{rendered.pod['spec']['serviceAccountName']}"
    [operator] = [variable["expression"] for variable in guard["spec"]["variables"] if variable["name"] == "operator"]
    expect(operator == f"request.userInfo.username == '{account}'", "the policy takes for the operator", operator)
    [most] = re.findall(r"ASKING_POLICIES: usize = (\d+);", (ROOT / "crds/src/bounds.rs").read_text())
    checked = [number for one in guard["spec"]["validations"] for number in re.findall(r"asking\.size\(\) <= (\d+) ", one["expression"])]
    expect(checked == [str(number) for number in range(int(most))], "of the policies that ask, these are checked:", checked)
    [role] = roles
    expect(role["metadata"]["name"] == f"{rendered.fullname}-approver" and "aggregationRule" not in role, "the approvers' role is", role["metadata"])
    expect(not any(label.startswith("rbac.authorization.k8s.io/") for label in role["metadata"]["labels"]), "another role includes the approvers'")
    bound = [one["metadata"]["name"] for kind in ("ClusterRoleBinding", "RoleBinding") for one in rendered.all(kind) if one["roleRef"]["name"] == role["metadata"]["name"]]
    expect(not bound, "the approvers' role is bound by", bound)
    rights = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    should = {"mcpapprovals": "get list watch", "mcpapprovals/status": "get patch update", "mcppolicies": "approve", "mcpclusterpolicies": "approve"}
    expect(rights == {(resource, verb) for resource, verbs in should.items() for verb in verbs.split()}, "approvers may", rights)
    told = {flag: flags[flag] for flag in ("approvals-webhook-url-file", "approvals-webhook-secret-file") if flag in flags}
    mounts = {mount["name"]: mount["mountPath"] for mount in rendered.container["volumeMounts"]}
    files = [f"{mounts[volume]}/{item['path']}" for volume, secret in secrets.items() for item in secret["items"]]
    expect(files == list(told.values()), "the files of the webhook are", files, "and its flags", told)
    expect(all(secret["optional"] is True for secret in secrets.values()), "an operator would wait for the Secret of the webhook")


def crds(rendered, how):
    """The CRDs equal crds/generated except for labels and annotations, and are kept or not: `keep`, `drop` or `none`."""
    there = {crd["metadata"]["name"]: crd for crd in rendered.all("CustomResourceDefinition")}
    generated = [crd for path in sorted((ROOT / "crds/generated").glob("*.yaml")) for crd in load(path)]
    expect(generated, "there is nothing in crds/generated")
    expect(set(there) == ({crd["metadata"]["name"] for crd in generated} if how != "none" else set()), "CRDs:", sorted(there))
    for crd in generated if there else []:
        name, rest = crd["metadata"]["name"], lambda object: {key: value for key, value in object.items() if key != "metadata"}
        if expect(name in there, name, "is missing"):
            meta = there[name]["metadata"]
            expect(rest(there[name]) == rest(crd), name, "is not that of crds/generated")
            expect(crd["metadata"].get("labels", {}).items() <= meta["labels"].items(), name, "lost labels")
            expect(meta.get("annotations", {}) == ({"helm.sh/resource-policy": "keep"} if how == "keep" else {}), name, "annotations", meta.get("annotations"))


def relabel(rules, labels):
    """Applies relabel_config to a target as Prometheus does; returns None if the target is dropped."""
    labels = dict(labels)
    for rule in rules:
        value = ";".join(labels.get(name, "") for name in rule.get("sourceLabels", []))
        found = re.fullmatch(str(rule.get("regex", "(.*)")), value, re.S)
        action = rule.get("action", "replace")
        if action == "keep" and not found or action == "drop" and found:
            return None
        if action == "replace" and found:
            labels[rule["targetLabel"]] = found.expand(re.sub(r"\$\{?(\d)\}?", r"\\\1", str(rule.get("replacement", "$1")))) if found.re.groups else str(rule["replacement"])
    return labels


def plain_rules(job):
    """Returns the relabelings of docs/prometheus.yaml with the keys of a PodMonitor."""
    jobs = {one["job_name"]: one["relabel_configs"] for one in load(ROOT / "docs/prometheus.yaml")[0]["scrape_configs"]}
    names = {"source_labels": "sourceLabels", "target_label": "targetLabel"}
    return [{names.get(key, key): value for key, value in rule.items()} for rule in jobs[job]]


def monitoring(rendered, how):
    """The monitors select only sidecars and operator; alerts and dashboards equal the files. `on`, `off` or `annotations`."""
    kinds = {kind: rendered.all(kind) for kind in ("PodMonitor", "ServiceMonitor", "PrometheusRule")}
    boards = [map for map in rendered.all("ConfigMap") if map["metadata"]["name"] != rendered.operator]
    wanted = {"on": (1, 1, 1, 2), "off": (0, 0, 0, 0), "annotations": (0, 0, 1, 2)}[how]
    counts = (*(len(found) for found in kinds.values()), len(boards))
    if not expect(counts == wanted, "PodMonitors, ServiceMonitors, PrometheusRules, dashboards:", counts):
        return
    annotations = {key: value for key, value in rendered.pod["metadata"]["annotations"].items() if key.startswith("prometheus.io/")}
    told = {"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.io/path": "/metrics"}
    expect(annotations == (told if how == "annotations" else {}), "annotations of the operator's pods:", annotations)
    expect(rendered.config()["sidecar"]["scrapeAnnotations"] == (how == "annotations"), "the sidecars are to be annotated, or not")

    for monitor in kinds["PodMonitor"]:
        expect(monitor["spec"]["namespaceSelector"] == {"any": True} and monitor["spec"]["selector"] == {}, "the PodMonitor does not look at every pod")
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        injection = (ROOT / "operator/src/inject/sidecar.rs").read_text()
        expect(f'{{"name": "{endpoint["port"]}", "containerPort": ports.metrics' in injection, "sidecars have no port", endpoint["port"])
        [container] = re.findall(r'SIDECAR_CONTAINER: &str = "(.+)"', (ROOT / "crds/src/sidecar.rs").read_text())
        meta = "__meta_kubernetes_pod_"
        for pod, owner, hash, workload in (
            ("agent", None, False, "agent"),
            ("social-agent-7d9c5b8f6d-x2x7k", ("ReplicaSet", "social-agent-7d9c5b8f6d"), True, "social-agent"),
            ("by-hand-1-abcde", ("ReplicaSet", "by-hand-1"), False, "by-hand-1"),
            ("agents-0", ("StatefulSet", "agents"), False, "agents"),
            ("watch-abcde", ("DaemonSet", "watch"), False, "watch"),
            ("nightly-29383920-abcde", ("Job", "nightly-29383920"), False, "nightly"),
            ("once-abcde", ("Job", "once"), False, "once"),
        ):
            labels = {f"{meta}name": pod, f"{meta}container_name": container, "job": "x"}
            if owner:
                labels |= {f"{meta}controller_kind": owner[0], f"{meta}controller_name": owner[1]}
            if hash:
                labels[f"{meta}labelpresent_pod_template_hash"] = "true"
            target = relabel(endpoint["relabelings"], labels)
            if expect(target, "pod", pod, "is not scraped"):
                expect((target["job"], target.get("workload")) == ("toolweir-sidecar", workload), "pod", pod, "is", target["job"], target.get("workload"))
            expect(relabel(endpoint["relabelings"], labels | {f"{meta}container_name": "agent"}) is None, "a port of the agent's own is scraped")
            # docs/prometheus.yaml, for clusters without PodMonitors, must do the same.
            plain = relabel(plain_rules("toolweir-sidecar"), labels | {f"{meta}container_port_name": endpoint["port"], f"{meta}phase": "Running"})
            expect(plain and plain["workload"] == workload and plain["pod"] == pod, "docs/prometheus.yaml: pod", pod, "is", plain)
    operator = {f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9_]', '_', key)}": value for key, value in rendered.pod["metadata"]["labels"].items()}
    ports = [port["name"] for port in rendered.container["ports"]]
    found = [port for port in ports if relabel(plain_rules("toolweir-operator"), operator | {"__meta_kubernetes_pod_container_port_name": port})]
    expect(found == ["metrics"], "docs/prometheus.yaml: of the operator's ports it scrapes", *found)
    for monitor in kinds["ServiceMonitor"]:
        expect(monitor["spec"]["namespaceSelector"] == {"matchNames": [rendered.namespace]}, "the ServiceMonitor looks elsewhere")
        expect(selects(monitor["spec"]["selector"], rendered.service["metadata"]["labels"]), "the ServiceMonitor does not select the Service")
        [endpoint] = monitor["spec"]["endpoints"]
        expect(endpoint["port"] in [port["name"] for port in rendered.service["spec"]["ports"] if port["targetPort"] == "metrics"], "the Service has no port", endpoint["port"])
        expect(relabel(endpoint["relabelings"], {})["job"] == "toolweir-operator", "the operator's job")
    for rule in kinds["PrometheusRule"]:
        text = (ROOT / "charts/toolweir/alerts.yaml").read_text()
        links = {one["annotations"]["runbook_url"] for group in rule["spec"]["groups"] for one in group["rules"] if "alert" in one}
        [base] = {link.partition("#")[0] for link in links}
        expect(rule["spec"] == yaml.load(re.sub(r"https://\S+/alerts\.md", base, text), Strict), "the PrometheusRule is not alerts.yaml")
    files = {path.name: path.read_text() for path in (ROOT / "charts/toolweir/dashboards").glob("*.json")}
    there = {key: value for board in boards for key, value in board["data"].items()}
    expect(there == (files if boards else {}), "the dashboards are not those of the files:", *there)


def main():
    checks = {check.__name__: check for check in (parses, names, configuration, webhooks, rbac, store, approvals, images, restricted, crds, monitoring)}
    if sys.argv[1:] == ["--list"]:
        return print(*checks)
    if len(sys.argv) < 4 or sys.argv[1] not in checks:
        sys.exit(f"usage: rendered.py {'|'.join(checks)} FILE NAMESPACE [WORD]")
    checks[sys.argv[1]](Rendered(sys.argv[2], sys.argv[3]), *sys.argv[4:])
    sys.exit("\n".join(problems) or 0)


if __name__ == "__main__":
    main()
