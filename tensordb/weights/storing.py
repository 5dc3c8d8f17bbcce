"""Storing weights and deltas: contents through the engine, then one commit that names them with their labels.

A hash has one row as a weight, and one for each base that it was stored with as a delta. What is there already keeps
its object, and gets the labels that it does not have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import torch

from tensordb import tensors
from tensordb.catalog import deltas, documents, weights
from tensordb.catalog.deltas import Chain
from tensordb.catalog.weights import LabelRow, NewWeight, WeightRow
from tensordb.encoding.presets import CompressionConfig, get_compression_preset
from tensordb.engine import Database
from tensordb.engine.contents import Content, ContentWriter, attempts, in_groups
from tensordb.errors import InvalidInputError, ReadOnlyError
from tensordb.model import MeasuredError, TensorSpec
from tensordb.weights.finding import find_any
from tensordb.weights.nearing import near
from tensordb.weights.requests import Request
from tensordb.weights.weight import Label

Key = tuple[bytes, bytes | None]
"""Content id of a weight, and of the base that a delta was stored with."""


@dataclass(frozen=True, slots=True, eq=False)
class _Written:
    """A weight whose payload is written."""

    key: Key
    spec: TensorSpec
    label: Label | None
    max_error: float | None = None
    error: MeasuredError | None = None


def store(db: Database, request: Request, config: CompressionConfig) -> str:
    """Store one weight and return its hash."""
    return store_all(db, lambda: iter([request]), config)[0]


def store_all(
    db: Database, requests: Callable[[], Iterator[Request]], config: CompressionConfig, *, repeatable: bool = True
) -> list[str]:
    """Store weights in one commit and return their hashes; they need not fit into memory together."""
    _check_writable(db)

    def attempt(writer: ContentWriter) -> list[str]:
        written: list[_Written] = []
        for group in in_groups(requests(), lambda each: each.nbytes):
            written += _write(writer, group, config)
            group.clear()  # before the next ones are taken from the user's iterable
        _commit(db, writer, written)
        return [each.key[0].hex() for each in written]

    return attempts(db, attempt, repeatable=repeatable)


def store_delta(db: Database, request: Request, base: Any, config: CompressionConfig, max_error: float | None) -> str:
    """Store a weight as what changed since a base and return its hash."""
    _check_writable(db)
    spec = tensors.spec_of(request.tensor)

    def attempt(writer: ContentWriter) -> str:
        row, before = _base(db, base)
        if (row.dtype, row.shape) != (spec.dtype, spec.shape):
            raise InvalidInputError(
                f"the base {row.content_id.hex()[:12]}… is {row.dtype} {row.shape}, {request.title} is {spec.dtype} "
                f"{spec.shape}; a delta needs a base of the same dtype and shape, store() needs none"
            )
        content, error = Content(request.tensor, config, request.name, request.title, before), None
        if max_error is not None:
            known = _read_with(db, writer.chain_of(content))
            tensor, error = near(tensors.snapshot(content.tensor), known, max_error)
            content = replace(content, tensor=tensor)
        (content_id,) = writer.write([content])
        written = _Written((content_id, row.content_id), spec, request.label, max_error, error)
        _commit(db, writer, [written])
        return content_id.hex()

    return attempts(db, attempt)


def lossless(config: CompressionConfig, asked: bool, request: Request) -> CompressionConfig:
    """Return what a delta is encoded with: `config`, or where that was not asked for and quantizes, ``"lossless"``.

    Raises:
        InvalidInputError: It was asked for and quantizes.
    """
    if config.for_tensor(request.name, tensors.spec_of(request.tensor)).quantization == "none":
        return config
    if not asked:
        return get_compression_preset("lossless")
    raise InvalidInputError(
        f"a preset that quantizes ({config.quantization!r}) cannot store a delta, which is exact or within max_error=; "
        "give a lossless preset with or without max_error=, or store() the tensor by itself"
    )


def _write(writer: ContentWriter, group: Sequence[Request], config: CompressionConfig) -> list[_Written]:
    contents = writer.write([Content(each.tensor, config, each.name, each.title) for each in group])
    return [
        _Written((content_id, None), tensors.spec_of(each.tensor), each.label)
        for content_id, each in zip(contents, group, strict=True)
    ]


def _base(db: Database, base: Any) -> tuple[WeightRow, Chain | None]:
    with db.catalog.read() as con:
        row = find_any(con, base, "base_hash")
        return row, deltas.chain_of(con, row.object_id)


def _read_with(db: Database, chain: Chain | None) -> torch.Tensor | None:
    """Return what a tensor will be stored as a difference from, None where it will be stored by itself."""
    if chain is None:
        return None
    name = f"the base {chain.key_content.hex()}"
    with db.catalog.read() as con:
        source = db.sources.open(con, {chain.key_id: name})[chain.key_id]
    return db.sources.decode(name, source)


def _commit(db: Database, writer: ContentWriter, written: Sequence[_Written]) -> None:
    """Name what was written; what is a weight already only gets its labels."""
    if not written:
        return
    db.payloads.flush()
    first = {each.key: each for each in reversed(written)}
    with db.catalog.write("storing weights", keeps_records=True) as con:
        numbers: dict[Key, int] = weights.numbers_of(con, list({content_id for content_id, _ in first}))
        new = [each for key, each in first.items() if key not in numbers]
        ids = writer.name(con, Counter(each.key[0] for each in new))
        spec_id = db.catalog.known.spec_id
        rows = [
            NewWeight(
                *each.key,
                object_id=ids[each.key[0]],
                spec_id=spec_id(con, each.spec, tensors.nbytes_of(each.spec)),
                max_error=each.max_error,
                relative_l2=None if each.error is None else each.error.relative_l2,
                max_abs=None if each.error is None else each.error.max_abs,
            )
            for each in new
        ]
        for key, each in first.items():
            if key in numbers and each.error is not None and each.max_error is not None:
                weights.widen(con, numbers[key], each.max_error, each.error.relative_l2, each.error.max_abs)
        added = weights.add(con, rows)
        fresh = dict(zip([each.key for each in new], added, strict=True))
        _add_labels(con, written, numbers, fresh)


def _add_labels(
    con: duckdb.DuckDBPyConnection, written: Iterable[_Written], numbers: dict[Key, int], fresh: dict[Key, int]
) -> None:
    """Give weights their labels; one of the same name, layer type and model replaces the one that is there."""
    asked: dict[int, list[Label]] = {}
    for each in written:
        if each.label is not None:
            number = numbers[each.key] if each.key in numbers else fresh[each.key]
            asked.setdefault(number, []).append(each.label)
    there = weights.labels(con, list(asked.keys() - set(fresh.values()))) if numbers else {}
    changed = {}
    for number, given in asked.items():
        before = there.get(number, [])
        after = _merged(number, before, given)
        if after != before:
            changed[number] = after
    if changed:
        weights.set_labels(con, list(changed), [row for rows in changed.values() for row in rows])


def _merged(number: int, there: Sequence[LabelRow], given: Iterable[Label]) -> list[LabelRow]:
    merged = {(row.name, row.layer_type, row.model_name): row for row in there}
    for label in given:
        key = (label.name, label.layer_type, label.model_name)
        plain = dict(label.metadata)
        position = merged[key].position if key in merged else len(merged)
        merged[key] = LabelRow(number, position, *key, documents.as_json(plain), documents.pack(plain))
    return list(merged.values())


def _check_writable(db: Database) -> None:
    if db.read_only:
        raise ReadOnlyError("storing weights: the database was opened with read_only=True; open it without")
