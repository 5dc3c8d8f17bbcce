"""The containers of a tree: which types, their codes in documents, and how deep they nest.

Codes are stored and never change their meaning.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

TENSOR = 1
MAPPINGS: dict[int, type[dict]] = {2: dict, 3: OrderedDict, 4: Counter}  # type: ignore[type-arg]
SEQUENCES: dict[int, type] = {5: list, 6: tuple}
SETS: dict[int, type] = {7: set, 8: frozenset}
CODES: dict[type, int] = {kind: code for kinds in (MAPPINGS, SEQUENCES, SETS) for code, kind in kinds.items()}

MAX_DEPTH = 100
METADATA = "_metadata"
"""The only attribute of a container that is kept: what a module's state_dict says of its versions."""
