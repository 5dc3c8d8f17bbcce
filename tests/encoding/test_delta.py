"""A tensor stored as what changed since an earlier one comes back with every bit, and is never larger for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensordb.encoding import Base, CompressionConfig, EncodedTensor, PayloadReader, encode, get_compression_preset
from tensordb.encoding.pipeline import prepare
from tensordb.errors import FormatError, IntegrityError, InvalidInputError
from tensordb.tensors import byte_view, spec_of, view_of

from .samples import DTYPES, normal, random_bits, same_bits
from .test_golden import GOLDEN, wave

LOSSLESS = get_compression_preset("lossless")


def joined(encoded: EncodedTensor) -> bytes:
    return b"".join(bytes(memoryview(part).cast("B")) for part in encoded.buffers)


class Chain:
    """Versions of a tensor, each stored as what changed since the one before."""

    def __init__(self) -> None:
        self.readers: dict[bytes, PayloadReader] = {}
        self.last: Base | None = None

    def add(self, tensor: torch.Tensor, config: CompressionConfig = LOSSLESS) -> PayloadReader:
        encoded = encode(tensor, config, base=self.last)
        reader = PayloadReader(joined(encoded), bases=self.readers.__getitem__)
        self.readers[encoded.content_id] = reader
        self.last = Base(encoded.content_id, reader)
        return reader


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_comes_back_whatever_the_dtype(dtype: torch.dtype) -> None:
    first = random_bits(dtype, (300, 17))
    changed = byte_view(first).copy()
    places = np.random.default_rng(1).integers(0, changed.nbytes, 200)
    changed[places] ^= 1
    chain = Chain()
    chain.add(first)
    second = view_of(changed, spec_of(first))
    reader = chain.add(second)
    assert reader.base_id is not None
    assert same_bits(reader.decode(), second)
    assert same_bits(reader.decode_index((slice(3, 9), 2)), second[3:9, 2])
    assert same_bits(reader.decode_rows([5]), second[5:6])
    reader.verify()


@given(st.integers(1, 2000), st.integers(0, 1 << 32), st.integers(0, 1 << 32))
def test_any_bits_come_back_from_any_base(words: int, one: int, other: int) -> None:
    chain = Chain()
    chain.add(random_bits(torch.int64, (words,), one))
    changed = random_bits(torch.int64, (words,), other)
    assert same_bits(chain.add(changed).decode(), changed)


@pytest.mark.parametrize(("dtype", "alone", "against"), [(torch.float32, 1.15, 1.9), (torch.bfloat16, 1.4, 8)])
def test_a_small_step_of_training_is_small(dtype: torch.dtype, alone: float, against: float) -> None:
    weights = normal(torch.float32, (600, 500))
    chain = Chain()
    assert chain.add(weights.to(dtype)).encoding.ratio > alone
    stepped = (weights + 1e-5 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))).to(dtype)
    reader = chain.add(stepped)
    assert reader.encoding.compression == "delta+zstd"
    assert reader.encoding.ratio > against
    assert same_bits(reader.decode(), stepped)


def test_chunks_that_changed_altogether_are_stored_by_themselves() -> None:
    first = normal(torch.float32, (4, 65536))  # four chunks
    second = first.clone()
    second[1] = normal(torch.float32, (65536,), seed=7)
    second[2, 5] += 1
    chain = Chain()
    chain.add(first)
    reader = chain.add(second)
    assert same_bits(reader.decode(), second)
    one_alone = encode(second[1].clone(), LOSSLESS).nbytes
    assert one_alone < reader.encoding.stored_nbytes < one_alone * 1.02


def test_one_changed_element_costs_next_to_nothing_and_a_new_tensor_no_more_than_alone() -> None:
    first = normal(torch.float32, (600, 500))
    chain = Chain()
    chain.add(first)
    second = first.clone()
    second[3, 4] = 5
    assert encode(second, LOSSLESS, base=chain.last).nbytes < 600
    other = normal(torch.float32, (600, 500), seed=9)
    assert encode(other, LOSSLESS, base=chain.last).nbytes <= encode(other, LOSSLESS).nbytes


def test_an_equal_tensor_is_the_same_object_and_not_its_own_base() -> None:
    first = normal(torch.float32, (600, 500))
    chain = Chain()
    chain.add(first)
    assert encode(first, LOSSLESS, base=chain.last).object_id == encode(first, LOSSLESS).object_id


def test_the_content_id_does_not_depend_on_the_base() -> None:
    chain = Chain()
    chain.add(normal(torch.float32, (100, 100)))
    second = normal(torch.float32, (100, 100)) + 1e-6
    reader = chain.add(second)
    assert chain.last is not None
    assert chain.last.content_id == encode(second, LOSSLESS).content_id == reader.content_id()


@pytest.mark.parametrize("step", [1e-5, 1e-3, 1.0])
def test_a_sample_decides_so_that_one_plan_is_left(step: float) -> None:
    first = normal(torch.float32, (1500, 1000))
    second = first + step * torch.randn(first.shape, generator=torch.Generator().manual_seed(1))
    chain = Chain()
    chain.add(first)
    prepared = prepare(second, LOSSLESS, base=chain.last)
    (plan,) = prepared.plans
    assert prepared.lead is not None
    encoded = prepared.encode()
    alone = encode(second, LOSSLESS).nbytes
    if plan.base is None:
        assert step == 1
        assert encoded.nbytes == alone
    else:
        assert encoded.nbytes < 0.985 * alone


def test_what_changed_in_one_place_is_found_wherever_it_is() -> None:
    first = normal(torch.float32, (40, 65536))  # forty chunks
    chain = Chain()
    chain.add(first)
    for place in (0, 17, 39):
        second = first.clone()
        second[place] = normal(torch.float32, (65536,), seed=place + 1)
        assert encode(second, LOSSLESS, base=chain.last).nbytes < 1.02 * encode(second[place].clone(), LOSSLESS).nbytes


def test_a_tensor_equal_to_its_base_but_for_the_shape_is_a_change_of_nothing() -> None:
    first = normal(torch.float32, (600, 500))
    chain = Chain()
    chain.add(first)
    turned = first.reshape(500, 600)
    encoded = encode(turned, LOSSLESS, base=chain.last)
    assert encoded.nbytes < 600
    assert same_bits(PayloadReader(joined(encoded), bases=chain.readers.__getitem__).decode(), turned)


def test_a_few_numbers_are_stored_without_a_base() -> None:
    first = normal(torch.float32, (500,))
    chain = Chain()
    chain.add(first)
    assert encode(first + 1e-6, LOSSLESS, base=chain.last).encoding.compression == "planes+zstd"


def test_a_chunk_by_itself_is_read_without_the_base() -> None:
    first = normal(torch.float32, (4, 65536))  # four chunks
    second = first.clone()
    second[1] = normal(torch.float32, (65536,), seed=7)
    chain = Chain()
    chain.add(first)
    assert chain.last is not None
    payload = joined(encode(second, LOSSLESS, base=chain.last))
    alone = PayloadReader(payload)
    assert alone.base_id == chain.last.content_id
    assert same_bits(alone.decode_index(1), second[1])
    with pytest.raises(IntegrityError, match="read it with that base"):
        alone.decode_index(2)


@pytest.mark.parametrize("config", ["lossless", "balanced", "archive"])
def test_the_content_id_is_known_without_a_look_for_ways_to_write(config: str) -> None:
    tensor = normal(torch.float32, (600, 500))
    prepared = prepare(tensor, get_compression_preset(config))
    content_id = prepared.content_id()
    assert "plans" not in vars(prepared)
    assert content_id == prepared.encode().content_id == encode(tensor, get_compression_preset(config)).content_id


def test_codes_of_a_quantizer_have_deltas_too() -> None:
    weights = normal(torch.float32, (200, 256))
    config = CompressionConfig("auto", "bf16")
    chain = Chain()
    chain.add(weights, config)
    reader = chain.add(weights + 1e-6, config)
    assert reader.encoding.compression == "delta+zstd"
    assert same_bits(reader.decode(), (weights + 1e-6).bfloat16().float())


def test_a_long_chain_is_read_to_its_end() -> None:
    chain = Chain()
    value = normal(torch.float32, (70_000,))
    for _ in range(40):
        value = value + 1e-6
        reader = chain.add(value)
    assert same_bits(reader.decode(), value)


@pytest.mark.parametrize(
    "other",
    [torch.zeros(99, 100), torch.zeros(100, 100, dtype=torch.float64), torch.zeros(0, 100)],
    ids=lambda tensor: str(tensor.shape),
)
def test_a_base_of_another_kind_is_not_used(other: torch.Tensor) -> None:
    chain = Chain()
    chain.add(other)
    tensor = normal(torch.float32, (100, 100))
    assert encode(tensor, LOSSLESS, base=chain.last).object_id == encode(tensor, LOSSLESS).object_id


def test_a_page_has_no_base() -> None:
    chain = Chain()
    chain.add(torch.zeros(4, 100))
    with pytest.raises(InvalidInputError, match="page"):
        encode(torch.zeros(4, 100), LOSSLESS, page=True, base=chain.last)


def changed_payload() -> tuple[bytes, bytes, PayloadReader]:
    """A payload that needs a base, the base's content id, and the base."""
    first = encode(normal(torch.float32, (100, 100)), LOSSLESS)
    base = PayloadReader(joined(first))
    second = encode(normal(torch.float32, (100, 100)) + 1e-6, LOSSLESS, base=Base(first.content_id, base))
    return joined(second), first.content_id, base


