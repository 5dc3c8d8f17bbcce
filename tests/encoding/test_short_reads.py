"""Small tensors are decoded by a way of their own, which gives what the way of large ones gives."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses import FakeTensorMode

from tensordb.encoding import CompressionConfig, PayloadReader
from tensordb.encoding.short import MOST_NBYTES, ShortReads
from tensordb.errors import FormatError, IntegrityError
from tensordb.tensors import empty

from .samples import CODECS, DTYPES, normal, payload_of, random_bits, same_bits, stored

FLOATS = [each for each in DTYPES if (each.is_floating_point or each.is_complex) and each != torch.complex32]
SHAPES = [(), (1,), (1536,), (3, 5, 7), (1, 1, 4000)]


def held(reader: PayloadReader) -> list[PayloadReader]:
    """The reader, and the one of a copy that is not verified again."""
    return [reader, reader.in_memory()]


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("config", CODECS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_tensors_of_every_dtype_and_codec_come_back(dtype: torch.dtype, config: CompressionConfig) -> None:
    for shape in SHAPES:
        tensor = random_bits(dtype, shape)
        for reader in held(stored(tensor, config)):
            for _ in range(2):
                assert same_bits(reader.decode(), tensor)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("values", ["normal", "ones to two", "equal", "random bits"])
@pytest.mark.parametrize("records", [1, 3, 40])
def test_single_records_of_pages_are_what_all_of_them_together_are(
    dtype: torch.dtype, values: str, records: int
) -> None:
    shape = (records, 300)
    tensor = {
        "normal": lambda: normal(torch.float32, shape).to(dtype),
        "ones to two": lambda: normal(torch.float32, shape).abs().clamp(0, 0.9).add(1).to(dtype),
        "equal": lambda: torch.full(shape, 3.0).to(dtype),
        "random bits": lambda: random_bits(dtype, shape),
    }[values]()
    for preset in ("lossless", "none", "fast", "archive"):
        for reader in held(stored(tensor, preset, page=True)):
            whole = reader.decode()
            assert same_bits(whole, tensor)
            for row in {0, records // 2, records - 1}:
                assert same_bits(reader.decode_row(row), tensor[row])
            with pytest.raises(IndexError):
                reader.decode_row(records)


def test_small_floats_go_that_way_and_large_or_quantized_ones_do_not() -> None:
    def short(tensor: torch.Tensor, config: CompressionConfig | str) -> bool:
        return ShortReads.of(stored(tensor, config)._chunks) is not None

    assert short(normal(torch.float32, (1536,)), "lossless")
    assert short(normal(torch.float32, (MOST_NBYTES // 4,)), "lossless")
    assert not short(normal(torch.float32, (MOST_NBYTES // 4 + 1,)), "lossless")
    assert not short(normal(torch.float32, (1536,)), "maximum")
    assert not short(torch.empty(0, 3), "lossless")


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("preset", ["lossless", "none", "fast"])
def test_a_damaged_byte_is_an_error_and_the_same_one_as_elsewhere(preset: str, page: bool) -> None:
    tensor = normal(torch.float32, (2, 700))
    good = payload_of(tensor, preset, page=page)
    for at in range(64, len(good), 97):
        payload = bytearray(good)
        payload[at] ^= 4
        try:
            reader = PayloadReader(payload)
        except (IntegrityError, FormatError):
            continue
        outcomes = []
        for decode in (reader.decode, lambda reader=reader: reader.decode(out=empty(reader.spec))):
            try:
                outcomes.append(same_bits(decode(), tensor))
            except IntegrityError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]
        assert outcomes[0] is not False


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("preset", ["lossless", "none"])
@pytest.mark.parametrize("page", [False, True])
def test_what_was_decoded_is_ones_own(preset: str, page: bool) -> None:
    tensor = normal(torch.float32, (6, 500))
    reader = stored(tensor, preset, page=page)
    first, second = (reader.decode_row(2) if page else reader.decode() for _ in range(2))
    expected = first.clone()
    first.fill_(9)
    assert same_bits(second, expected)
    assert same_bits(reader.decode(), tensor)


@pytest.mark.parametrize("preset", ["lossless", "none"])
def test_where_torch_makes_new_tensors_does_not_matter(preset: str) -> None:
    tensor = normal(torch.float32, (700,))
    reader = stored(tensor, preset)
    with torch.device("meta"):
        decoded = reader.decode()
    assert same_bits(decoded, tensor)
    with FakeTensorMode(), pytest.raises(RuntimeError, match="subclasses"):  # which have no memory to write to
        reader.decode()


@pytest.mark.usefixtures("loops")
def test_threads_share_a_reader() -> None:
    tensors = [normal(torch.float32, (700,), seed) for seed in range(4)]
    readers = [stored(each, "lossless").in_memory() for each in tensors]
    together = threading.Barrier(4)

    def read(seed: int) -> bool:
        together.wait()
        return all(same_bits(readers[turn % 4].decode(), tensors[turn % 4]) for turn in range(seed, seed + 400))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that send signals")
@pytest.mark.usefixtures("loops")
def test_a_signals_handler_may_read_while_its_thread_reads() -> None:
    tensors = [normal(torch.float32, (1536,), seed) for seed in range(2)]
    readers = [stored(each, "lossless").in_memory() for each in tensors]
    handled: list[bool] = []
    before = signal.signal(signal.SIGALRM, lambda *_: handled.append(same_bits(readers[1].decode(), tensors[1])))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        turns = [same_bits(readers[0].decode(), tensors[0]) for _ in range(3000)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all(turns)
    assert handled
    assert all(handled)
