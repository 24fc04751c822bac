"""The source distributions whose tests are run, from PyPI.

They are kept in `.suites` of the checkout, or where ORMCACHE_SUITES says.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]


class Source(NamedTuple):
    """A release of a project."""

    name: str
    version: str
    sha256: str | None = None
    """Of the archive; None to trust what the index says, which pip verifies."""


TREEBEARD = Source(
    "django-treebeard",
    "7.0.3",
    "eb25678a4e79bdcc315c3cf2158c33a8ade5f51cf4df220909abc603bbd62681",
)
SIMPLE_HISTORY = Source(
    "django-simple-history",
    "3.13.0",
    "ca3c1e4ccd5f16f45fbbef6015ee2a246465fd9bd924100df8e9dfb368c4f26c",
)


def folder() -> Path:
    """Where the sources are kept."""
    found = Path(os.environ.get("ORMCACHE_SUITES") or CHECKOUT / ".suites")
    found.mkdir(parents=True, exist_ok=True)
    return found


def unpacked(source: Source) -> Path:
    """The folder of a release, which is downloaded the first time."""
    place = folder() / f"{source.name}-{source.version}"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=folder()) as temporary:
            archive = _download(source, Path(temporary))
            with tarfile.open(archive) as members:
                members.extractall(Path(temporary) / "unpacked", filter="data")
            (content,) = (Path(temporary) / "unpacked").iterdir()
            _add_metadata(content, source.name)
            shutil.move(content, place)
    return place


def _add_metadata(content: Path, name: str) -> None:
    """Let importlib.metadata find the release where it lies: some ask for their own version."""
    metadata = content / f"{name.replace('-', '_')}.egg-info"
    metadata.mkdir(exist_ok=True)
    shutil.copy(content / "PKG-INFO", metadata)


def _download(source: Source, into: Path) -> Path:
    requirement = f"{source.name}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", source.name, "--dest", str(into)]
    if source.sha256:
        # Pip then asks for the hashes of everything it takes.
        listed = into / "requirements.txt"
        listed.write_text(f"{requirement} --hash=sha256:{source.sha256}\n")
        subprocess.run([*command, "--require-hashes", "-r", str(listed)], check=True)
    else:
        subprocess.run([*command, requirement], check=True)
    (archive,) = into.glob("*.tar.gz")
    if source.sha256 and _digest(archive) != source.sha256:
        raise RuntimeError(f"{archive.name} is not what {source} says")
    return archive


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
