"""The parts of a scenario: the program in its control group, honest clients, and what is required of both."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from cgroup import MIB, Cgroup

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "shared"))
from processes import Broken, Checks, NotInTime, free_port, verdict, wait_until, with_second_try  # noqa: E402, F401

TICKS = os.sysconf("SC_CLK_TCK")


def listens(port):
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


class Processes:
    """Processes that end with this object. Their output is in files of one folder."""

    def __init__(self, folder):
        self.dir, self.started = folder, []
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def start(self, name, command, **options):
        with open(self.dir / f"{name}.log", "ab") as log:
            options = {"stdin": subprocess.DEVNULL, "stdout": log} | options
            process = subprocess.Popen([str(word) for word in command], stderr=log, **options)
        self.started.append(process)
        return process

    def said(self, name, lines=5):
        return " | ".join((self.dir / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])

    def end(self):
        for process in reversed(self.started):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.started):
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.started = []


class Subject:
    """The program under attack, in its own control group."""

    def __init__(self, processes, name, mib, command, **options):
        self.name, self.mib, self.processes = name, mib, processes
        self.cgroup = Cgroup(name, mib * MIB)
        self.process = processes.start(name, [*self.cgroup.enter, *command], **options)
        self.own, self.over = 0, threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def _watch(self):
        """Samples the peak of the memory that the kernel cannot drop. Peaks of less than some milliseconds may be missed."""
        while not self.over.wait(0.005):
            self.own = max(self.own, self.cgroup.own())

    def alive(self):
        return self.process.poll() is None

    def cpu(self):
        """Seconds on a CPU so far, of all its threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def how(self):
        if self.alive():
            return "it runs"
        code = self.process.returncode
        return f"it ended with {signal.Signals(-code).name if code < 0 else code}"

    def end(self):
        self.over.set()
        self.watch.join()
        if self.alive():
            self.process.kill()
        self.process.wait()
        wait_until("the control group is empty", lambda: self._remove(), 5)

    def _remove(self):
        self.cgroup.remove()
        return True


class Honest:
    """Honest clients, which run as long as the context."""

    def __init__(self, scenario, *what):
        self.scenario, self.what, self.seen = scenario, what, {}

    def __enter__(self):
        command = [sys.executable, HERE / "honest.py", *self.what]
        self.process = self.scenario.processes.start("honest", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, kind, *_):
        try:
            out, _ = self.process.communicate(b"", 40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise NotInTime("the honest client did not end") from None
        if not kind:
            self.seen = json.loads(out)

    def judge(self, limits, names, may_fail=0, once=()):
        """Requires that each client was answered within its limit, in seconds. One in ten requests of the last `may_fail` clients may
        fail: a port with too many connections closes some of them, and these clients try again. Of the clients in `once`, who send
        so much that strangers may take their room meanwhile, one request at least must be answered."""
        for place, (what, most, name) in enumerate(zip(self.what, limits, names, strict=True)):
            seen = self.seen[what]
            count, (errors, which) = seen["count"], seen["errors"]
            failed = f"{errors} failed of {count + errors}: {'; '.join(which)}"
            tolerated = errors if name in once else count / 10 if len(names) - place <= may_fail else 0
            if not count or errors > tolerated:
                self.scenario.require(False, f"{name}: {failed}", f"answered within {most:g} s")
            else:
                text = f"{name}: at most {seen['worst'] * 1000:.0f} ms, median {seen['median'] * 1000:.0f} ms of {count}"
                self.scenario.in_time(seen["worst"] <= most, text + (f", {failed}" if errors else ""), f"<= {most:g} s")


class Scenario(Checks):
    def __init__(self, name, folder):
        super().__init__(name)
        self.lines, self.subjects = [], []
        self.processes = Processes(folder)

    def require(self, holds, figure, required):
        self.failed += not holds
        self._line("ok" if holds else "FAILED", f"{figure} (required: {required})")

    def tell(self, text):
        self._line("note", text)

    def _line(self, how, text):
        self.lines.append((how, text))
        print(f"{self.name}: {how}: {text}", flush=True)

    def subject(self, name, mib, command, **options):
        self.subjects.append(Subject(self.processes, name, mib, command, **options))
        return self.subjects[-1]

    def judge_memory(self, subject, more=""):
        """Requires that the program runs and that the kernel killed nothing for its memory."""
        time.sleep(0.1)
        alive, kills, peak = subject.alive(), subject.cgroup.kills(), subject.cgroup.peak() / MIB
        sockets = subject.cgroup.sockets() / MIB
        beside = f" ({subject.own / MIB:.1f} MiB its own)" + (f", {sockets:.1f} MiB of sockets" if sockets else "")
        fine = alive and not kills and peak <= subject.mib
        figure = f"{more}{peak:.1f} MiB at most{beside}"
        if not fine:
            figure += f"; {subject.how()}, {kills} killed for memory; it said: {self.processes.said(subject.name, 3)}"
        self.require(fine, figure, f"{subject.mib} MiB, nothing killed")
        return peak

    def end(self):
        self.processes.end()
        for subject in self.subjects:
            subject.end()
