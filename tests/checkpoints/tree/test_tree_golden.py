"""A document that was written once stays readable, and is written the same for as long as its version stands."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter, OrderedDict
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import torch
from torch import nn

from tensordb.checkpoints.tree import flatten, unflatten
from tensordb.checkpoints.tree.containers import CODES, TENSOR
from tensordb.checkpoints.tree.values import BY_CODE
from tensordb.checkpoints.tree.wire import Mark, unpack
from tensordb.tensors import snapshot

from .trees import assert_same

GOLDEN = Path(__file__).with_name("golden") / "tree-1.bin"


def every_kind():
    base = torch.arange(8.0)
    state = OrderedDict(weight=nn.Parameter(base[:4]), tied=base[2:6].view(torch.int32), flag=base[:4])
    state._metadata = OrderedDict({"": {"version": 1}})
    return {
        "model": state,
        "sparse": torch.eye(2).to_sparse(),
        "array": np.arange(3, dtype=">i2"),
        "text array": np.array(["a", "bc"]),
        "containers": [(), {1}, frozenset({"a"}), Counter({3: 1}), {(1, b"k"): None, True: 2, 1.5: 3}],
        "atoms": [None, True, -7, 2**70, -(2**70), 0.1, -0.0, "ü\ud800", b"\xff", bytearray(b"x"), 1j],
        "times": [
            dt.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=ZoneInfo("UTC"), fold=1),
            dt.date(2024, 1, 2),
            dt.time(1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2), "two")),
            dt.timedelta(1, 2, 3),
        ],
        "numbers": [Decimal("1.50"), uuid.UUID(int=5), range(1, 9, 2), slice(1, None), np.float32(0.5), np.str_("t")],
        "bytes": np.bytes_(b"b"),
        "torch": [torch.float16, torch.strided, torch.channels_last, torch.device("cuda:1"), torch.Size([2])],
    }


def test_the_golden_document_is_read_and_written_as_ever():
    flat = flatten(every_kind())
    assert flat.document == GOLDEN.read_bytes()
    result = unflatten(GOLDEN.read_bytes(), lambda index: snapshot(flat.leaves[index].tensor, copy=True))
    assert_same(result, every_kind())


def test_the_golden_document_holds_every_kind_of_value():
    codes = {token.code for token in unpack(GOLDEN.read_bytes()) if type(token) is Mark}
    assert codes == {TENSOR, *CODES.values(), *BY_CODE}
