"""The compiled loops give the bytes that NumPy gives, and are never needed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from tensordb.encoding import PayloadReader, decode_rows_many, encode, get_compression_preset, kernels
from tensordb.encoding.filters import Delta, Filter, Planes, StrideDelta, ZeroBitmap
from tensordb.encoding.filters.base import Slices

pytest.importorskip("numba")

SIZES = [(1, 1), (2,), (1, 3), (1, 1, 2), (1, 1, 1, 1), (2, 6), (1, 1, 6), (8,)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("records", "words"), [(1, 1), (1, 3), (1, 5000), (7, 1), (7, 33), (300, 129)])
def test_both_split_alike_and_merge_back(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], records: int, words: int
) -> None:
    assert kernels.load()
    planes = Planes(sizes)
    data = np.random.default_rng(words).integers(0, 256, records * words * planes.width, np.uint8)
    compiled = planes.split(data, records)
    back = np.empty_like(data)
    planes.merge(compiled, records, back)
    monkeypatch.setattr(kernels, "ready", lambda nbytes: None)
    plain = planes.split(data, records)
    again = np.empty_like(data)
    planes.merge(plain, records, again)
    assert [group.tobytes() for group in compiled] == [group.tobytes() for group in plain]
    assert np.array_equal(back, data)
    assert np.array_equal(again, data)


@pytest.mark.parametrize("sizes", SIZES)
def test_both_gather_records_from_wherever_they_are(loops: str, sizes: tuple[int, ...]) -> None:
    planes = Planes(sizes)
    chunks, records, words = 3, 5, 40
    data = np.random.default_rng(0).integers(0, 256, (chunks, records * words * planes.width), np.uint8)
    slices = Slices(tuple(words * size for size in sizes))
    for chunk in data:
        groups = planes.split(chunk, records)
        slices.chunks.append([group.tobytes() for group in groups])
        slices.addresses.append([np.frombuffer(content, np.uint8).ctypes.data for content in slices.chunks[-1]])
    places = [(2, 4), (0, 0), (1, 3), (1, 3), (2, 0)]
    slices.which, slices.within = map(list, zip(*places, strict=True))
    out = np.empty(len(places) * words * planes.width, np.uint8)
    planes.gather(slices, out)
    each = data.reshape(chunks, records, -1)
    assert np.array_equal(out.reshape(len(places), -1), np.stack([each[chunk, record] for chunk, record in places]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_tensors_out_of_line_with_their_words_are_stored_all_the_same(loops: str, dtype: torch.dtype) -> None:
    data = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    itemsize = data.element_size()
    raw = bytearray(itemsize * 5000 + 1)
    raw[1:] = data.view(torch.uint8).numpy().tobytes()
    crooked = torch.frombuffer(raw, dtype=dtype, offset=1)
    payload = b"".join(encode(crooked, get_compression_preset("lossless")).buffers)
    out = torch.frombuffer(bytearray(itemsize * 5000 + 1), dtype=dtype, offset=1)
    assert torch.equal(PayloadReader(payload).decode(out=out), data)


SPARSE: list[tuple[Filter, type]] = [
    (ZeroBitmap((1,)), np.uint8),
    (ZeroBitmap((1, 1)), np.uint16),
    (ZeroBitmap((1, 3)), np.uint32),
    (ZeroBitmap((1, 1, 6)), np.uint64),
    *((Delta(bytes(32), (1,) * width), f"uint{8 * width}") for width in (1, 2, 4, 8)),
    *((StrideDelta(strides), np.uint8) for strides in ((1,), (3, 50), (100,), (4000,))),
]


@pytest.mark.parametrize(("used", "kind"), SPARSE, ids=repr)
@pytest.mark.parametrize("words", [1, 8, 1003])
def test_bitmaps_changes_and_sums_are_alike_either_way(
    monkeypatch: pytest.MonkeyPatch, used: Filter, kind: type, words: int
) -> None:
    assert kernels.load()
    rng = np.random.default_rng(words)
    data = rng.integers(0, np.iinfo(kind).max, words, kind, endpoint=True)
    base = rng.integers(0, np.iinfo(kind).max, words, kind, endpoint=True)
    data[rng.random(words) < 0.5] = 0
    same = rng.random(words) < 0.3
    base[same] = data[same]
    raw, other = data.view(np.uint8), base.view(np.uint8)

    def there_and_back() -> tuple[list[bytes], bytes]:
        out = other.copy()
        groups = used.split_against(raw, other) if isinstance(used, Delta) else used.split(raw, 1)
        used.merge(groups, 1, out)
        return [group.tobytes() for group in groups], out.tobytes()

    compiled = there_and_back()
    monkeypatch.setattr(kernels, "ready", lambda nbytes: None)
    monkeypatch.setattr(kernels, "sparse", lambda nbytes: None)
    assert compiled == there_and_back()
    assert compiled[1] == raw.tobytes()


def test_pages_are_read_by_both_alike(loops: str) -> None:
    stack = torch.randn(500, 96, generator=torch.Generator().manual_seed(0))
    readers = [
        PayloadReader(b"".join(encode(part, get_compression_preset(name), page=True).buffers))
        for part, name in zip(stack.split(250), ("lossless", "archive"), strict=True)
    ]
    rows = decode_rows_many([(readers[0], [0, 249, 7, 7]), (readers[1], [3, 0])])
    assert torch.equal(rows, stack[[0, 249, 7, 7, 253, 250]])


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stderr == ""
    return done.stdout.strip()


def test_without_numba_all_works() -> None:
    said = run("""
        import sys
        sys.modules["numba"] = None
        import torch
        from tensordb.encoding import PayloadReader, encode, get_compression_preset, kernels
        data = torch.randn(17_000_000)
        payload = b"".join(encode(data, get_compression_preset("lossless")).buffers)
        assert torch.equal(PayloadReader(payload).decode(), data)
        print(kernels.load())
    """)
    assert said == "False"


def test_nothing_is_loaded_for_a_little_work_and_all_is_for_much_and_for_a_child_forked_meanwhile() -> None:
    said = run("""
        import os, sys, torch
        from tensordb.encoding import encode, get_compression_preset, kernels
        lossless = get_compression_preset("lossless")
        encode(torch.randn(1000), lossless)
        print("numba" in sys.modules)
        for _ in range(2):
            encode(torch.randn(9_000_000), lossless)
        child = os.fork() if hasattr(os, "fork") else None
        if child == 0:
            os._exit(0 if kernels.load() else 1)
        print(os.waitpid(child, 0)[1] if child else 0)
        print(kernels.load(), "numba" in sys.modules)
    """)
    assert said.split() == ["False", "0", "True", "True"]
