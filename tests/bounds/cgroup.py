"""A control group of a certain size, of version 1 or 2 as the machine has it."""

import os
from pathlib import Path

MIB = 2**20


class NoCgroup(Exception):
    """None can be made here."""


class Cgroup:
    """A group whose processes may take so many bytes of memory, and no swap. `enter` is put before a command that runs in it."""

    def __init__(self, name, limit):
        self.limit = limit
        try:
            self.version, parent = _parent()
            self.dir = parent / f"toolweir-{name}-{os.getpid()}"
            self.dir.mkdir()
        except OSError as error:
            raise NoCgroup(f"{error}; {_HOW}") from error
        if self.version == 2:
            self._write("memory.max", limit)
            self._write("memory.swap.max", 0, there=False)
        else:
            self._write("memory.limit_in_bytes", limit)
            self._write("memory.swappiness", 0, there=False)
            self._write("memory.memsw.limit_in_bytes", limit, there=False)
            # Counted once there is a limit; beside the others, where version 2 counts it among them.
            self._write("memory.kmem.tcp.limit_in_bytes", 4 * limit, there=False)
        self.enter = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.dir / "cgroup.procs")]

    def _write(self, name, value, there=True):
        file = self.dir / name
        if there or file.exists():
            try:
                file.write_text(str(value))
            except OSError as error:
                raise NoCgroup(f"{file}: {error}; {_HOW}") from error

    def _read(self, name):
        return (self.dir / name).read_text()

    def peak(self):
        """The most bytes that were taken at once, those of files that were read and of the kernel for them included."""
        if self.version == 1:
            return int(self._read("memory.max_usage_in_bytes"))
        # Linux 5.19; before it, what is taken now.
        return int(self._read("memory.peak" if (self.dir / "memory.peak").exists() else "memory.current"))

    def own(self):
        """The bytes of processes now, without pages of files."""
        field = "anon" if self.version == 2 else "rss"
        return next(int(line.split()[1]) for line in self._read("memory.stat").splitlines() if line.split()[0] == field)

    def sockets(self):
        """The most bytes of sockets' buffers, where they are counted apart."""
        file = self.dir / "memory.kmem.tcp.max_usage_in_bytes"
        return int(file.read_text()) if file.exists() else 0

    def kills(self):
        """How many processes the kernel ended for want of memory."""
        lines = self._read("memory.events" if self.version == 2 else "memory.oom_control").splitlines()
        return next((int(line.split()[1]) for line in lines if line.split()[0] == "oom_kill"), 0)

    def remove(self):
        """For when its processes have ended."""
        self.dir.rmdir()


_HOW = (
    "the bounds are measured in a control group of their own: run this as root, where /sys/fs/cgroup can be written "
    "(in a container: one that is privileged)"
)


def _parent():
    """The version of the memory controller, and a folder in which groups can be made."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            return 1, Path(where)
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        where = Path(where)
        if kind == "cgroup2" and "memory" in (where / "cgroup.controllers").read_text().split():
            if "memory" not in (where / "cgroup.subtree_control").read_text().split():
                (where / "cgroup.subtree_control").write_text("+memory")
            return 2, where
    raise NoCgroup(f"this machine mounts no memory controller; {_HOW}")
