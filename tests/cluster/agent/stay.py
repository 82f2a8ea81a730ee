"""Runs a script as a pod's process, and waits afterwards, so that the pod and its sidecar can be inspected.

    stay.py SCRIPT [ARGUMENT]...
"""

import runpy
import signal
import sys
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
sys.argv = sys.argv[1:]
runpy.run_path(str(Path(__file__).parent / sys.argv[0]), run_name="__main__")
while True:
    signal.pause()
