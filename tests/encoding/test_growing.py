"""A payload written while it is made is the payload that is made at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from tensordb.encoding import Base, CompressionConfig, PayloadReader, encode, get_compression_preset
from tensordb.encoding.pipeline import prepare
from tensordb.encoding.workers import InOrder, for_each

from .samples import normal, same_bits

CONFIGS = {
    **{name: get_compression_preset(name) for name in ("none", "lossless", "fast", "balanced", "maximum", "q6")},
    "int4": CompressionConfig("auto", "int4", quantization_kwargs={"granularity": 64}),
}


def joined(buffers: Any) -> bytes:
    return b"".join(bytes(memoryview(each).cast("B")) for each in buffers)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_has_the_same_bytes(config: CompressionConfig) -> None:
    tensor = normal(torch.float32, (4500, 1001))
    tensor[:400] = 0
    tensor[7, 8] = torch.nan
    prepared = prepare(tensor, config)
    assert prepared.lead is not None
    parts: list[bytes] = []
    grown = prepared.encode_growing(lambda buffers: parts.append(joined(buffers)))
    assert grown is not None
    assert len(parts) > 1
    whole = joined(grown.buffers) + b"".join(parts)
    assert len(joined(grown.buffers)) == prepared.lead
    assert grown.nbytes == len(whole) <= prepared.most
    at_once = encode(tensor, config)
    assert (grown.object_id, grown.content_id) == (at_once.object_id, at_once.content_id)
    assert whole == joined(at_once.buffers)
    assert same_bits(PayloadReader(whole).decode(), PayloadReader(joined(at_once.buffers)).decode())


@pytest.mark.parametrize("step", [1e-5, 1.0])
def test_a_change_from_a_base_has_the_same_bytes(step: float) -> None:
    first = normal(torch.float32, (4500, 1001))
    known = encode(first, CONFIGS["lossless"])
    base = Base(known.content_id, PayloadReader(joined(known.buffers)))
    prepared = prepare(first + step, CONFIGS["lossless"], base=base)
    parts: list[bytes] = []
    grown = prepared.encode_growing(lambda buffers: parts.append(joined(buffers)))
    assert grown is not None
    at_once = encode(first + step, CONFIGS["lossless"], base=base)
    assert at_once.encoding.compression.startswith("delta") == (step < 1)
    assert joined(grown.buffers) + b"".join(parts) == joined(at_once.buffers)
    assert len(joined(grown.buffers)) == prepared.lead


def test_a_small_tensor_and_one_with_several_plans_are_made_at_once() -> None:
    assert prepare(torch.zeros(1000), get_compression_preset("lossless")).lead is None
    assert prepare(normal(torch.float32, (2500, 1000)), get_compression_preset("archive")).lead is None


def test_what_threads_finish_in_any_order_is_taken_in_its_own() -> None:
    taken: list[int] = []
    in_order = InOrder(taken.append)
    for_each(5000, lambda index: in_order.put(index, index))
    assert taken == list(range(5000))
    late: list[int] = []
    in_order = InOrder(late.append)
    threads = [threading.Thread(target=in_order.put, args=(index, index)) for index in range(50, -1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert late == list(range(51))
