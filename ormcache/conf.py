"""The ``ORMCACHE`` setting: its options, their defaults and types.

Each option is declared once, as a field below. :func:`current` is called on every read and
write and costs one look at Django's settings, so ``override_settings`` takes effect at once.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from django.conf import settings as django_settings

from ormcache.exceptions import SettingsError


class Problem(NamedTuple):
    """Something wrong with the setting: the number of its check, what and what to do."""

    code: str
    message: str
    hint: str


Accepts = Callable[[Any], bool]
Function = Callable[[Any], str] | str | None
"""A function, or its dotted path."""


def _option(default: Any, expected: str, accepts: Accepts) -> Any:
    metadata = {"expected": expected, "accepts": accepts}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _flag(default: bool | None) -> Any:
    return _option(default, "True or False", lambda value: isinstance(value, bool))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_seconds(value: object) -> bool:
    # Servers count milliseconds, and in no more than 64 bits.
    return _is_number(value) and 0 < value <= 10**9  # type: ignore[operator]


_SECONDS = "a number of seconds above 0, 1,000,000,000 at most"


def _seconds(default: float | None) -> Any:
    return _option(default, _SECONDS, _is_seconds)


def _timeout(default: Any) -> Any:
    return _option(
        default,
        f"{_SECONDS}, or None for no expiry",
        lambda value: value is None or _is_seconds(value),
    )


def _own_timeout() -> Any:
    return _timeout(Inherited.INHERITED)


def _share(default: float) -> Any:
    return _option(
        default,
        "a number from 0 (none) to 1 (all)",
        lambda value: _is_number(value) and 0 <= value <= 1,
    )


def _choice(default: Any, *choices: str) -> Any:
    return _option(
        default,
        "one of " + ", ".join(repr(choice) for choice in choices),
        lambda value: isinstance(value, str) and value in choices,
    )


def _text(default: str | None) -> Any:
    return _option(default, "a string", lambda value: isinstance(value, str))


def _function(default: Any) -> Any:
    return _option(
        default,
        "a function that takes a database connection, its dotted path as a string, or None",
        lambda value: (
            value is None or callable(value) or (isinstance(value, str) and "." in value)
        ),
    )


KEY_PART_LIMIT = 64
"""Characters: Memcached's keys have 250 at most, and hold the names of databases and tables."""


def is_part_of_key(text: str) -> bool:
    """Whether ``text`` may stand in every key: a few ASCII letters, digits and ``. _ -`` only."""
    return (
        len(text) <= KEY_PART_LIMIT
        and text.isascii()
        and all(character.isalnum() or character in "._-" for character in text)
    )


def _is_names(value: object) -> bool:
    return isinstance(value, (list, tuple, set, frozenset)) and all(
        isinstance(name, str) for name in value
    )


def _names_by_name() -> Any:
    return _option(
        {},
        'a dict of lists of names, such as {"view": ["table"]}',
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(key, str) and _is_names(names) for key, names in value.items())
        ),
    )


def _section() -> Any:
    return _option(
        {},
        "a dict of dicts by name",
        lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value),
    )


class Inherited(enum.Enum):
    """Stands for "as the surrounding setting says" where None has a meaning of its own."""

    INHERITED = enum.auto()


DEFAULT_FENCE = 1.0
"""Seconds: ``FENCE`` where it is not set and the policy needs it."""


@dataclasses.dataclass(frozen=True, eq=False)
class DatabaseSettings:
    """``ORMCACHE["DATABASES"][alias]``."""

    ENABLED: bool = _flag(True)
    CACHE_ALIAS: str | None = _text(None)
    TIMEOUT: float | Literal[Inherited.INHERITED] | None = _own_timeout()
    NAMESPACE: Function | Literal[Inherited.INHERITED] = _function(Inherited.INHERITED)
    PRIMARY: str | None = _text(None)
    MAX_LAG: float | None = _seconds(None)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelSettings:
    """``ORMCACHE["MODELS"]["app.Model"]``, ``["app.*"]`` or ``["*"]``."""

    ENABLED: bool | None = _flag(None)
    TIMEOUT: float | Literal[Inherited.INHERITED] | None = _own_timeout()


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """``ORMCACHE``. Compared by identity: a new object means that the setting changed."""

    ENABLED: bool = _flag(True)
    CACHE_ALIAS: str = _text("default")
    TIMEOUT: float | None = _timeout(3600)
    KEY_PREFIX: str = _option(
        "",
        f"a string of at most {KEY_PART_LIMIT} ASCII letters, digits and . _ - (it becomes part "
        "of every key)",
        lambda value: isinstance(value, str) and is_part_of_key(value),
    )
    NAMESPACE: Function = _function(None)
    CONSISTENCY: Literal["auto", "strict", "standard"] = _choice(
        "auto", "auto", "strict", "standard"
    )
    MODE: Literal["serve", "shadow"] = _choice("serve", "serve", "shadow")
    VERIFY: float = _share(0)
    AUDIT: float = _share(0)
    ON_MISMATCH: Literal["log", "raise", Inherited.INHERITED] = _choice(
        Inherited.INHERITED, "log", "raise"
    )
    LEASE: float = _seconds(10)
    SOCKET_TIMEOUT: float = _seconds(1)
    ON_CACHE_FAILURE: Literal["raise", "fence", "open"] = _choice(
        "fence", "raise", "fence", "open"
    )
    FENCE: float | Literal[Inherited.INHERITED] | None = _option(
        Inherited.INHERITED,
        f"{_SECONDS}, or None to leave the table alone",
        lambda value: value is None or _is_seconds(value),
    )
    DATABASES: Mapping[str, DatabaseSettings] = _section()
    MODELS: Mapping[str, ModelSettings] = _section()
    CACHE_RANDOM: bool = _flag(False)
    CACHE_EXTRA: bool = _flag(True)
    DEPENDS_ON: Mapping[str, Iterable[str]] = _names_by_name()
    WRITES: Mapping[str, Iterable[str]] = _names_by_name()
    MAX_RESULT_BYTES: int = _option(
        1024 * 1024,
        "a number of bytes above 0",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0,
    )

    @functools.cached_property
    def fence_interval(self) -> float | None:
        """After how many seconds a process looks into the fence again; None for never."""
        if not isinstance(self.FENCE, Inherited):
            return self.FENCE
        return DEFAULT_FENCE if self.ON_CACHE_FAILURE == "fence" else None

    @functools.cached_property
    def on_cache_failure(self) -> Literal["raise", "fence", "open"]:
        """The policy. Where nobody looks into the fence, nothing can be announced there."""
        if self.ON_CACHE_FAILURE == "fence" and self.fence_interval is None:
            return "raise"
        return self.ON_CACHE_FAILURE

    @property
    def on_mismatch(self) -> Literal["log", "raise"]:
        """What a difference does. Not kept: tests may begin and end in the life of a process."""
        if not isinstance(self.ON_MISMATCH, Inherited):
            return self.ON_MISMATCH
        return "raise" if is_under_test() else "log"


