#!/usr/bin/env python3
"""Runs the tests or the demo from a fresh checkout, with nothing but Debian's python3.

    python3 run.py test [arguments of pytest]
    python3 run.py demo [arguments of the demo]

Everything Python goes into .venv. `test` also installs missing servers with apt-get, if it may;
each step is printed before it is taken.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import servers

CHECKOUT = Path(__file__).resolve().parent
VENV = CHECKOUT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
IS_CI = os.environ.get("CI", "").lower() in {"1", "true"}
POLICY = Path("/usr/sbin/policy-rc.d")
SOURCES = Path("/etc/apt/sources.list.d")


def main() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit("ormcache needs Python 3.10 or newer.")
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if command == "test":
        return test(arguments)
    if command == "demo":
        return demo(arguments)
    print(__doc__)
    return 0 if command in {"-h", "--help"} else 2


def test(arguments: Sequence[str]) -> int:
    apt_install(missing_packages(), "for the tests")
    install_valkey()
    make_venv()
    install("test")
    if not install("test-mariadb", is_optional=True):
        say("mysqlclient could not be built: MariaDB will not be tested")
    options = ["--cov=ormcache"]
    if arguments:
        say("With arguments of its own, the run is not held to the coverage of all tests")
        options.append("--cov-fail-under=0")
    else:
        # Many tests wait for a lease to end or a server to start, so more than there are cores.
        options += ["--numprocesses=6", "--dist=worksteal"]
    return run([VENV_PYTHON, "-m", "pytest", *options, *arguments], check=False)


def demo(arguments: Sequence[str]) -> int:
    make_venv()
    install("demo")
    return run([VENV_PYTHON, "-m", "demo", *arguments], check=False)


# Debian packages.


def missing_packages() -> list[str]:
    """What the tests need from Debian and is not there."""
    packages = [*missing_venv_packages(), *servers.missing_programs(servers.REQUIRED).values()]
    if not is_installed("test-mariadb"):
        packages += missing_build_packages()
    return sorted(set(packages))


def missing_venv_packages() -> list[str]:
    """Debian keeps this part of Python's standard library in a package of its own."""
    return [] if importlib.util.find_spec("ensurepip") else [f"{PYTHON}-venv"]


def missing_build_packages() -> list[str]:
    """What compiling mysqlclient for this very Python takes."""
    packages = []
    if not shutil.which("gcc"):
        packages += ["gcc", "libc6-dev"]
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        packages.append(f"{PYTHON}-dev")
    if not shutil.which("pkg-config"):
        packages.append("pkg-config")
    if not has_mariadb_headers():
        packages.append("libmariadb-dev")
    return packages


def has_mariadb_headers() -> bool:
    question = ["pkg-config", "--exists", "libmariadb"]
    return bool(shutil.which("pkg-config")) and subprocess.call(question) == 0


def apt_install(packages: Sequence[str], purpose: str, *, is_optional: bool = True) -> None:
    if not packages:
        return
    become_root = how_to_become_root()
    if become_root is None or not shutil.which("apt-get"):
        advice = f"Missing {purpose}: apt-get install {' '.join(packages)}"
        if IS_CI or not is_optional:
            sys.exit(f"{advice}\nCannot do that here: it takes apt-get and root or sudo.")
        say(f"{advice}\nCannot do that here; what needs these will be skipped")
        return
    say(f"Missing {purpose}: {', '.join(packages)}")
    with no_services_started(become_root):
        failure = update_and_install(become_root, packages)
    if failure:
        if IS_CI or not is_optional:
            sys.exit("apt-get failed, see above.")
        say("apt-get failed; what needs these packages will be skipped")
    do_not_start_at_boot(become_root, packages)


def update_and_install(
    become_root: Sequence[str], packages: Sequence[str], options: Sequence[str] = ()
) -> int:
    apt = [*become_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *options]
    # A failing update may be about somebody else's repository.
    run([*apt, "update"], check=False)
    return run([*apt, "install", "-y", "--no-install-recommends", *packages], check=False)


def install_valkey() -> None:
    """Install the one server that the tests can do without, where that is possible."""
    package = servers.ValkeyServer.package
    if servers.is_installed(servers.ValkeyServer):
        return
    become_root = how_to_become_root()
    if become_root is None or not shutil.which("apt-get"):
        say(f"Optional: apt-get install {package}")
        return
    say(f"Missing, but optional: {package}")
    with no_services_started(become_root):
        if is_known_to_apt(package) or not debian_release():
            failure = update_and_install(become_root, [package])
        else:
            failure = install_from_backports(become_root, package)
    if failure:
        say(f"{package} could not be installed; its client will be tested with Redis")
    else:
        do_not_start_at_boot(become_root, [package])


def is_known_to_apt(package: str) -> bool:
    question = ["apt-cache", "show", "--no-all-versions", package]
    return subprocess.run(question, check=False, capture_output=True).returncode == 0


