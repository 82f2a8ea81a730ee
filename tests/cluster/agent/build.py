"""Writes the image of the test's agents and servers: this machine's Python with its standard library, the shared libraries that
they need, the MCP SDK, and the scripts beside this one. Nothing is mounted from the host, so that the strictest namespace takes it.

    build.py NAME OUT.tar VENV WORK [/path/in/image=FILE OR FOLDER]...

VENV is an environment with the SDK, WORK a folder for what is gathered; both may be kept. More files and programs may be added.
"""

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

name, out, venv, work = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
more = [word.split("=", 1) for word in sys.argv[5:]]
here = Path(__file__).resolve().parent
version = f"python{sys.version_info.major}.{sys.version_info.minor}"
SKIPPED = ("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages", "dist-packages", "__pycache__", "pip", "setuptools")


def copy(source, target):
    def skipped(folder, names):
        return [n for n in names if n in SKIPPED or n.startswith(("config-", "pip-", "setuptools-")) or n.endswith((".pyc", ".a"))]

    shutil.copytree(source, target, ignore=skipped, dirs_exist_ok=True)


def libraries(files):
    """The shared libraries of programs and libraries, by the path at which they are looked for."""
    found = {}
    said = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True).stdout
    for words in map(str.split, said.splitlines()):
        path = next((word for word in words if word.startswith("/") and not word.endswith(":")), None)
        if path:
            found[path] = os.path.realpath(path)
    return found


shutil.rmtree(work, ignore_errors=True)
python = work / "opt/python"
(python / "bin").mkdir(parents=True)
interpreter = Path(os.path.realpath(sys.executable))
shutil.copy(interpreter, python / "bin/python3")
copy(sysconfig.get_path("stdlib"), python / "lib" / version)
dynamic = Path(sysconfig.get_config_var("DESTSHARED") or "")
if dynamic.is_dir():
    copy(dynamic, python / "lib" / version / "lib-dynload")
copy(venv / "lib" / version / "site-packages", work / "opt/agent/packages")
programs = [python / "bin/python3"]
for path, source in more:
    target = work / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(source):
        shutil.copytree(source, target, symlinks=True)
    else:
        programs.append(shutil.copy(os.path.realpath(source), target))
needed = libraries([*programs, *work.rglob("*.so*")])
if "not found" in needed:
    sys.exit(f"build.py: {needed}")
for path, source in needed.items():
    if not path.startswith(str(work)):
        target = work / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
for script in [*here.glob("*.py"), *(here.parent.parent / "demo").glob("*.py")]:
    if script != Path(__file__).resolve():
        shutil.copy(script, work / "opt/agent" / script.name)
# Nothing can be written there when it runs, and compiling the SDK takes seconds at each start.
compileall.compile_dir(work, quiet=2, workers=0, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
environment = {
    "PATH": "/opt/python/bin",
    "PYTHONHOME": "/opt/python",
    "PYTHONPATH": "/opt/agent:/opt/agent/packages",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "LD_LIBRARY_PATH": ":".join(sorted({os.path.dirname(path) for path in needed})),
}
command = [sys.executable, str(here.parent / "image.py"), name, out]
command += [f"/{folder.name}={folder}" for folder in sorted(work.iterdir())]
command += ["--entrypoint", "/opt/python/bin/python3", "--user", "65532:65532"]
for variable, value in environment.items():
    command += ["--env", f"{variable}={value}"]
subprocess.run(command, check=True)
