"""Any text within Markdown: it stays the text it is."""

from __future__ import annotations

import re

# The last two: what begins a heading, a list or a rule, and the end of a number that begins a list.
_MEANT = re.compile(r"[\\`*\[\]<>&|~$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|^[-+=#]|^(\d+)([.)])(?=\s|$)")


def escaped(text: str) -> str:
    """On one line, as text that is neither Markdown nor HTML, in a cell of a table as elsewhere.

    An underscore within a word means nothing to Markdown and stays, for metrics are read in the source as well.
    """
    line = " ".join(visible(text).split())
    return _MEANT.sub(lambda found: found[1] + f"&#{ord(found[2])};" if found[2] else f"&#{ord(found[0])};", line)


def visible(text: str) -> str:
    """Without what moves a terminal's cursor or cannot be encoded; line ends and tabs become blanks."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
