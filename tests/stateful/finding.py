"""Searches, indexes, imports, and datasets that feed a training, beside all that is done to records."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tensordb import AlreadyExistsError, InvalidInputError, NotFoundError, TensorStorage

from .machine import NUMBERS, able, has_datasets, has_rows, idle
from .model import TEXTS, Dataset, Row, bits_of
from .records import NAMES, DatasetsLikeADict
from .tensors import tensor_of

LENGTH = 3
COMPARABLE = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int16, torch.float8_e4m3fn)
"""Dtypes whose squares no sum in float64 can overflow."""


def tensor_back(row: Row) -> torch.Tensor:
    """Return the tensor of a record, from its bits."""
    dtype, shape, raw = row.bits
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def scored(row: Row, query: list[float], metric: str) -> float:
    """Score one record, without NumPy or torch: the sums are exact."""
    vector = tensor_back(row).to(torch.float64).tolist()
    if not all(map(math.isfinite, vector)):
        return math.nan
    if metric == "l2":
        return math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(vector, query, strict=True)))
    dot = math.fsum(a * b for a, b in zip(vector, query, strict=True))
    if metric == "dot":
        return dot
    norms = math.sqrt(math.fsum(a * a for a in vector)) * math.sqrt(math.fsum(b * b for b in query))
    return dot / norms if norms else 0.0


def source_of(kind: str, given: list[torch.Tensor], columns: dict[str, list[Any]]) -> Any:
    """Return the same records as a dict of columns, an Arrow table, or rows one by one."""
    if kind == "columns":
        return {"x": torch.stack(given), **columns}
    if kind == "arrow":
        values = pa.array(torch.cat(given).numpy())
        return pa.table({"x": pa.FixedSizeListArray.from_arrays(values, LENGTH), **columns})
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return ({"x": tensor, **row} for tensor, row in zip(given, rows, strict=True))


class FoundLikeADict(DatasetsLikeADict):
    """Adds what finds records, and what brings many in."""

    @precondition(has_rows)
    @rule(
        data=st.data(),
        query=st.lists(st.sampled_from([-2.0, 0.5, 1.0, 3.0]), min_size=LENGTH, max_size=LENGTH),
        k=st.sampled_from([1, 4, 100]),
        metric=st.sampled_from(["cosine", "l2", "dot"]),
    )
    def search(self, data: st.DataObject, query: list[float], k: int, metric: Any) -> None:
        name, dataset, _ = self._pick(data)
        rows = {r.id: r for r in dataset.rows.values() if r.bits[0] in COMPARABLE and r.bits[1] == (LENGTH,)}
        dtypes = ", ".join(f"'{str(each).removeprefix('torch.')}'" for each in COMPARABLE)
        found = self.db.search(name, query, k, metric=metric, where=f"shape = [{LENGTH}] AND dtype IN ({dtypes})")
        assert len(found) == len({hit.id for hit in found}) == min(k, len(rows))
        self._same([hit.record for hit in found], [rows[hit.id] for hit in found])
        scores = [scored(row, query, metric) for row in rows.values()]
        best = sorted(scores, key=lambda score: (math.isnan(score), score if metric == "l2" else -score))
        close = {"rel": 1e-9, "abs": 1e-9, "nan_ok": True}
        assert [hit.score for hit in found] == pytest.approx(best[:k], **close)
        assert [hit.score for hit in found] == pytest.approx(
            [scored(rows[hit.id], query, metric) for hit in found], **close
        )

    @precondition(has_datasets)
    @rule(data=st.data(), field=st.sampled_from(["s", "s", "metadata.s", "i"]))
    def create_index(self, data: st.DataObject, field: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.datasets)))
        dataset, plain = self.model.datasets[name], field.removeprefix("metadata.")
        known = dataset.knows(plain)
        if known is None:
            return
        with self._expecting(
            (InvalidInputError, known is False or plain == "i"), (AlreadyExistsError, plain in dataset.indexes)
        ):
            self.db.create_index(name, field)
            dataset.indexes.add(plain)

    @precondition(has_datasets)
    @rule(data=st.data())
    def drop_index(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.datasets)))
        indexes = self.model.datasets[name].indexes
        with self._expecting((NotFoundError, "s" not in indexes)):
            self.db.drop_index(name, "s")
        indexes.discard("s")

    @precondition(able)
    @rule(
        name=st.sampled_from(NAMES),
        first=NUMBERS,
        count=st.sampled_from([1, 5, 30]),
        kind=st.sampled_from(["columns", "arrow", "rows"]),
        preset=st.sampled_from([None, "lossless", "fast"]),
        own=st.booleans(),
    )
    def import_from(self, name: str, first: int, count: int, kind: str, preset: str | None, own: bool) -> None:
        given = [tensor_of(4 * (first + i), torch.float32, (LENGTH,)) for i in range(count)]
        documents = [{"i": first + i, "s": TEXTS[(first + i) % len(TEXTS)]} for i in range(count)]
        keys = [f"own {i}" for i in range(count)]
        columns: dict[str, Any] = {key: [each[key] for each in documents] for key in ("i", "s")}
        if own:
            columns["key"] = keys
        there = self.model.datasets.get(name, Dataset())
        taken = own and any(key in there.rows for key in keys)
        with self._expecting((AlreadyExistsError, taken)):
            source = source_of(kind, given, columns)
            key = "key" if own else None
            made = self.db.import_from(name, source, tensor="x", record_id=key, preset=preset)
        if not taken:
            self.model.datasets.setdefault(name, there)
            assert not own or made == keys
            with self._encoded_as(there, preset):
                self._put(name, given, documents, made)

    @contextlib.contextmanager
    def _encoded_as(self, dataset: Dataset, preset: str | None) -> Iterator[None]:
        """Have `_put` expect what this preset gives, which stands above that of the dataset for once."""
        before, dataset.preset = dataset.preset, preset or dataset.preset
        yield
        dataset.preset = before

    @precondition(lambda self: has_rows(self) and idle(self))
    @rule(data=st.data(), seed=NUMBERS, down=st.booleans())
    def feed(self, data: st.DataObject, seed: int, down: bool) -> None:
        name, dataset, _ = self._pick(data)
        rows = sorted(dataset.rows.values(), key=lambda row: row.id, reverse=down)
        order = f"record_id {'DESC' if down else 'ASC'}"
        items = self.db.dataset(name, columns=("record_id", "tensor"), order_by=order)
        everything = items.__getitems__(list(range(len(items))))
        for found in (everything, sorted(items.stream(shuffle=True, seed=seed), key=_first, reverse=down)):
            assert [key for key, _ in found] == [row.id for row in rows]
            assert [bits_of(tensor) for _, tensor in found] == [row.bits for row in rows]

    def _same_as_the_model(self, db: TensorStorage) -> None:
        super()._same_as_the_model(db)
        for name, dataset in self.model.datasets.items():
            assert set(db.list_indexes(name)) == dataset.indexes
        self._ask_by_id(db)

    def _ask_by_id(self, db: TensorStorage) -> None:
        """Ask one dataset for records by their ids, as a cache answers it."""
        several = [(name, each) for name, each in self.model.datasets.items() if each.rows]
        if several:
            name, dataset = several[self.steps % len(several)]
            rows = list(dataset.rows.values())
            self._same(db.get_many(name, list(dataset.rows)), rows)
            row = rows[self.steps % len(rows)]
            self._same([db.get_tensor_by_id(name, row.id)], [row])


def _first(item: tuple[str, torch.Tensor]) -> str:
    return item[0]
