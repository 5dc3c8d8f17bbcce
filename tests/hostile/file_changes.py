"""Changes to files by their formats: what a reader compares first (lengths, checksums) is made true again."""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
import zlib

import atheris

from .changing import json_changed

_SIZES = (0, 1, 2, 3, 4, 5, 24, 255, 1 << 16, 1 << 31, 1 << 40, 1 << 62, 1 << 63, -1)
_DESCRIPTIONS = (
    "<f4",
    ">f8",
    "|b1",
    "<i8",
    "|u1",
    "<c8",
    "<U3",
    "|S4",
    "|V8",
    "|O",
    "<M8[D]",
    "<m8[ns]",
    "<f2",
    "<U0",
    "x",
)
_PNG = b"\x89PNG\r\n\x1a\n"


def plain(data: bytes, chance: random.Random) -> bytes:
    """Change some bytes."""
    return bytes(atheris.Mutate(data, len(data) + 16))


def npy(data: bytes, chance: random.Random) -> bytes:
    """Change what the header of an array says, or the bytes behind it."""
    if data[:6] != b"\x93NUMPY" or len(data) < 10:
        return plain(data, chance)
    end = 10 + int.from_bytes(data[8:10], "little")
    text, body = data[10:end].decode("latin-1").rstrip(), data[end:]
    kind = chance.randrange(6)
    if kind == 0:
        body = plain(body, chance)
    elif kind == 1:
        text = re.sub(r"'descr': '[^']*'", f"'descr': {chance.choice(_DESCRIPTIONS)!r}", text)
    elif kind == 2:
        text = text.replace("True", "False") if "True" in text else text.replace("False", "True")
    elif kind == 3:
        numbers = ", ".join(str(chance.choice(_SIZES)) for _ in range(chance.randint(0, 4)))
        text = re.sub(r"'shape': \([^)]*\)", f"'shape': ({numbers},)", text)
    elif kind == 4:
        body = body * chance.choice((0, 1, 2)) + bytes(chance.choice((0, 1, 8)))
    else:
        text = plain(text.encode("latin-1"), chance).decode("latin-1")
    header = text.encode("latin-1") + b"\n"
    return data[:8] + struct.pack("<H", len(header) % (1 << 16)) + header + body


def npz(data: bytes, chance: random.Random) -> bytes:
    """Change an array of an archive, its name, or the archive itself."""
    if chance.random() < 0.25:
        return plain(data, chance)
    entries = _entries(data)
    at = chance.randrange(len(entries))
    name, content = entries[at]
    entries[at] = (_renamed(name, chance), content) if chance.random() < 0.1 else (name, npy(content, chance))
    return _archive(entries, chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))


def torch_file(data: bytes, chance: random.Random) -> bytes:
    """Change the pickle of an archive, another part of it, or the archive itself; a legacy file anywhere."""
    if chance.random() < 0.15 or not data.startswith(b"PK"):
        return plain(data, chance)
    entries = _entries(data)
    pickles = [at for at, (name, _) in enumerate(entries) if name.endswith("data.pkl")]
    at = pickles[0] if pickles and chance.random() < 0.75 else chance.randrange(len(entries))
    name, content = entries[at]
    entries[at] = (name, _pickled(content, chance) if at in pickles else plain(content, chance))
    return _archive(entries, zipfile.ZIP_STORED)


def safetensors(data: bytes, chance: random.Random) -> bytes:
    """Change what a header says, or the bytes behind it."""
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = data[8:end], data[end:]
    kind = chance.randrange(5)
    if kind == 0:
        return plain(data, chance)
    if kind == 1:
        body = plain(body, chance)
    else:
        header = json_changed(header, chance) if kind < 4 else plain(header, chance)
    return struct.pack("<Q", len(header)) + header + body


def json_text(data: bytes, chance: random.Random) -> bytes:
    """Change a file of JSON."""
    return json_changed(data, chance)


