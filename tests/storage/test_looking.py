"""Looking at records, datasets and results: pictures in a notebook, plots with matplotlib."""

from __future__ import annotations

import base64
import math
import re
import struct
import sys
import time
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import tensordb
from tensordb import InvalidInputError, MissingDependencyError, Record, TensorStorage
from tensordb.catalog.records import Selection
from tensordb.datasets.showing import dataset_html
from tensordb.looking.figures import Figures
from tensordb.looking.views import ALL, picture_of, sample_of

from .kept import Kept
from .tensors import DTYPES, sample

HOSTILE = "<script>alert('x')</script>\"&"
_IMAGE = re.compile(r'src="data:image/png;base64,([^"]+)"')
_SVG = re.compile(r"<svg .*?</svg>")


@pytest.fixture
def memory(kept: Kept) -> Iterator[TensorStorage]:
    with kept.lent("memory") as db:
        db.create_dataset("data")
        yield db


def stored(db: TensorStorage, tensor: torch.Tensor) -> Record:
    return db.get_tensor_by_id("data", db.insert("data", tensor))


def images(text: str) -> list[np.ndarray]:
    return [pixels_of(base64.b64decode(each)) for each in _IMAGE.findall(text)]


def pixels_of(file: bytes) -> np.ndarray:
    """Read a PNG of 8-bit RGB without filters, by its specification."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    at, found = 8, {}
    while at < len(file):
        (length,), kind = struct.unpack(">I", file[at : at + 4]), file[at + 4 : at + 8]
        data, check = file[at + 8 : at + 8 + length], file[at + 8 + length : at + 12 + length]
        assert struct.unpack(">I", check) == (zlib.crc32(kind + data),)
        found[kind] = data
        at += 12 + length
    width, height, *kinds = struct.unpack(">IIBBBBB", found[b"IHDR"])
    assert kinds == [8, 2, 0, 0, 0]
    lines = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape_can_be_looked_at(memory: TensorStorage, dtype: torch.dtype) -> None:
    for shape in ((), (1,), (0,), (7,), (3, 0, 2), (5, 4), (3, 8, 8), (8, 8, 3), (2, 1, 3, 4), (1, 1, 9), (1000,)):
        text = stored(memory, sample(dtype, *shape))._repr_html_()
        assert text.startswith("<table>")
        assert len(text) < 60_000
        for picture in images(text):
            assert picture.ndim == 3
        for drawing in _SVG.findall(text):
            ElementTree.fromstring(drawing)


def test_an_image_is_shown_as_it_is(memory: TensorStorage) -> None:
    pixels = torch.randint(0, 256, (20, 30, 3), dtype=torch.uint8)
    for tensor in (pixels, pixels.permute(2, 0, 1).contiguous(), pixels.permute(2, 0, 1).double() / 255):
        (shown,) = images(stored(memory, tensor)._repr_html_())
        assert (shown == pixels.numpy()).all()
    (gray,) = images(stored(memory, pixels[None, :, :, 0])._repr_html_())
    assert (gray == pixels[:, :, :1].numpy()).all()


def test_a_matrix_is_shown_in_colours_that_part_at_zero(memory: TensorStorage) -> None:
    matrix = torch.tensor([[-2.0, 0.0], [2.0, math.nan]])
    text = stored(memory, matrix)._repr_html_()
    (shown,) = images(text)
    blue, white, red, gray = shown.reshape(-1, 3).astype(int)
    assert blue[2] > blue[0] + 50
    assert red[0] > red[2] + 50
    assert white.min() > 240
    assert gray.tolist() == [128, 128, 128]
    assert "-2 blue to 2 red" in text
    assert "1 not finite" in text
    (rising,) = images(stored(memory, torch.arange(6.0).reshape(2, 3))._repr_html_())
    brightness = rising.astype(int).sum(-1).reshape(-1)
    assert (np.diff(brightness) > 0).all()


def test_statistics_and_histogram_count_the_values(memory: TensorStorage) -> None:
    tensor = torch.tensor([0.0, 0.0, 1.0, 3.0, math.inf, math.nan])
    figures = Figures.of(tensor)
    assert str(figures) == "0 to 3, mean 1, std 1.225, 50.0% zeros, 2 not finite"
    counts, edges = figures.histogram()
    assert counts.tolist() == [2, 1, 0, 1]
    assert edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert str(figures) in stored(memory, tensor)._repr_html_()
    for values in (
        torch.arange(1000),
        torch.randn(5000),
        torch.full((9,), 7.5),
        torch.tensor([1e308, -1e308], dtype=torch.float64),
    ):
        counts, edges = Figures.of(values).histogram()
        assert counts.sum() == len(values)
        assert len(counts) <= 41
        assert np.isfinite(edges).all()
        assert (np.diff(edges) > 0).all()
    assert set(Figures.of(torch.arange(1000)).histogram()[0]) == {25}, "integers fall into bins of equal size"
    assert str(Figures.of(torch.empty(0))) == "none"
    assert "3 not finite" in str(Figures.of(torch.full((3,), math.nan)))
    assert "magnitudes: 5 to 5" in str(Figures.of(torch.full((2,), 3 + 4j)))


def test_a_huge_tensor_is_looked_at_in_part(memory: TensorStorage) -> None:
    huge = torch.zeros(1).expand(40_000, 200, 3, 300)  # 29 GB if anybody made it
    begin = time.process_time()
    assert len(sample_of(huge)) == ALL
    picture = picture_of(huge)
    assert picture is not None
    assert picture.values.shape == (3, 128)
    assert "out of 7,200,000,000 elements" in str(Figures.of(huge))
    assert time.process_time() - begin < 5
    tensor = torch.randn(1000, 1000)
    text = stored(memory, tensor)._repr_html_()
    assert len(text) < 100_000
    assert "out of 1,000,000 elements" in text
    assert images(text)[0].shape == (128, 128, 3)
    assert "7.812th" in text
    strided = picture_of(tensor.T[::3])
    assert strided is not None
    assert strided.values[0, 0] == tensor[0, 0]


def test_what_users_wrote_is_escaped(memory: TensorStorage) -> None:
    memory.create_dataset(HOSTILE)
    memory.insert(HOSTILE, torch.ones(2, 2), {HOSTILE: HOSTILE}, record_id=HOSTILE)
    memory.insert(HOSTILE, torch.ones(3), {HOSTILE: HOSTILE})
    texts = [
        memory.get_tensor_by_id(HOSTILE, HOSTILE)._repr_html_(),
        dataset_html(memory._db, HOSTILE),
        dataset_html(memory._db, HOSTILE, Selection(f"record_id != '{HOSTILE.replace(chr(39), chr(39) * 2)}'")),
        memory.search(HOSTILE, torch.ones(3), where="len(shape) = 1")._repr_html_(),  # type: ignore[union-attr]
    ]
    for text in texts:
        assert "<script" not in text
        assert "&lt;script" in text


def test_a_dataset_shows_what_is_in_it(memory: TensorStorage) -> None:
    assert "none" in dataset_html(memory._db, "data")
    memory.insert_many("data", torch.randn(300, 8, 8), [{"label": i % 3, "name": "a"} for i in range(300)])
    memory.insert("data", torch.ones(5, dtype=torch.int16), {"label": 3})
    text = dataset_html(memory._db, "data")
    for part in ("301", "300 of float32[8, 8]", "1 of int16[5]", "label BIGINT", "name VARCHAR"):
        assert part in text
    assert len(images(text)) == 8
    assert len(text) < 30_000
    part = dataset_html(memory._db, "data", Selection("metadata.label = 3"))
    assert "1 of 301, where metadata.label = 3" in part
    for i in range(30):
        memory.insert("data", torch.ones(2, i + 2))
    assert len(dataset_html(memory._db, "data")) < 30_000


def test_results_of_a_search_show_scores_and_pictures(memory: TensorStorage) -> None:
    memory.insert_many("data", torch.randn(200, 16), [{"i": i} for i in range(200)])
    result = memory.search("data", torch.randn(16), 150)
    text = result._repr_html_()  # type: ignore[union-attr]
    assert f"{result[0].score:.4g}" in text  # type: ignore[union-attr]
    assert text.count("<tr>") == 51
    assert text.count("<svg") == 8
    assert len(text) < 60_000


def test_a_record_is_plotted_with_labels(memory: TensorStorage) -> None:
    pyplot = _pyplot()
    line = stored(memory, torch.randn(64)).plot()
    assert (line.get_xlabel(), line.get_ylabel()) == ("index", "value")
    assert "float32[64]" in line.get_title()
    heat = stored(memory, torch.randn(4, 300, 200)).plot()
    assert (heat.get_xlabel(), heat.get_ylabel()) == ("column", "row")
    assert heat.get_xlim() == (-0.5, 199.5)
    assert heat.get_ylim() == (299.5, -0.5)
    assert "[0, :, :]" in heat.get_title()
    assert [ax.get_ylabel() for ax in heat.figure.axes[1:]] == ["value"]
    bars = stored(memory, torch.randn(600_000)).plot(kind="histogram")
    assert (bars.get_xlabel(), bars.get_ylabel()) == ("value", "elements per bin")
    assert "262,144 elements at random" in bars.get_title()
    own = pyplot.subplots()[1]
    assert stored(memory, torch.rand(8, 8, dtype=torch.complex64)).plot(own) is own
    assert stored(memory, torch.tensor(3.0)).plot().get_ylabel() == "elements per bin"
    with pytest.raises(InvalidInputError, match="kind"):
        stored(memory, torch.rand(3)).plot(kind="pie")  # type: ignore[arg-type]
    pyplot.close("all")


def test_records_are_drawn_in_a_grid(memory: TensorStorage) -> None:
    pyplot = _pyplot()
    memory.insert_many("data", torch.rand(40, 3, 8, 8), [{"label": "$a_1$"} for _ in range(40)])
    memory.insert("data", torch.tensor(2.5))
    figure = tensordb.grid(memory.scan("data"), label="label")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [r"\$a_1\$"] * 16
    figure = tensordb.grid(memory.get_records_paginated("data", 38), columns=3, label=lambda record: record.tensor.ndim)
    assert [ax.get_title() for ax in figure.axes] == ["3", "3", "0"]
    assert "2.5" in [text.get_text() for text in figure.axes[2].texts]
    memory.delete_where("data", "nbytes = 4")
    memory.create_dataset("vectors")
    memory.insert_many("vectors", torch.eye(4))
    found = memory.search("vectors", [1, 0.5, 0, 0], 3).grid()  # type: ignore[union-attr]
    assert [ax.get_title() for ax in found.axes][:2] == ["cosine 0.894", "cosine 0.447"]
    for odd in ([], "data", 3, [torch.ones(3)]):
        with pytest.raises(InvalidInputError):
            tensordb.grid(odd)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="columns"):
        tensordb.grid(memory.query("data"), columns=0)
    pyplot.close("all")


def test_plots_name_the_package_they_lack(memory: TensorStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    record = stored(memory, torch.ones(3, 3))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"plot\(\) needs matplotlib.*notebook"):
        record.plot()
    with pytest.raises(MissingDependencyError, match=r"grid\(\) needs matplotlib.*notebook"):
        tensordb.grid([record])
    assert record._repr_html_()


def _pyplot() -> Any:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot
