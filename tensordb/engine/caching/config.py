"""How large a cache is, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from tensordb.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """How much memory goes to records that are read again.

    `get_tensor_by_id` and `get_many` look into the cache and fill it, outside of transactions: a record that is known
    comes from the first tier as a copy of its tensor, from the second one decoded from memory, and from the third one
    decoded from the mapped file, without the catalog being asked. What is not known asks the catalog, as everything
    does after a record was changed or removed by anyone. `query`, `sample`, `scan`, `get_dataset`, pages, search and
    `DataLoader`s neither use it nor fill it: what they read once would drive out what is read again.

    What is read from a file is verified by its checksums each time; what is in memory was verified when it came there.

    Attributes:
        decoded_bytes: For decoded tensors, the first tier; 0 for none.
        encoded_bytes: For payloads as they are stored, the second tier, with 6 KB for what was found in the header of
            each; 0 for none.
        promote_after: Reads in one tier after which a record moves up to the next; to have a large payload in memory
            (a page of many records) takes as many for every 64 KB of it.

    Raises:
        InvalidInputError: A size is negative, or `promote_after` is less than 1.

    >>> CacheConfig(decoded_bytes=1 << 30).promote_after
    2
    """

    decoded_bytes: int = 256 << 20
    encoded_bytes: int = 64 << 20
    promote_after: int = 2

    def __post_init__(self) -> None:
        for name, least in (("decoded_bytes", 0), ("encoded_bytes", 0), ("promote_after", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
                raise InvalidInputError(f"{name} is {value!r}; give an int from {least}")


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache did since it was made, or cleared; all zero where there is none.

    Attributes:
        decoded_hits: Reads served by the first tier, without decoding.
        encoded_hits: Reads decoded from the second tier.
        mapped_hits: Reads decoded from the mapped files, of records whose place was known.
        misses: Reads of records that nothing was known of, or not for sure: the catalog was asked, and a file read.
        lookups: Reads that asked the catalog, wherever the tensor was then.
        decoded_bytes: Bytes in the first tier.
        encoded_bytes: Bytes in the second tier.
        decoded_evictions: Tensors that had to go from the first tier, of which `demotions` went to the second.
        encoded_evictions: Payloads that had to go from the second tier.
        demotions: Records that moved from the first tier to the second.
    """

    decoded_hits: int = 0
    encoded_hits: int = 0
    mapped_hits: int = 0
    misses: int = 0
    lookups: int = 0
    decoded_bytes: int = 0
    encoded_bytes: int = 0
    decoded_evictions: int = 0
    encoded_evictions: int = 0
    demotions: int = 0
