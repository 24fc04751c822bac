"""Lets tox find the Pythons that pyenv has installed, whichever of them is switched on."""

from __future__ import annotations

import os
from pathlib import Path

from tox.config.sets import ConfigSet
from tox.plugin import impl
from tox.session.state import State


@impl
def tox_add_core_config(core_conf: ConfigSet, state: State) -> None:
    """As if each of them had been named by ``--discover``."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    state.conf.options.discover.extend(map(str, sorted(root.glob("versions/3.*/bin/python"))))
