"""A file of safetensors as a dataset: a record a tensor, whose name is in its metadata.

A file that `write_safetensors` made has, under ``tensordb.records`` in its metadata, a JSON object of the records'
metadata by their names: as JSON, or where that would change it as MessagePack in base64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tensordb.catalog import documents
from tensordb.datasets.streaming import Row
from tensordb.errors import IntegrityError, InvalidInputError
from tensordb.exchange.arrays import cut
from tensordb.exchange.rows import Asked, Source, check_count, identified, stacks_beside
from tensordb.exchange.safetensors_header import MOST_HEADER_NBYTES, SafetensorsFile, build
from tensordb.exchange.selecting import Column, Selected, document_of, value_of
from tensordb.tensors import byte_view, dtype_from_name, snapshot

_RECORDS = "tensordb.records"
_PACKED = "$msgpack"


def from_safetensors(path: Path, asked: Asked) -> Source:
    """Return the tensors of a file, or the rows of the one that is asked for, mapped and not read."""
    file = SafetensorsFile(path)
    entries = {entry.name: entry for entry in file.header.entries}
    if asked.tensor is None:
        asked.refuse_rows(str(path))
        said = _said(file.header.metadata.get(_RECORDS))
        return Source(_rows(file, said, asked), len(entries))
    if asked.tensor not in entries:
        names = ", ".join(map(repr, list(entries)[:20])) or "none"
        raise InvalidInputError(f"{path} has no tensor {asked.tensor!r}; it has {names}")
    stack = file.tensor(entries[asked.tensor])
    if not stack.ndim:
        raise InvalidInputError(f"{asked.tensor!r} of {path} is 0-d; its rows would be the records")
    check_count(len(stack), stack.nbytes, str(path))
    return Source(stacks_beside(cut(stack), Asked(record_id=asked.record_id, rows=asked.rows)), len(stack))


def _rows(file: SafetensorsFile, said: Mapping[str, Any], asked: Asked) -> Iterator[Row]:
    for entry in file.header.entries:
        metadata = {"name": entry.name}
        if entry.name in said:
            metadata = _document(said[entry.name])
            if asked.record_id == "name":
                metadata = {**metadata, "name": entry.name}
        yield identified(file.tensor(entry), metadata, asked.record_id)


def write_safetensors(file: BinaryIO, selected: Selected, columns: Sequence[Column], bar: Any = None) -> None:
    """Write each tensor under its record id, one after the other, with the metadata in the file's header.

    Tensors of larger elements come first, as the format wants it for alignment, and otherwise in their order.
    """
    ids: list[str] = []
    said: dict[str, Any] = {}
    whole = any(each.role == "document" for each in columns)
    fields = [each for each in columns if each.role == "field"]
    for part in selected.parts(decode=False):
        ids += [each.record_id for each in part]
        for item in part if whole or fields else ():
            document = document_of(item)
            if not whole:
                document = {each.name: value_of(document, each.path) for each in fields}
            if document:
                said[item.record_id] = _form(document)
    width = np.array([dtype_from_name(selected.specs[each].dtype).itemsize for each in selected.spec_ids.tolist()])
    order = np.argsort(-width, kind="stable") if len(width) else np.empty(0, np.int64)
    specs = {ids[place]: selected.specs[int(selected.spec_ids[place])] for place in order.tolist()}
    texts = {_RECORDS: json.dumps(said, ensure_ascii=False)} if said else {}
    header = build(specs, {"format": "pt", **texts}, in_order=True)
    if len(header.raw) > MOST_HEADER_NBYTES:
        raise InvalidInputError(
            f"ids and metadata of {len(ids):,} records take {len(header.raw):,} bytes of a header, more than readers "
            "of safetensors accept; write Parquet, or leave the metadata out with columns=['tensor']"
        )
    file.write(header.raw)
    for part in replace(selected, numbers=selected.numbers[order], spec_ids=selected.spec_ids[order]).parts(bar=bar):
        for item in part:
            file.write(byte_view(snapshot(item.tensor)).data)  # type: ignore[arg-type]


def _form(document: Mapping[str, Any]) -> Any:
    packed = documents.pack(dict(document))
    text = documents.as_json(document)
    if documents.pack(json.loads(text)) == packed and _PACKED not in document:
        return json.loads(text)
    return {_PACKED: base64.b64encode(packed or b"").decode()}


def _said(text: str | None) -> Mapping[str, Any]:
    try:
        said = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) and all(isinstance(each, dict) for each in said.values()) else {}


def _document(form: Mapping[str, Any]) -> dict[str, Any]:
    if form.keys() != {_PACKED}:
        return dict(form)
    try:
        return documents.unpack(base64.b64decode(form[_PACKED], validate=True))
    except (ValueError, TypeError, IntegrityError) as error:
        raise InvalidInputError(f"the metadata of a record is damaged: {error}") from error
