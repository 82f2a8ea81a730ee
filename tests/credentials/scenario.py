"""The record of a scenario: a line for each check, with figures."""


class Scenario:
    def __init__(self, name):
        self.name, self.failed, self.checks, self.took = name, 0, 0, 0.0

    def require(self, holds, figure, required):
        self.failed += not holds
        self.checks += 1
        print(f"{self.name}: {'ok' if holds else 'FAILED'}: {figure} (required: {required})", flush=True)
        return holds

    def tell(self, text):
        print(f"{self.name}: note: {text}", flush=True)
