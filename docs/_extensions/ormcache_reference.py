"""Directives that take facts from ormcache itself, so that the reference stays true.

A setting or a check that is not documented, or is documented and gone, is a warning; the
documentation is built with ``--fail-on-warning``.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from ormcache import checks, conf
from ormcache.management.commands.ormcache import Command
from ormcache.reasons import Reason

_logger = logging.getLogger(__name__)

_SECTIONS = {
    "": conf.Settings,
    "DATABASES.": conf.DatabaseSettings,
    "MODELS.": conf.ModelSettings,
}


def options() -> dict[str, dataclasses.Field[Any]]:
    """All options by name, those of sections as in ``DATABASES.TIMEOUT``."""
    return {
        prefix + field.name: field
        for prefix, kind in _SECTIONS.items()
        for field in dataclasses.fields(kind)
    }


def check_ids() -> set[str]:
    """The ids that the source of the checks mentions."""
    source = inspect.getsource(checks) + inspect.getsource(conf)
    return set(re.findall(r'"([EW]\d{3})"', source))


# --- nodes -----------------------------------------------------------------------------------


def _paragraph(text: str) -> nodes.paragraph:
    """A paragraph; what stands between backticks is code."""
    paragraph = nodes.paragraph()
    for index, part in enumerate(text.split("`")):
        if part:
            paragraph += nodes.literal(part, part) if index % 2 else nodes.Text(part)
    return paragraph


def _fields(facts: dict[str, str]) -> nodes.field_list:
    fields = nodes.field_list()
    for name, value in facts.items():
        fields += nodes.field(
            "", nodes.field_name(name, name), nodes.field_body("", _paragraph(value))
        )
    return fields


def _row(cells: Iterable[str]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        row += nodes.entry("", _paragraph(cell))
    return row


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(head))
    for _ in head:
        group += nodes.colspec(colwidth=1)
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *(_row(cells) for cells in rows))
    return nodes.table("", group)


# --- directives ------------------------------------------------------------------------------


class _Documents(SphinxDirective):
    """Stands below the heading of a thing and says what the code says of it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        facts = self.facts(name)
        if facts is None:
            raise self.error(f"ormcache has no {name}")
        _documented(self.env).setdefault(self.env.docname, set()).add(name)
        return [_fields(facts)]

    def facts(self, name: str) -> dict[str, str] | None:
        raise NotImplementedError


class Option(_Documents):
    """``ormcache-option:: TIMEOUT``"""

    def facts(self, name: str) -> dict[str, str] | None:
        field = options().get(name)
        if field is None:
            return None
        return {"Value": _as_text(field.metadata["expected"]), "Default": _default(name, field)}


def _as_text(expected: str) -> str:
    return re.sub(r"(\{.*\}|'\w+'|True|False|None)", r"`\1`", expected)


def _default(name: str, field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "`{}`"
    if name == "FENCE":
        return (
            f"`{conf.DEFAULT_FENCE:g}` if `ON_CACHE_FAILURE` is `'fence'` and the cache is not "
            "`LocMemCache`, otherwise `None`"
        )
    if name == "ON_MISMATCH":
        return "`'raise'` in tests, otherwise `'log'`"
    if "." in name and field.default in (None, conf.Inherited.INHERITED):
        return "what the surrounding setting says"
    return f"`{field.default!r}`"


class Check(_Documents):
    """``ormcache-check:: E001``"""

    def facts(self, name: str) -> dict[str, str] | None:
        if name not in check_ids():
            return None
        return {"Level": "error" if name.startswith("E") else "warning"}


# Explanations are also read on a terminal, where code needs no marks.
_CODE = re.compile(r'ORMCACHE\["\w+"\]|\b[\w.]+\([^)]*\)|managed = False')


class Reasons(SphinxDirective):
    """A table of all reasons."""

    def run(self) -> list[nodes.Node]:
        rows = [
            (f"`{reason.name}`", str(reason), _CODE.sub(r"`\g<0>`", reason.explanation))
            for reason in Reason
        ]
        return [_table(("Member", "Value", "Meaning, and what to do"), rows)]


class Commands(SphinxDirective):
    """The arguments of a subcommand of ``manage.py ormcache``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        parser = _subcommands()[self.arguments[0]]
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
        rows = list(_arguments(parser))
        found: list[nodes.Node] = [nodes.literal_block(usage, usage, language="text")]
        return [*found, _table(("Argument", "Meaning"), rows)] if rows else found


def _subcommands() -> dict[str, argparse.ArgumentParser]:
    parser = Command().create_parser("manage.py", "ormcache")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise LookupError("manage.py ormcache has no subcommands")


def _arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if action.dest != "help" and action.help != argparse.SUPPRESS:
            name = " ".join(action.option_strings) or str(action.metavar or action.dest)
            # Quoted examples become code.
            yield f"`{name}`", re.sub(r'"([^"]+)"', r"`\1`", action.help or "")


# --- nothing is left out ---------------------------------------------------------------------


def _documented(env: BuildEnvironment) -> dict[str, set[str]]:
    if not hasattr(env, "ormcache_documented"):
        env.ormcache_documented = {}  # type: ignore[attr-defined]
    return env.ormcache_documented  # type: ignore[attr-defined,no-any-return]


def _purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    _documented(env).pop(docname, None)


def _check_complete(app: Sphinx, env: BuildEnvironment) -> None:
    found = set().union(*_documented(env).values())
    for name in sorted({*options(), *check_ids()} - found):
        _logger.warning("%s is not documented", name)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("ormcache-option", Option)
    app.add_directive("ormcache-check", Check)
    app.add_directive("ormcache-reasons", Reasons)
    app.add_directive("ormcache-command", Commands)
    app.connect("env-purge-doc", _purge)
    app.connect("env-check-consistency", _check_complete)
    return {"parallel_read_safe": False, "env_version": 1}
