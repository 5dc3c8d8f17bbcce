"""``overload`` for methods whose modules lead to DuckDB, which must not outlive the interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import overload as overload
else:

    def overload(function: Any) -> Any:
        """Leave a function out of typing's registry, which would hold DuckDB beyond the end of the interpreter."""
        return function
