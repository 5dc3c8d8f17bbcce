"""Datasets and their records: what is put into them, and what they are asked, in any order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tensordb import AlreadyExistsError, DatasetNotFoundError, TensorNotFoundError

from .machine import NUMBERS, ComparedWithADict, able, has_datasets, has_rows
from .model import Dataset, Row, bits_of, condition, document
from .tensors import DTYPES, EXACT, PRESETS, SHAPES, assert_within, tensor_of

NAMES = ("d", "e'\"ü", "main")


class DatasetsLikeADict(ComparedWithADict):
    """Adds what can be done with datasets."""

    @precondition(able)
    @rule(name=st.sampled_from(NAMES), preset=st.sampled_from([None, None, "lossless", "maximum"]))
    def create_dataset(self, name: str, preset: str | None) -> None:
        with self._expecting((AlreadyExistsError, name in self.model.datasets)):
            self.db.create_dataset(name, compression_preset=preset)
        self.model.datasets.setdefault(name, Dataset(preset))

    @precondition(able)
    @rule(name=st.sampled_from(NAMES[1:]))
    def delete_dataset(self, name: str) -> None:
        with self._expecting((DatasetNotFoundError, name not in self.model.datasets)):
            self.db.delete_dataset(name)
        self.model.datasets.pop(name, None)

    @rule(preset=st.sampled_from([*EXACT, *PRESETS]))
    def change_preset(self, preset: str) -> None:
        self.db.set_compression_preset(preset)
        self.preset = preset

    def _put(self, name: str, given: list[torch.Tensor], documents: list[Any], keys: list[str]) -> None:
        """Take over what was inserted, as it is read back: it has to be what was given, or as near as it says."""
        dataset = self.model.datasets[name]
        for tensor, metadata, record in zip(given, documents, self.db.get_many(name, keys), strict=True):
            assert record.metadata == (metadata or {})
            assert_within(record.tensor, tensor, record.encoding.quantization, record.encoding.error.max_abs)
            if (dataset.preset or self.preset) in EXACT:
                assert record.encoding.quantization == "none"
            dataset.put(Row(record.id, bits_of(record.tensor), metadata))

    @precondition(has_datasets)
    @rule(
        data=st.data(),
        n=NUMBERS,
        dtype=st.sampled_from(DTYPES),
        shape=st.sampled_from(SHAPES),
        metadata=NUMBERS,
        own=st.sampled_from([None, None, "own 1", "own ü", "own 3"]),
    )
    def insert(
        self, data: st.DataObject, n: int, dtype: torch.dtype, shape: tuple[int, ...], metadata: int, own: str | None
    ) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.datasets)))
        tensor, taken = tensor_of(n, dtype, shape), own in self.model.datasets[name].rows
        with self._expecting((AlreadyExistsError, taken)):
            key = self.db.insert(name, tensor, document(metadata), record_id=own)
        if not taken:
            assert own is None or key == own
            self._put(name, [tensor], [document(metadata)], [key])

    @precondition(has_datasets)
    @rule(
        data=st.data(),
        first=NUMBERS,
        count=st.sampled_from([0, 1, 3, 12, 20]),
        dtype=st.sampled_from(DTYPES),
        shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3),
        metadata=NUMBERS,
        stacked=st.booleans(),
        own=st.sampled_from([None, None, None, "own"]),
    )
    def insert_many(
        self,
        data: st.DataObject,
        first: int,
        count: int,
        dtype: torch.dtype,
        shapes: list[tuple[int, ...]],
        metadata: int,
        stacked: bool,
        own: str | None,
    ) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.datasets)))
        stacked = stacked and count > 0
        given = [tensor_of(first + i // 2, dtype, shapes[0 if stacked else i % len(shapes)]) for i in range(count)]
        documents = [document(metadata + i) for i in range(count)]
        keys = None if own is None else [f"own {i}" for i in range(count)]
        taken = keys is not None and any(key in self.model.datasets[name].rows for key in keys)
        with self._expecting((AlreadyExistsError, taken)):
            source = torch.stack(given) if stacked else given
            made = self.db.insert_many(name, source, documents, record_ids=keys)
        if not taken:
            assert keys is None or keys == made
            self._put(name, given, documents, made)

    @precondition(has_rows)
    @rule(data=st.data(), metadata=NUMBERS, merge=st.booleans())
    def update(self, data: st.DataObject, metadata: int, merge: bool) -> None:
        name, dataset, row = self._pick(data)
        given = document(metadata)
        merge = merge and given is not None
        self.db.update_tensor_metadata(name, row.id, given, merge=merge)
        dataset.put(Row(row.id, row.bits, {**row.known, **(given or {})} if merge else given))

    @precondition(has_rows)
    @rule(data=st.data())
    def delete_tensor(self, data: st.DataObject) -> None:
        name, dataset, row = self._pick(data)
        self.db.delete_tensor(name, row.id)
        del dataset.rows[row.id]
        for again in (self.db.delete_tensor, self.db.get_tensor_by_id):
            with pytest.raises(TensorNotFoundError):
                again(name, row.id)

    @precondition(has_rows)
    @rule(data=st.data(), kind=NUMBERS, n=NUMBERS)
    def delete_where(self, data: st.DataObject, kind: int, n: int) -> None:
        name, dataset, _ = self._pick(data)
        asked = condition(kind, n)
        gone = [row.id for row in dataset.rows.values() if asked.holds(row)]
        found = self._asked(dataset, asked, lambda: self.db.delete_where(name, asked.sql, params=asked.params))
        if found is not None:
            assert found == len(gone)
            for key in gone:
                del dataset.rows[key]

    # Questions.

    @precondition(has_rows)
    @rule(data=st.data(), kind=NUMBERS, n=NUMBERS, down=st.booleans(), limit=st.sampled_from([None, 0, 1, 5]))
    def query(self, data: st.DataObject, kind: int, n: int, down: bool, limit: int | None) -> None:
        name, dataset, _ = self._pick(data)
        asked = condition(kind, n)
        rows = sorted((row for row in dataset.rows.values() if asked.holds(row)), key=lambda row: row.id, reverse=down)
        order = f"record_id {'DESC' if down else 'ASC'}"
        found = self._asked(
            dataset,
            asked,
            lambda: self.db.query(name, asked.sql, params=asked.params, order_by=order, limit=limit),
        )
        if found is None:
            return
        self._same(found, rows[:limit])
        assert self.db.count(name, asked.sql, params=asked.params) == len(rows)
        self._same(list(self.db.scan(name, asked.sql, params=asked.params, order_by=order, limit=limit)), rows[:limit])
        offset, pages = 0, []
        while offset is not None:
            page = self.db.get_records_paginated(name, offset, 7, where=asked.sql, params=asked.params, order_by=order)
            assert page.total == len(rows)
            pages += page.records
            offset = page.next
        self._same(pages, rows)

    @precondition(has_rows)
    @rule(data=st.data())
    def query_by_metadata_order(self, data: st.DataObject) -> None:
        name, dataset, _ = self._pick(data)
        if dataset.knows("i") is not True:
            return
        rows = sorted(dataset.rows.values(), key=lambda row: row.id)
        rows.sort(key=lambda row: (row.field("i") is None, -(row.field("i") or 0)))
        self._same(self.db.query(name, order_by="metadata.i DESC NULLS LAST, record_id"), rows)

    @precondition(has_rows)
    @rule(data=st.data(), n=NUMBERS)
    def query_by_function(self, data: st.DataObject, n: int) -> None:
        name, dataset, _ = self._pick(data)
        rows = [row for row in dataset.rows.values() if row.field("i") == n or len(row.bits[1]) == 1]
        found = self.db.query(name, lambda tensor, metadata: metadata.get("i") == n or tensor.ndim == 1)
        self._same(found, rows)

    @precondition(has_rows)
    @rule(data=st.data(), size=st.sampled_from([0, 1, 4, 100]), seed=st.sampled_from([None, 1, 2]))
    def sample(self, data: st.DataObject, size: int, seed: int | None) -> None:
        name, dataset, _ = self._pick(data)
        found = self.db.sample_dataset(name, size, seed=seed)
        assert len({record.id for record in found}) == len(found) == min(size, len(dataset.rows))
        self._same(found, [dataset.rows[record.id] for record in found])
        if seed is not None:
            assert [record.id for record in self.db.sample_dataset(name, size, seed=seed)] == [r.id for r in found]

    @precondition(has_rows)
    @rule(data=st.data())
    def get_in_any_way(self, data: st.DataObject) -> None:
        name, dataset, row = self._pick(data)
        self._same([self.db.get_tensor_by_id(name, row.id)], [row])
        rows = [*list(dataset.rows.values())[::-2], row]
        self._same(self.db.get_many(name, [each.id for each in rows]), rows)
        if row.bits[1] and row.bits[1][0]:
            whole = self.db.get_tensor_by_id(name, row.id).tensor
            for index in (0, slice(1, None, 2), -1):
                part = self.db.get_tensor_by_id(name, row.id, index=index).tensor
                assert bits_of(part) == bits_of(whole[index])

    @precondition(able)
    @rule()
    def ask_for_what_is_not_there(self) -> None:
        with pytest.raises(DatasetNotFoundError):
            self.db.count("nowhere")
        for name in self.model.datasets:
            with pytest.raises(TensorNotFoundError):
                self.db.update_tensor_metadata(name, "nobody", {"i": 1})