def parquet(data: bytes, chance: random.Random) -> bytes:
    """Change a Parquet file, mostly between its marks, with the length of the footer true again."""
    if data[:4] != b"PAR1" or data[-4:] != b"PAR1":
        return plain(data, chance)
    length = int.from_bytes(data[-8:-4], "little")
    pages, footer = data[4 : -8 - length], data[-8 - length : -8]
    if chance.random() < 0.5:
        pages = plain(pages, chance)[: len(pages)].ljust(len(pages), b"\0")
    else:
        footer = plain(footer, chance)
    return b"PAR1" + pages + footer + struct.pack("<I", len(footer)) + b"PAR1"


def arrow(data: bytes, chance: random.Random) -> bytes:
    """Change numbers of an Arrow file where they lie: all in it is aligned."""
    if chance.random() < 0.4 or len(data) < 64:
        return plain(data, chance)
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        width = chance.choice((1, 2, 4, 8))
        at = chance.randrange(0, len(data) - 8) // width * width
        number = chance.choice(
            (*_SIZES, int.from_bytes(changed[at : at + width], "little") + chance.choice((-1, 1, 8)))
        )
        changed[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(changed)


def png(data: bytes, chance: random.Random) -> bytes:
    """Change a chunk of a PNG, mostly with a true checksum; pixels before they are compressed."""
    if chance.random() < 0.15 or not data.startswith(_PNG):
        return plain(data, chance)
    chunks = _chunks(data)
    at = chance.randrange(len(chunks))
    kind, content = chunks[at]
    if kind == b"IDAT" and chance.random() < 0.6:
        content = zlib.compress(plain(zlib.decompress(content), chance))
    elif kind == b"IHDR" and len(content) == 13:
        sides = [chance.choice((0, 1, 4, 1 << 11, 1 << 16, 1 << 31)) for _ in range(2)]
        content = struct.pack(">II", *sides) + plain(content[8:], chance)[:5].ljust(5, b"\0")
    else:
        content = plain(content, chance)
    chunks[at] = (
        chance.choice((b"tRNS", b"iTXt", b"zTXt", b"iCCP", b"PLTE", kind)) if chance.random() < 0.1 else kind,
        content,
    )
    if chance.random() < 0.1:
        chunks.insert(at, chance.choice(chunks))
    return _PNG + b"".join(
        struct.pack(">I", len(each)) + name + each + struct.pack(">I", zlib.crc32(name + each)) for name, each in chunks
    )


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], len(_PNG)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        raise ValueError("no chunk is left")
    return chunks


def _entries(data: bytes) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = archive.infolist()
            if sum(each.file_size for each in found) > 1 << 20 or not found:
                raise ValueError("too large to be changed")
            return [(each.filename, archive.read(each)) for each in found]
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, zlib.error, RuntimeError) as error:
        raise ValueError(str(error)) from error


def _archive(entries: list[tuple[str, bytes]], method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def _renamed(name: str, chance: random.Random) -> str:
    return chance.choice(
        ("x.npy", "tensor.npy", "../x.npy", ".npy", "x", name.swapcase(), f"{name}.npy", "record_id.npy")
    )


def _pickled(content: bytes, chance: random.Random) -> bytes:
    """Change the numbers and texts of a pickle, or any of its bytes."""
    kind = chance.randrange(4)
    if kind == 0:
        return plain(content, chance)
    numbers = [found.span() for found in re.finditer(rb"K.|M..|J....", content, re.DOTALL)]
    if kind == 1 and numbers:
        begin, end = chance.choice(numbers)
        number = chance.choice((0, 1, 2, 3, 7, 255, 1 << 20, (1 << 31) - 1, -1))
        return content[:begin] + b"J" + struct.pack("<i", number) + content[end:]
    if kind == 2 and numbers:
        begin, end = chance.choice(numbers)
        return (
            content[:begin]
            + b"\x8a\x08"
            + chance.choice((1 << 40, 1 << 62, (1 << 63) - 1)).to_bytes(8, "little")
            + content[end:]
        )
    texts = [found.span(1) for found in re.finditer(rb"X....([\w.]+)q", content, re.DOTALL)]
    if not texts:
        return plain(content, chance)
    begin, end = chance.choice(texts)
    other = chance.choice([content[first:last] for first, last in texts])
    return content[: begin - 4] + struct.pack("<I", len(other)) + other + content[end:]
