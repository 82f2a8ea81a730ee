"""Settings from the environment: how much is measured, and where things are."""

import os
from pathlib import Path


def number(name, default):
    return int(os.environ.get(name, default))


# How long pods and streams are watched while certificates live a minute. For real it is 600.
CERT_SECONDS = number("CERT_SECONDS", 90)
# Changes of a limit whose way into force is measured.
CHANGES = number("CHANGES", 50)
# Pods whose admission is measured.
ADMISSIONS = number("ADMISSIONS", 500)
# Agents that call as soon as they start.
FIRST_CALLS = number("FIRST_CALLS", 20)
# Simulated sidecars, and how many changes of their policy are measured.
SIDECARS = number("SIDECARS", 1000)
SIDECAR_CHANGES = number("SIDECAR_CHANGES", 5)

ROOT = Path(os.environ["E2E_ROOT"])
OUT = Path(os.environ["E2E_OUT"])
TARGET = Path(os.environ["TARGET"])
NODE_DIR = Path(os.environ.get("NODE_DIR", "/var/tmp/toolweir-node"))
IMAGE_TAG = os.environ.get("IMAGE_TAG", "e2e")

# Of the chart: names that the chart gives.
RELEASE, SYSTEM = "toolweir", "toolweir-system"
CHART = ROOT / "charts/toolweir"
OPERATOR, INJECTOR, VALIDATOR = "toolweir-operator", "toolweir-injector", "toolweir-policies"
STREAM_NAME = f"{OPERATOR}.{SYSTEM}.svc"
