"""Where the demo writes: in colour on a terminal, as plain text in a pipe."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TextIO

STYLES = {"bold": "1", "dim": "2", "green": "32", "yellow": "33", "red": "31", "cyan": "36"}


@dataclass(frozen=True)
class Screen:
    """Where the report goes, and whether that understands colours."""

    stream: TextIO
    colour: bool

    @classmethod
    def standard(cls) -> Screen:
        terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        # A pipe may have an encoding without the letters of the cities' names.
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        return cls(sys.stdout, terminal and not os.environ.get("NO_COLOR"))

    def paint(self, text: str, *styles: str) -> str:
        if not self.colour or not text:
            return text
        return f"\033[{';'.join(STYLES[style] for style in styles)}m{text}\033[0m"

    def line(self, text: str = "") -> None:
        self.stream.write(f"{text}\n")
        self.stream.flush()

    def progress(self, text: str) -> None:
        """A line that the next one replaces; nothing in a pipe."""
        if self.colour:
            self.stream.write(f"\r\033[K{self.paint(text, 'dim')}")
            self.stream.flush()

    def clear_progress(self) -> None:
        if self.colour:
            self.stream.write("\r\033[K")
