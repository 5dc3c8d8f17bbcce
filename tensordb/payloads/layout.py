"""The bytes around the payloads of a segment file, as FORMAT.md describes them; pure functions, no I/O."""

from __future__ import annotations

import struct

from xxhash import xxh3_64_intdigest

from tensordb.errors import IntegrityError, UnsupportedFormatError

VERSION = 1
MAGIC_HEADER = b"tdb-seg\n"
MAGIC_FOOTER = b"tdb-end\n"
_BODY = struct.Struct("<8sI4x16sQQ8x")  # magic, version, database id, segment id, end
_CHECKSUM = struct.Struct("<Q")
BLOCK_BYTES = _BODY.size + _CHECKSUM.size
HEADER_BYTES = 2 * BLOCK_BYTES
FOOTER_BYTES = BLOCK_BYTES


def _block(magic: bytes, segment: int, database_id: bytes, end: int) -> bytes:
    body = _BODY.pack(magic, VERSION, database_id, segment, end)
    return body + _CHECKSUM.pack(xxh3_64_intdigest(body))


def pack_header(segment: int, database_id: bytes) -> bytes:
    """Return the 128 bytes that begin a segment file: one block twice, so that damage to one copy costs nothing."""
    return 2 * _block(MAGIC_HEADER, segment, database_id, 0)


def pack_footer(segment: int, database_id: bytes, end: int) -> bytes:
    """Return the 64 bytes that a writer leaves at offset `end`, last in the file, when it closes it in good order."""
    return _block(MAGIC_FOOTER, segment, database_id, end)


def check_header(header: bytes, segment: int, database_id: bytes, path: str) -> None:
    """Check that the file at `path` is this segment of this database; one undamaged copy of the block is enough.

    Raises:
        FormatError: The segment was written in a version that this release does not know.
        IntegrityError: Both copies are damaged, or the file belongs to another database or carries another id.
    """
    version, found_database, found_segment = _undamaged(header, path)
    if version != VERSION:
        raise UnsupportedFormatError(
            f"{path} has segment format {version}, this release reads {VERSION}: upgrade tensordb"
        )
    if found_database != database_id:
        raise IntegrityError(
            f"{path} belongs to database {found_database.hex()}, not to this one ({database_id.hex()}): "
            "put this database's own file back"
        )
    if found_segment != segment:
        raise IntegrityError(
            f"{path} holds segment {found_segment:016x}, not {segment:016x}: the file was renamed or overwritten, "
            "restore the one that belongs here"
        )


def database_of(header: bytes, path: str) -> bytes:
    """Return the id of the database that the file at `path` belongs to; one undamaged copy of the block is enough.

    Raises:
        IntegrityError: Both copies are damaged.
    """
    return _undamaged(header, path)[1]


def _undamaged(header: bytes, path: str) -> tuple[int, bytes, int]:
    for copy in (header[:BLOCK_BYTES], header[BLOCK_BYTES:HEADER_BYTES]):
        body, checksum = copy[: _BODY.size], copy[_BODY.size :]
        if body.startswith(MAGIC_HEADER) and checksum == _CHECKSUM.pack(xxh3_64_intdigest(body)):
            _, version, database_id, segment, _ = _BODY.unpack(body)
            return version, database_id, segment
    raise IntegrityError(
        f"{path} is no tensordb segment, or both copies of its header are damaged: restore the file from a backup"
    )
