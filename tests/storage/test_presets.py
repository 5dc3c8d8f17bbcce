"""Presets and configs: they decide what is written from now on, never what is read."""

from pathlib import Path

import pytest
import torch

from tensordb import (
    COMPRESSION_PRESETS,
    CompressionConfig,
    InvalidInputError,
    TensorStorage,
    UnknownPresetError,
    get_compression_preset,
)

from .tensors import same

QUANTIZED = {"balanced": "fp16", "maximum": "int8", "fp16_only": "fp16", "bf16_only": "bf16", "int8_only": "int8"}
QUANTIZED |= {"q6": "uniform", "q5": "uniform", "q4": "uniform"}
WORST = {"fp16": 1e-3, "bf16": 1e-2, "int8": 2e-2, "uniform": 7e-2}


def weights(seed: int = 0) -> torch.Tensor:
    return torch.randn(64, 256, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("paged", [False, True])
def test_records_of_every_preset_live_side_by_side_and_read_the_same_after_changes(tmp_path: Path, paged: bool) -> None:
    tensor = weights()
    first: dict[str, tuple[str, torch.Tensor, object]] = {}
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("data")
        for name in COMPRESSION_PRESETS:
            db.set_compression_preset(name)
            record_id = db.insert_many("data", tensor)[5] if paged else db.insert("data", tensor)
            record = db.get_tensor_by_id("data", record_id)
            first[name] = (record_id, record.tensor, record.encoding)
    for preset in ("none", "int8_only"):
        with TensorStorage(tmp_path / "db", compression_preset=preset) as db:
            for name, (record_id, stored, encoding) in first.items():
                record = db.get_tensor_by_id("data", record_id)
                assert same(record.tensor, stored), name
                assert record.encoding == encoding
                assert record.encoding.quantization == QUANTIZED.get(name, "none")
                expected = tensor[5] if paged else tensor
                if name in QUANTIZED:
                    error = (record.tensor - expected).norm() / expected.norm()
                    assert 0 < error < WORST[QUANTIZED[name]]
                    if not paged:
                        assert record.encoding.error.relative_l2 == pytest.approx(float(error), rel=1e-3)
                else:
                    assert same(record.tensor, expected), name
                    assert record.encoding.error.relative_l2 == 0
            assert db.verify().ok


def test_the_same_tensor_under_several_presets_keeps_each_encoding(data: TensorStorage) -> None:
    tensor = weights()
    ids = {}
    for name in ("none", "lossless", "fp16_only", "int8_only", "none", "int8_only"):
        data.set_compression_preset(name)
        ids.setdefault(name, []).append(data.insert("data", tensor))
    assert data.get_compression_stats("data").objects == 4
    for name, record_ids in ids.items():
        for record in data.get_many("data", record_ids):
            assert record.encoding.quantization == QUANTIZED.get(name, "none")
    data.delete_tensor("data", ids["int8_only"][0])
    assert data.get_tensor_by_id("data", ids["int8_only"][1]).encoding.quantization == "int8"
    assert same(data.get_tensor_by_id("data", ids["lossless"][0]).tensor, tensor)


def test_a_dataset_s_own_config_goes_before_the_storage_s(db: TensorStorage) -> None:
    db.create_dataset("plain")
    db.create_dataset("half", compression_preset="fp16_only")
    db.create_dataset(
        "coded", compression_config=CompressionConfig("zstd", compression_kwargs={"level": 9, "filter": "planes"})
    )
    db.set_compression_preset("int8_only")
    assert {
        name: db.get_tensor_by_id(name, db.insert(name, weights())).encoding.quantization
        for name in ("plain", "half", "coded")
    } == {"plain": "int8", "half": "fp16", "coded": "none"}
    encoding = db.query("coded")[0].encoding
    assert encoding.compression == "planes+zstd"
    assert encoding.compression_parameters["level"] == 9


def test_a_dataset_s_own_config_holds_after_reopening(tmp_path: Path) -> None:
    with TensorStorage(tmp_path / "db") as db:
        db.create_dataset("half", compression_preset="fp16_only")
    with TensorStorage(tmp_path / "db", compression_preset="none") as db:
        assert db.get_tensor_by_id("half", db.insert("half", weights())).encoding.quantization == "fp16"


@pytest.mark.parametrize("codec", ["none", "zstd", "lz4", "gzip", "zlib", "lzma", "auto", "best"])
def test_every_codec_through_the_storage(codec: str) -> None:
    with TensorStorage(None, compression_config=CompressionConfig(codec)) as db:
        db.create_dataset("data")
        for tensor in (torch.arange(5000) % 7, weights(), torch.zeros(0), torch.tensor(1.5)):
            record = db.get_tensor_by_id("data", db.insert("data", tensor))
            assert same(record.tensor, tensor)
            if codec not in ("auto", "best") and tensor.numel() == 5000:
                assert record.encoding.compression == codec


def test_what_a_quantizer_cannot_keep_stays_lossless_and_says_so(db: TensorStorage) -> None:
    db.create_dataset("data", compression_preset="int8_only")
    for tensor in (
        torch.arange(100),
        torch.rand(100) > 0.5,
        torch.randn(50, dtype=torch.complex64),
        torch.tensor(1.5),
        torch.empty(0),
        torch.randn(3),
        torch.zeros(40, dtype=torch.uint8),
    ):
        record = db.get_tensor_by_id("data", db.insert("data", tensor))
        assert same(record.tensor, tensor)
        assert record.encoding.quantization == "none"
        assert record.encoding.note
    special = torch.randn(1000)
    special[3:6] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    restored = db.get_tensor_by_id("data", db.insert("data", special)).tensor
    assert restored[3].isnan()
    assert restored[4] == float("inf")
    assert restored[5] == float("-inf")
    assert (restored - special)[6:].abs().max() < 0.1


def test_values_far_from_zero_survive_int8_and_large_ones_fp16(db: TensorStorage) -> None:
    db.create_dataset("int8", compression_preset="int8_only")
    db.create_dataset("fp16", compression_preset="fp16_only")
    far = torch.linspace(100, 101, 4096)
    assert (db.get_tensor_by_id("int8", db.insert("int8", far)).tensor - far).abs().max() < 0.003
    large = torch.full((100,), 70_000.0)
    restored = db.get_tensor_by_id("fp16", db.insert("fp16", large)).tensor
    assert restored.isfinite().all()
    assert (restored - large).abs().max() <= 70_000 * 1e-3


def test_settings_that_do_not_exist_list_those_that_do(db: TensorStorage, tmp_path: Path) -> None:
    for make in (
        lambda: TensorStorage(tmp_path / "never", compression_preset="nope"),
        lambda: db.set_compression_preset("nope"),
        lambda: get_compression_preset("nope"),
    ):
        with pytest.raises(UnknownPresetError, match="lossless"):
            make()
    assert not (tmp_path / "never").exists()
    with pytest.raises(UnknownPresetError, match="zstd"):
        CompressionConfig("brotli")
    with pytest.raises(UnknownPresetError, match="int8"):
        CompressionConfig("zstd", "int3")
    with pytest.raises(InvalidInputError, match="level"):
        CompressionConfig("zstd", compression_kwargs={"level": 23})
    with pytest.raises(InvalidInputError, match="both"):
        TensorStorage(None, compression_preset="none", compression_config=CompressionConfig("none"))
    for wrong in ("zstd", {"compression": "zstd"}, None):
        with pytest.raises(InvalidInputError, match="CompressionConfig"):
            db.set_compression_config(wrong)  # type: ignore[arg-type]


def test_set_compression_config_is_used_from_then_on(data: TensorStorage) -> None:
    before = data.insert("data", torch.arange(3000))
    data.set_compression_config(CompressionConfig("lzma"))
    after = data.insert("data", torch.arange(3001))
    assert data.get_tensor_by_id("data", before).encoding.compression != "lzma"
    assert data.get_tensor_by_id("data", after).encoding.compression == "lzma"
