"""What errors of the library say, in the words of the command line: its options in place of Python's arguments."""

from __future__ import annotations

import re
from collections.abc import Collection

# Quoted values are the user's own; an apostrophe inside a word begins none.
_QUOTED = r"""(?<!\w)(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""


def in_options(message: str, names: Collection[str]) -> str:
    """Return a message with the arguments that are options of a command as these.

    >>> in_options("no tag 'force=True'; force=True moves it, or give keep_last=3", ["force", "keep_last"])
    "no tag 'force=True'; --force moves it, or give --keep-last 3"
    """
    if not names:
        return message

    def replaced(found: re.Match[str]) -> str:
        name, ending = found["name"], found["ending"]
        if name is None or not (ending or "_" in name):  # a word of one part alone is English
            return found[0]
        value_follows = ending == "=" and re.match(r"[\w'\"-]", message[found.end() :])
        return f"--{name.replace('_', '-')}{' ' if value_follows else ''}"

    return re.sub(rf"{_QUOTED}|(?<![\w-])(?P<name>{'|'.join(names)})\b(?P<ending>=True\b|=)?", replaced, message)
