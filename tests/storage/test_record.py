"""Records, pages and their representations."""

import datetime as dt

import pytest
import torch

from tensordb import Encoding, Page, Record, TensorStorage

from .tensors import DTYPES, sample

HOSTILE = "<script>alert('x')</script>\"&"


def test_a_record_s_fields_by_name_and_by_key(runs: TensorStorage) -> None:
    record = runs.get_tensor_by_id("data", "r2")
    assert isinstance(record, Record)
    assert record.id == record["id"] == record["record_id"] == "r2"
    assert record["tensor"] is record.tensor
    assert record["metadata"] is record.metadata
    assert record["dataset"] == record.dataset == "data"
    assert isinstance(record["created_at"], dt.datetime)
    assert isinstance(record.encoding, Encoding)
    assert dict(record)["metadata"] == {"step": 2, "loss": 0.8, "tag": "even"}
    with pytest.raises(KeyError, match="nope"):
        record["nope"]


def test_encoding_says_what_was_applied(data: TensorStorage) -> None:
    tensor = torch.randn(100, 300)
    data.set_compression_preset("maximum")
    encoding = data.get_tensor_by_id("data", data.insert("data", tensor)).encoding
    assert encoding.quantization == "int8"
    assert encoding.quantization_parameters["granularity"] == "per_group"
    assert encoding.original_nbytes == 120_000
    assert encoding.ratio == pytest.approx(120_000 / encoding.stored_nbytes)
    assert 3 < encoding.ratio < 5
    assert 0 < encoding.error.relative_l2 < 0.02
    assert 30 < encoding.error.snr_db < 60
    assert encoding.error.max_abs > 0
    empty = data.get_tensor_by_id("data", data.insert("data", torch.empty(0))).encoding
    assert (empty.original_nbytes, empty.ratio) == (0, 1.0)


def test_representations_are_short_and_say_what_it_is(runs: TensorStorage) -> None:
    runs.insert("data", torch.randn(1000, 10), {"text": "y" * 10_000}, record_id="long")
    record = runs.get_tensor_by_id("data", "long")
    for text in (repr(record), repr(runs.get_records_paginated("data", 0, 3)), repr(runs)):
        assert "\n" not in text
        assert len(text) < 600
    assert "float32[1000, 10]" in repr(record)
    assert "'long'" in repr(record)
    page = runs.get_records_paginated("data", 3, 3)
    assert repr(page) == "Page(records 3 to 5 of 11, next=6)"
    assert "11 in all" in repr(runs.get_records_paginated("data", 50))


def test_a_record_shows_what_was_lost_and_why_something_stayed_lossless(data: TensorStorage) -> None:
    data.set_compression_preset("q4")
    weights = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    lossy = data.get_tensor_by_id("data", data.insert("data", weights))
    kept = data.get_tensor_by_id("data", data.insert("data", torch.arange(100)))
    for text in (repr(lossy), lossy._repr_html_()):
        assert f"{lossy.encoding.error.snr_db:.1f} dB" in text
    for text in (repr(kept), kept._repr_html_()):
        assert "int64 is not quantized; stored lossless" in text
    totals = data.get_compression_stats("data")._repr_html_()
    assert f"{lossy.encoding.error.snr_db:.1f} dB" in totals
    assert "lossless" in totals


def test_html_escapes_what_users_wrote(db: TensorStorage) -> None:
    db.create_dataset(HOSTILE)
    db.insert(HOSTILE, torch.ones(2), {HOSTILE: HOSTILE, "n": {"m": [HOSTILE]}}, record_id=HOSTILE)
    record = db.get_tensor_by_id(HOSTILE, HOSTILE)
    page = db.get_records_paginated(HOSTILE)
    assert isinstance(page, Page)
    for shown in (record, page, db, db.get_compression_stats(HOSTILE)):
        text = shown._repr_html_()
        assert text.startswith("<table>")
        assert "<script>" not in text
        assert "&lt;script&gt;" in text


def test_every_dtype_can_be_shown(data: TensorStorage) -> None:
    for dtype in DTYPES:
        for shape in ((), (0,), (2, 3)):
            record = data.get_tensor_by_id("data", data.insert("data", sample(dtype, *shape)))
            assert str(dtype).removeprefix("torch.") in repr(record)
            assert "<table>" in record._repr_html_()


def test_the_storage_shows_its_datasets(runs: TensorStorage) -> None:
    runs.create_dataset("empty")
    text = runs._repr_html_()
    assert "data" in text
    assert "empty" in text
    assert "10" in text
    with TensorStorage(None) as nothing:
        assert "<table>" in nothing._repr_html_()
        assert "in memory" in repr(nothing)