def is_under_test() -> bool:
    """Whether this process has called setup_test_environment(), as all test runners do.

    ``django.core.mail.outbox`` would not do: a server has it, too, whose mails stay in memory. And
    a server that has not imported the module need not do so for this.
    """
    utils = sys.modules.get("django.test.utils")
    return hasattr(getattr(utils, "_TestState", None), "saved_data")


_SECTIONS: dict[str, type[Any]] = {"DATABASES": DatabaseSettings, "MODELS": ModelSettings}


def _parse(kind: type[Any], raw: Any, where: str, problems: list[Problem]) -> Any:
    """Build ``kind`` from the dict ``raw``; what is wrong is left at its default and noted."""
    if not isinstance(raw, Mapping):
        problems.append(
            Problem("E002", f"{where} is {raw!r}, not a dict.", f"Make {where} a dict.")
        )
        return kind()
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for name, value in raw.items():
        if name not in fields:
            problems.append(
                Problem(
                    "E001",
                    f"{where} has an unknown option {name!r}.",
                    "Known options: " + ", ".join(sorted(fields)) + ".",
                )
            )
            continue
        metadata = fields[name].metadata
        if not metadata["accepts"](value):
            problems.append(
                Problem(
                    "E002",
                    f"{where}[{name!r}] is {value!r}.",
                    f"It must be {metadata['expected']}.",
                )
            )
            continue
        if kind is Settings and name in _SECTIONS:
            value = {
                key: _parse(_SECTIONS[name], inner, f"{where}[{name!r}][{key!r}]", problems)
                for key, inner in value.items()
            }
        values[name] = value
    return kind(**values)


def parse(raw: Any) -> tuple[Settings, list[Problem]]:
    """Read a value of ``settings.ORMCACHE``; None is as good as ``{}``.

    Returns the settings, with defaults in place of what is wrong, and the problems found.
    """
    problems: list[Problem] = []
    return _parse(Settings, {} if raw is None else raw, "ORMCACHE", problems), problems


_last: tuple[object, Settings] = (None, Settings())

# Where Django keeps the settings that were asked for since they last changed, beside "_wrapped",
# which has them all. To get one as an attribute takes much longer, and much longer still to learn
# that it is not set, as ORMCACHE is not in most projects.
_asked_for: dict[str, Any] = object.__getattribute__(django_settings, "__dict__")
_ABSENT = object()
_without: object = None
"""Django's settings, if ORMCACHE was not among them."""


def current() -> Settings:
    """The settings in force now.

    Raises :class:`~ormcache.exceptions.SettingsError` if ``ORMCACHE`` is wrong.
    """
    global _last
    known, settings = _last
    raw = _asked_for.get("ORMCACHE", _ABSENT)
    if raw is _ABSENT:
        raw = _raw()
    if raw is known:
        return settings
    settings, problems = parse(raw)
    if problems:
        raise SettingsError("\n".join(f"{p.message} {p.hint}" for p in problems))
    # One assignment, so that another thread sees the old pair or the new one.
    _last = (raw, settings)
    return settings


def _raw() -> Any:
    """``settings.ORMCACHE``, or None."""
    global _without
    all_settings = _asked_for.get("_wrapped")
    # override_settings() puts another object there, and an assignment adds to this one.
    if all_settings is _without is not None and "ORMCACHE" not in vars(all_settings):
        return None
    try:
        return django_settings.ORMCACHE
    except AttributeError:
        _without = _asked_for.get("_wrapped")
        return None
