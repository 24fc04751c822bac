"""The old project of the tests, on Python 2.7: its environment and its processes.

`tests/south_project` is the project. It shares a database and a Redis with the tests.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent / "south_project"
PACKAGE = PROJECT.parent.parent / "ormcache" / "migrations_hooks" / "south"
REQUIREMENTS = ("Django==1.6.11", "South==1.0.2", "psycopg2-binary==2.8.6")
VIRTUALENV = "virtualenv==16.7.12"
"""The last of those that need nothing else on Python 2.7."""
SECONDS = 60
"""After so long, a process of the old project is taken for stuck."""


@functools.cache
def find_python() -> str | None:
    """Python 2.7, on PATH or under pyenv."""
    roots = [os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")]
    found = [shutil.which("python2.7")]
    for root in filter(None, roots):
        found += map(str, sorted(Path(root).glob("versions/2.7*/bin/python"), reverse=True))
    for candidate in filter(None, found):
        # A shim of pyenv is on PATH even where its version is switched off.
        question = [candidate, "-c", "import sys; print(sys.version_info[:2] == (2, 7))"]
        answer = subprocess.run(question, check=False, capture_output=True, text=True)
        if answer.stdout.strip() == "True":
            return candidate
    return None


# --- the environment -------------------------------------------------------------------------


def make_environment(directory: Path) -> Path:
    """The Python of an environment in `directory`, which is made if it is not there yet.

    Several processes may ask at once.
    """
    python27 = find_python()
    assert python27 is not None
    key = hashlib.sha256(repr((python27, VIRTUALENV, REQUIREMENTS)).encode()).hexdigest()[:12]
    environment = directory / key
    python = environment / "bin" / "python"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (environment / "complete").exists():
            shutil.rmtree(environment, ignore_errors=True)
            tools = directory / "tools"
            _pip([sys.executable, "-m", "pip"], "--no-deps", "--target", str(tools), VIRTUALENV)
            _run([python27, str(tools / "virtualenv.py"), "--quiet", str(environment)])
            _pip([str(python), "-m", "pip"], *REQUIREMENTS)
            (environment / "complete").touch()
        _install_package(environment, python)
    return python


def _install_package(environment: Path, python: Path) -> None:
    """What the environment is made for, as it is now."""
    sources = b"".join(path.read_bytes() for path in sorted(PACKAGE.glob("*.py")))
    state = hashlib.sha256(sources).hexdigest()
    stamp = environment / "package"
    if stamp.exists() and stamp.read_text() == state:
        return
    _pip([str(python), "-m", "pip"], "--force-reinstall", str(PACKAGE))
    stamp.write_text(state)


def _pip(pip: Sequence[str], *arguments: str) -> None:
    _run([*pip, "install", "--quiet", "--disable-pip-version-check", *arguments])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


# --- its processes ---------------------------------------------------------------------------


class Project:
    """The old project, with settings of the test's own."""

    def __init__(self, python: Path, directory: Path) -> None:
        self.python = python
        self.directory = directory
        self.databases: dict[str, Mapping[str, Any]] = {}
        self.ormcache_south: dict[str, Any] = {}
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, pauses: bool = False) -> "subprocess.Popen[str]":
        """Start `manage.py`; with `pauses` it stops at each point that the project names."""
        return self._spawn("manage.py", *arguments, pauses=pauses)

    def _spawn(self, *arguments: str, pauses: bool = False) -> "subprocess.Popen[str]":
        given = {"DATABASES": self.databases, "ORMCACHE_SOUTH": self.ormcache_south}
        environment = {**os.environ, "SOUTH_PROJECT": json.dumps(given)}
        # Neither the settings nor the coverage of the tests.
        for name in list(environment):
            if name.startswith(("COV", "DJANGO", "PYTHON")):
                del environment[name]
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        if pauses:
            environment["SOUTH_PAUSES"] = str(self.directory)
        process = subprocess.Popen(
            [str(self.python), *arguments],
            cwd=PROJECT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._running.append(process)
        return process

    def manage(self, *arguments: str, fails: bool = False) -> str:
        """Run `manage.py` to its end, and return what it prints."""
        return self.finish(self.start(*arguments), fails=fails)

    def finish(self, process: "subprocess.Popen[str]", *, fails: bool = False) -> str:
        output, _ = process.communicate(timeout=SECONDS)
        assert (process.returncode != 0) == fails, output
        return output

    def wait_for(self, pause: str, process: "subprocess.Popen[str]") -> None:
        """Return when the process is at the pause."""
        reached = self.directory / f"{pause}.reached"
        deadline = time.monotonic() + SECONDS
        while not reached.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the process does not come to the pause"
            time.sleep(0.01)

    def end(self, pause: str) -> None:
        (self.directory / f"{pause}.go").touch()

    def run(self, code: str) -> None:
        """Run Python code in a process that has no more than DJANGO_SETTINGS_MODULE."""
        lines = [
            "import os, sys",
            "sys.path.insert(0, os.getcwd())",
            "os.environ['DJANGO_SETTINGS_MODULE'] = 'settings'",
        ]
        self.finish(self._spawn("-c", "\n".join([*lines, code])))

    @contextlib.contextmanager
    def obeying(self, *, pauses: bool = False) -> Iterator["Obeying"]:
        """A process that runs what it is told to."""
        process = self.start("obey", pauses=pauses)
        yield Obeying(process)
        self.finish(process)

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate()


class Obeying:
    """`manage.py obey`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def send(self, code: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """What became of the code that was sent: "done", or its error."""
        assert self.process.stdout is not None
        lines = []
        stuck = threading.Timer(SECONDS, self.process.kill)
        stuck.start()
        try:
            for line in iter(self.process.stdout.readline, ""):
                with contextlib.suppress(ValueError):
                    return str(json.loads(line))
                # What South and ormcache_south have to say.
                lines.append(line)
        finally:
            stuck.cancel()
        raise AssertionError("the process ended:\n" + "".join(lines))

    def ask(self, code: str) -> str:
        self.send(code)
        return self.answer()

    def do(self, code: str) -> None:
        answer = self.ask(code)
        assert answer == "done", answer
