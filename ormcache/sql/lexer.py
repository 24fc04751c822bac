"""The lexer: from a text to its tokens, as a vendor's database has them.

Without tokens, because that is quick: the words of a text, and the form in which texts that
differ in the length of a list alone are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ormcache.sql.names import fold

# Each of these can be matched in one way only, so none of them can backtrack for long.
_PLAIN_STRING = r"'[^']*(?:''[^']*)*'"
_ESCAPED_STRING = r"'[^'\\]*(?:(?:''|\\.)[^'\\]*)*'"
_ESCAPED_NAME = r'"[^"\\]*(?:(?:""|\\.)[^"\\]*)*"'
_DOUBLE_QUOTED = r'"[^"]*(?:""[^"]*)*"'
_BACKTICKED = r"`[^`]*(?:``[^`]*)*`"
_BRACKETED = r"\[[^\]]*(?:\]\][^\]]*)*\]"
_DOLLAR_TAG = r"\$(?:[^\W\d]\w*)?\$"
_FLAT_COMMENT = r"/\*.*?\*/"


def _pattern(
    *,
    comment: str,
    string: str,
    quoted: str,
    opening: str = r"['\"]|/\*",
    nested: str = r"(?!)",
    variable: str = r"(?!)",
) -> re.Pattern[str]:
    return re.compile(
        rf"""
        (?P<space>\s+|{comment})
      | (?P<nested>{nested})
      | (?P<string>{string})
      | (?P<quoted>{quoted})
      | (?P<open>(?:{opening}).*)
      | (?P<placeholder>%s|%\(\w+\)s)
      | (?P<variable>{variable})
      | (?P<word>[^\W\d][\w$]*)
      | (?P<number>\d+(?:\.\d+)?)
      | (?P<mark>.)
        """,
        re.VERBOSE | re.DOTALL,
    )


_PATTERNS = {
    "sqlite": _pattern(
        comment=rf"--[^\n]*|{_FLAT_COMMENT}",
        string=_PLAIN_STRING,
        quoted=rf"{_DOUBLE_QUOTED}|{_BACKTICKED}|{_BRACKETED}",
        opening=r"['\"`\[]|/\*",
    ),
    "mysql": _pattern(
        # "--" without a space is two signs. /*! … */ and MariaDB's /*M! … */ are executed.
        comment=r"--(?=\s|\Z)[^\n]*|\#[^\n]*|/\*(?!M?!).*?\*/",
        string=_ESCAPED_STRING,
        # A string, unless ANSI_QUOTES is on.
        quoted=rf"{_ESCAPED_NAME}|{_BACKTICKED}",
        opening=r"['\"`]|/\*(?!M?!)",
        variable=r"@@?[\w.$]*",
    ),
    "microsoft": _pattern(
        comment=r"--[^\n]*",
        nested=r"/\*",
        string=_PLAIN_STRING,
        quoted=rf"{_DOUBLE_QUOTED}|{_BRACKETED}",
        opening=r"['\"\[]|/\*",
        variable=r"@@?[\w.$]*",
    ),
    "postgresql": _pattern(
        comment=r"--[^\n\r]*",
        nested=r"/\*",
        string=rf"[eE]{_ESCAPED_STRING}|{_PLAIN_STRING}"
        rf"|(?P<tag>{_DOLLAR_TAG}).*?(?P=tag)",
        quoted=_DOUBLE_QUOTED,
        opening=rf"[eE]?'|\"|/\*|{_DOLLAR_TAG}",
    ),
}
_COMMENT_END = re.compile(r"/\*|\*/")


class Token(NamedTuple):
    kind: str
    """``string``, ``quoted``, ``word``, ``number``, ``placeholder``, ``variable`` or ``mark``;
    ``open`` for a quote or a comment that does not end, with all that follows it."""
    text: str
    folded: str
    at: int = 0
    """Where in the text it begins."""

    @property
    def is_name(self) -> bool:
        """Whether it may be a name. Keywords may, too."""
        return self.kind in ("word", "quoted")

    @property
    def keyword(self) -> str:
        """The folded word, ``""`` for anything else: what is quoted is no keyword."""
        return self.folded if self.kind == "word" else ""


END = Token("end", "", "")
"""Stands behind the last token where somebody looks ahead."""


def tokens(sql: str, vendor: str = "postgresql") -> Iterator[Token]:
    """The tokens of ``sql`` without spaces and comments, as a database of ``vendor`` has them.

    A vendor that is not known here is read as PostgreSQL, the nearest to the standard.
    """
    pattern = _PATTERNS.get(vendor) or _PATTERNS["postgresql"]
    at = 0
    while match := pattern.match(sql, at):
        kind, start = match.lastgroup or "mark", at
        at = match.end()
        if kind == "nested":
            end = _end_of_comment(sql, at)
            if end is not None:
                at = end
                continue
            kind, at = "open", len(sql)
        if kind == "space":
            continue
        text = sql[start:at]
        yield Token(kind, text, fold(text) if kind in ("word", "quoted") else text, start)


def _end_of_comment(sql: str, at: int) -> int | None:
    """Where the comment that begins before ``at`` ends, if comments may hold comments."""
    depth = 1
    for match in _COMMENT_END.finditer(sql, at):
        depth += 1 if match[0] == "/*" else -1
        if not depth:
            return match.end()
    return None


def last_part(stream: list[Token], at: int) -> tuple[str, int]:
    """The folded ``c`` of an ``a.b.c`` that begins at ``at``, and where that name ends.

    The stream has to go on with :data:`END`.
    """
    name = stream[at].folded
    at += 1
    while stream[at].text == "." and stream[at + 1].is_name:
        name = stream[at + 1].folded
        at += 2
    return name, at


def words(sql: str) -> frozenset[str]:
    """Every run of letters in the text, folded: names, keywords and words inside strings."""
    return frozenset(re.findall(r"[^\W\d][\w$]*", sql.casefold()))


def normalise(sql: str) -> str:
    """``sql`` with runs of placeholders shortened, so that IN lists of any length are alike."""
    return sql.replace("%s, ", "").replace("%s,", "")


def escapes_names(sql: str, vendor: str) -> bool:
    r"""Whether a name may be written as U&"caf\00e9", in PostgreSQL or as the standard has it."""
    return vendor not in ("mysql", "sqlite", "microsoft") and 'u&"' in sql.casefold()