def install_from_backports(become_root: Sequence[str], package: str) -> int:
    """Install what this Debian has in its backports only; the sources of apt stay as they are."""
    suite = f"{debian_release()}-backports"
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    source = f"deb [signed-by={keys}] http://deb.debian.org/debian {suite} main\n"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as sources:
        # Without the machine's own, its lists would be removed. Root may be the only reader.
        run([*become_root, "cp", "-r", f"{SOURCES}/.", sources], check=False)
        Path(sources, "ormcache-backports.list").write_text(source)
        options = ["-o", f"Dir::Etc::SourceParts={sources}", "-t", suite]
        return update_and_install(become_root, [package], options)


def debian_release() -> str:
    """The code name of this Debian, or nothing if it is another system."""
    try:
        facts = platform.freedesktop_os_release()
    except OSError:
        return ""
    return facts.get("VERSION_CODENAME", "") if facts.get("ID") == "debian" else ""


def how_to_become_root() -> list[str] | None:
    """The beginning of a command that runs as root, or None."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    asks_for_a_password = subprocess.call(["sudo", "-n", "true"], stderr=subprocess.DEVNULL)
    return None if asks_for_a_password else ["sudo", "-n"]


@contextmanager
def no_services_started(become_root: Sequence[str]) -> Iterator[None]:
    """Let Debian's packages install their servers without starting them.

    The tests start their own; a policy-rc.d that is there already is put back afterwards.
    """
    kept = POLICY.with_name("policy-rc.d.ormcache-kept")
    had_policy = POLICY.exists()
    with tempfile.NamedTemporaryFile("w", suffix="-policy") as policy:
        policy.write("#!/bin/sh\nexit 101\n")
        policy.flush()
        if had_policy:
            run([*become_root, "mv", POLICY, kept])
        run([*become_root, "install", "-m", "755", policy.name, POLICY])
        try:
            yield
        finally:
            run([*become_root, "rm", POLICY])
            if had_policy:
                run([*become_root, "mv", kept, POLICY])


def do_not_start_at_boot(become_root: Sequence[str], packages: Sequence[str]) -> None:
    """Nobody asked for a system-wide server."""
    services = {
        "postgresql": "postgresql",
        "mariadb-server": "mariadb",
        "redis-server": "redis-server",
        "valkey-server": "valkey-server",
        "memcached": "memcached",
        "pgbouncer": "pgbouncer",
    }
    to_disable = [services[package] for package in packages if package in services]
    if to_disable and shutil.which("systemctl"):
        run([*become_root, "systemctl", "disable", "--quiet", *to_disable], check=False)


# The environment.


def make_venv() -> None:
    if VENV_PYTHON.exists() and venv_version() != sys.version:
        say(f"{VENV} is of another Python: making it anew")
        shutil.rmtree(VENV)
    if VENV_PYTHON.exists():
        return
    apt_install(missing_venv_packages(), "to make an environment", is_optional=False)
    run([sys.executable, "-m", "venv", "--clear", VENV])
    # The first pip that knows dependency groups.
    pip_install("--upgrade", "pip>=25.1")


def venv_version() -> str:
    question = [str(VENV_PYTHON), "-c", "import sys; print(sys.version, end='')"]
    return subprocess.run(question, check=False, capture_output=True, text=True).stdout


def install(group: str, *, is_optional: bool = False) -> bool:
    """Install ormcache and a dependency group of pyproject.toml, unless that is done."""
    if is_installed(group):
        return True
    try:
        pip_install("--editable", str(CHECKOUT), "--group", f"{CHECKOUT}/pyproject.toml:{group}")
    except subprocess.CalledProcessError:
        if IS_CI or not is_optional:
            sys.exit(f"pip could not install the group {group}, see above.")
        return False
    stamp(group).write_text(state())
    return True


def pip_install(*arguments: str) -> None:
    run([VENV_PYTHON, "-m", "pip", "install", "--quiet", *arguments])


def is_installed(group: str) -> bool:
    return stamp(group).exists() and stamp(group).read_text() == state()


def stamp(group: str) -> Path:
    return VENV / f"installed-{group}"


def state() -> str:
    """Changes whenever what is installed may have to change."""
    pyproject = (CHECKOUT / "pyproject.toml").read_bytes()
    return hashlib.sha256(pyproject + sys.version.encode()).hexdigest()


# Saying and doing.


def say(text: str) -> None:
    print(f"run.py: {text}", flush=True)


def run(command: Sequence[str | Path], *, check: bool = True) -> int:
    words = [str(word) for word in command]
    say(shlex.join(words))
    return subprocess.run(words, cwd=CHECKOUT, check=check).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"run.py: this failed, see above: {shlex.join(error.cmd)}")
    except KeyboardInterrupt:
        sys.exit(130)