def test_a_missing_or_wrong_base_is_an_error() -> None:
    payload, content_id, base = changed_payload()
    reader = PayloadReader(payload)
    assert reader.base_id == content_id
    with pytest.raises(IntegrityError, match=content_id.hex()):
        reader.decode()
    for wrong in (torch.zeros(99, 100), torch.zeros(100, 100).half()):
        other = PayloadReader(joined(encode(wrong, LOSSLESS)))
        with pytest.raises(IntegrityError, match="another dtype or shape"):
            PayloadReader(payload, bases=lambda _, other=other: other).decode()
    assert PayloadReader(payload, bases=lambda _: base).decode().shape == (100, 100)


def test_a_payload_that_is_its_own_base_is_refused() -> None:
    payload, _, _ = changed_payload()

    def again(_: bytes) -> PayloadReader:
        return PayloadReader(payload, bases=again)

    with pytest.raises(FormatError, match="64 bases"):
        again(b"").decode()


def golden_change() -> torch.Tensor:
    """What was stored as changes since the golden payload `page`."""
    changed = wave((40, 120))
    changed[3, 4:90] += 1 / 128
    changed[17] *= -1
    return changed


def test_an_older_delta_is_read_as_it_was_written() -> None:
    base = PayloadReader((GOLDEN / "delta-changed-base").read_bytes())
    payload = (GOLDEN / "delta-changed").read_bytes()
    reader = PayloadReader(payload, bases={base.content_id(): base}.__getitem__)
    assert reader.encoding.compression == "delta+zstd"
    assert same_bits(reader.decode(), golden_change())


def test_no_flipped_bit_gives_a_wrong_tensor() -> None:
    payload, _, base = changed_payload()
    right = PayloadReader(payload, bases=lambda _: base).decode()
    for position in range(0, len(payload) * 8, 61):
        damaged = bytearray(payload)
        damaged[position // 8] ^= 1 << position % 8
        try:
            assert same_bits(PayloadReader(damaged, bases=lambda _: base).decode(), right), position
        except (IntegrityError, FormatError):
            continue
