"""What SQL of the user's must not call, though DuckDB takes the calls for reading.

An SQL statement that only reads may read any file: it has the rights of who runs it. It must not change how the
connection behaves, which all that follows shares. This finds what was written by mistake, not what hides from it.
"""

from __future__ import annotations

import re

from tensordb.errors import InvalidQueryError

# Of what they switch on, every later statement writes profiles and logs, to standard output or a file of their own.
_CHANGES = re.compile(
    r"\b((?:en|dis)able_(?:logging|profil(?:e|ing))|truncate_duckdb_logs"
    r"|(?:create|destroy|(?:de)?register)_external_resource(?:_type)?|(?:add|remove)_grammar_extension)\"?\s*\(",
    re.IGNORECASE,
)


def check_calls(text: str) -> None:
    """Raise InvalidQueryError for SQL that calls, or quotes a call of, a function that does more than read."""
    found = _CHANGES.search(text)
    if found is not None:
        raise InvalidQueryError(
            f"{text!r} calls {found[1]}(), which changes the connection; conditions and sql() only read"
        )
