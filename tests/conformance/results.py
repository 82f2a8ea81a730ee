"""Prints what a run of the conformance suite found, a line for each check: `results.py FOLDER`.

Left out are INFO entries: they are a log of requests and events, and how many there are depends on timing.
"""

import json
import re
import sys
from pathlib import Path

for file in sorted(Path(sys.argv[1]).glob("*/checks.json")):
    scenario = re.sub(r"-\d{4}-\d\d-\d\dT[\d-]+Z$", "", file.parent.name)
    for check in sorted((check["id"], check["status"]) for check in json.loads(file.read_text())):
        if check[1] != "INFO":
            print(scenario, *check)
