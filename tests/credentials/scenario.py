"""The record of a scenario: a line for each check, with figures."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
from second_try import Checks  # noqa: E402


class Scenario(Checks):
    def __init__(self, name):
        super().__init__(name)
        self.checks, self.took = 0, 0.0

    def require(self, holds, figure, required):
        self.failed += not holds
        self.checks += 1
        print(f"{self.name}: {'ok' if holds else 'FAILED'}: {figure} (required: {required})", flush=True)
        return holds

    def tell(self, text):
        print(f"{self.name}: note: {text}", flush=True)
