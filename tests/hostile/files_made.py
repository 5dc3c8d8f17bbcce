"""Small files of every kind that is imported: what the fuzzer begins with."""

from __future__ import annotations

import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)


def npy() -> list[bytes]:
    arrays = (X, np.asfortranarray(X), np.arange(5), X.astype(">f4"), np.ones((0, 3)), X > 3, X.astype(np.complex64))
    return [_saved(np.save, each) for each in (*arrays, np.array(["a", "b"]), np.zeros((2, 0), np.int8))]


def npz() -> list[bytes]:
    label, name = np.arange(4), np.array(list("abcd"))
    when = np.array(["2024-01-02"] * 4, "datetime64[D]")
    return [
        _saved(np.savez, x=X, label=label, name=name, when=when),
        _saved(np.savez_compressed, x=X, label=label, score=label / 3, pair=label.reshape(4, 1)[:, 0] > 1),
        _saved(np.savez_compressed, tensor=np.zeros((4, 64)), x=np.asfortranarray(X)),
    ]


def safetensors() -> list[bytes]:
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(True)}
    said = {"tensordb.records": json.dumps({"a": {"n": 1, "x": [1.5, None]}, "b": {"$msgpack": "gaFhAQ=="}})}
    return [save(tensors), save(tensors, {"format": "pt", **said}), save({})]


def parquet() -> list[bytes]:
    return [_saved(lambda file, table, each=each: pq.write_table(table, file, **each), table)
            for table in _tables() for each in ({}, {"compression": "none", "use_dictionary": False})]  # fmt: skip


def arrow() -> list[bytes]:
    return [_saved(_write_arrow, table, kind) for table in _tables() for kind in (pa.ipc.new_file, pa.ipc.new_stream)]


def torch_files() -> list[bytes]:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "global_step": 7}
    lightning = {"pytorch-lightning_version": "2.5", "state_dict": model.state_dict(), "optimizer_states": [{"a": 1}]}
    others = {
        "sparse": torch.eye(2).to_sparse(),
        "list": [torch.ones(2)[1:], (1, "x", None)],
        "half": torch.ones(2).half(),
    }
    states = (whole, lightning, others, torch.ones(3))
    return [_saved(lambda file, state: torch.save(state, file), each) for each in states] + [
        _saved(lambda file, state: torch.save(state, file, _use_new_zipfile_serialization=False), whole)
    ]


def shard_indexes() -> list[bytes]:
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    return [
        json.dumps(each).encode()
        for each in ({"metadata": {"total_size": 24}, "weight_map": places}, {"weight_map": {}})
    ]


def write_shards(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate("ab", 1):
        path = folder / f"model-0000{number}-of-00002.safetensors"
        if not path.exists():
            path.write_bytes(save({name: torch.ones(2, number), "both": torch.zeros(1)}))


def pictures() -> dict[str, list[bytes]]:
    """Return encoded pictures by suffix."""
    rgb = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    grey, deep = rgb.convert("L"), Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4))
    palette, alpha = rgb.convert("P"), rgb.convert("RGBA")
    return {
        "png": [_picture(each, "PNG") for each in (rgb, grey, deep, palette, alpha, rgb.convert("1"))],
        "jpg": [_picture(rgb, "JPEG"), _picture(rgb.convert("CMYK"), "JPEG")],
        "bmp": [_picture(each, "BMP") for each in (rgb, palette)],
        "gif": [_picture(palette, "GIF"), _picture(palette, "GIF", save_all=True, append_images=[palette])],
        "tiff": [_picture(each, "TIFF") for each in (rgb, deep)] + [_picture(rgb, "TIFF", compression="tiff_lzw")],
        "webp": [_picture(rgb, "WEBP"), _picture(alpha, "WEBP", lossless=True)],
        "ppm": [_picture(rgb, "PPM"), b"P3\n2 1\n255\n1 2 3 4 5 6\n", b"P2\n2 1\n9\n1 2\n"],
    }


def _tables() -> list[pa.Table]:
    fixed = pa.FixedShapeTensorArray.from_numpy_ndarray(X)
    ragged = pa.StructArray.from_arrays(
        [pa.array([[1.5], [2.0, 3.0]], pa.large_list(pa.float32())), pa.array([[1], [2, 1]], pa.list_(pa.int64()))],
        names=["data", "shape"],
    )
    mixed = pa.StructArray.from_arrays(
        [pa.array([b"\0" * 4, b"\1"], pa.large_binary()), pa.array([[1], [1]], pa.list_(pa.int64())),
         pa.array(["float32", "uint8"])], names=["data", "shape", "dtype"],
    )  # fmt: skip
    plain = {
        "label": list("abcd"), "when": [dt.datetime(2024, 1, 2)] * 4, "day": [dt.date(2024, 1, 2)] * 4,
        "n": [1, None, 3, 4], "s": [{"a": 1, "b": ["x"]}] * 4, "f": [0.5] * 4,
        "id": pa.array(list("wxyz")).dictionary_encode(),
    }  # fmt: skip
    lists = pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], pa.list_(pa.list_(pa.int16())))
    picture = pa.array(
        [{"bytes": pictures()["png"][0], "path": None}], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    said = {b"tensordb.columns": json.dumps({"tensor": "x", "document": "d", "fields": {"l": "l"}}).encode()}
    ours = pa.table({"x": lists, "l": ["a", None], "d": pa.array([b"\x81\xa1l\xa1a", b"\x81\xa1l\xc0"], pa.binary())})
    odd = {
        "t": pa.array([1, 2], pa.time64("us")),
        "d": pa.array([1, 2], pa.duration("ns")),
        "z": pa.array([1, 2], pa.timestamp("ns", "UTC")),
    }
    return [
        pa.table({"x": fixed, **plain}), pa.table({"x": ragged, **odd}), pa.table({"x": mixed}),
        ours.replace_schema_metadata(said), pa.table({"image": picture, "m": [{"k": 1}]}),
    ]  # fmt: skip


def _write_arrow(file: Any, table: pa.Table, kind: Any) -> None:
    with kind(file, table.schema) as writer:
        writer.write_table(table)


def _picture(image: Image.Image, kind: str, **options: Any) -> bytes:
    return _saved(lambda file: image.save(file, kind, **options))


def _saved(write: Any, *values: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    write(file, *values, **named)
    return file.getvalue()
