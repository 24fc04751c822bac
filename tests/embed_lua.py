"""Copies the Lua scripts into `ormcache_south.py`, which has to do without the other files.

`python -m tests.embed_lua`, after one of them has changed.
"""

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "ormcache"
LEGACY_FILE = PACKAGE / "migrations_hooks" / "south" / "ormcache_south.py"

_CONSTANTS = {
    "_INCARNATION": "incarnation",
    "_REGISTERS": "registers",
    "_HOLD": "arm",
    "_RELEASE": "finish",
}


def embedded(source: str) -> str:
    """`source` with the scripts as they are now."""
    for constant, name in _CONSTANTS.items():
        text = (PACKAGE / "stores" / "lua" / f"{name}.lua").read_text("utf-8")
        pattern = re.compile(rf'^({constant} = r"""\n).*?(?="""$)', re.DOTALL | re.MULTILINE)
        source, count = pattern.subn(lambda match: match[1] + text, source)  # noqa: B023
        assert count == 1, constant
    return source


if __name__ == "__main__":
    LEGACY_FILE.write_text(embedded(LEGACY_FILE.read_text("utf-8")), "utf-8")
