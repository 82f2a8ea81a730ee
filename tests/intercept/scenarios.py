"""HTTPS of captured agents: real clients, real servers, and the sidecar between them."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "capture"))
from handshakes import scenario_handshakes  # noqa: E402
from keys import scenario_keys  # noqa: E402
from runner import main  # noqa: E402
from runtimes import scenario_runtimes  # noqa: E402
from sdk_clients import scenario_mcp  # noqa: E402
from server_certificates import scenario_certificates  # noqa: E402
from world import InterceptedPod  # noqa: E402

SCENARIOS = {
    "runtimes": scenario_runtimes,
    "mcp": scenario_mcp,
    "handshakes": scenario_handshakes,
    "server-certificate": scenario_certificates,
    "keys": scenario_keys,
}

if __name__ == "__main__":
    # Each scenario says which servers there are before its world begins.
    main(__doc__, SCENARIOS, InterceptedPod)
