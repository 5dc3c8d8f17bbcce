"""Who reads what the catalog stores, with what each of them promises of any bytes."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections import OrderedDict
from typing import Any

import atheris
import torch

from tensordb import CompressionConfig, Rule
from tensordb.catalog import checkpoint_documents, datasets, documents, fields, ids, indexes, schema
from tensordb.catalog.indexes import Index
from tensordb.checkpoints.checkpoint import facts_of, pack_facts
from tensordb.checkpoints.tree import Flattened, flatten, tensor_paths, unflatten, unflatten_values, wire
from tensordb.datasets.schema import DatasetSchema
from tensordb.engine.stored_config import config_of
from tensordb.errors import FormatError, IntegrityError, InvalidInputError
from tensordb.integrations import dcp_manifest
from tensordb.model import TensorSpec

from .changing import document_changed, json_changed, tokens_changed
from .fuzzing import Target

_REFUSALS = (IntegrityError, FormatError)
_SAMPLES: tuple[dict[str, Any], ...] = (
    {},
    {"loss": 0.5, "epoch": 3, "tag": "a", "none": None, "yes": True},
    {"big": 1 << 200, "huge": 10**5000, "at": dt.datetime(2024, 2, 3, 4, 5, 6), "day": dt.date(2024, 2, 3)},
    {"at": dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=3))), "mixed": [1, "x", 10**5000, None]},
    {"list": [1, 2.5, "x", [None, {"deep": [True]}]], "text": "ü\0'\"; DROP TABLE x; --"},
    {"a": {"b": {"c": {"d": {"e": list(range(20))}}}}, "A": 1},
)
_COLUMNS = json.dumps(fields.to_dict(fields.struct_of({"a": 1, "b": {"c": ["x"], "d": None}, "e": 1.5, "f": True})))
_SCHEMAS = (
    {"shape": [None, 3, 224], "dtype": "float32", "metadata": {"label": "int", "at": "datetime?"}},
    {"metadata": {"x": "list?"}},
)
_CONFIGS = (
    CompressionConfig("zstd", "int8", {"level": 3, "filter": "planes"}, {"granularity": "per_group", "size": 64}),
    CompressionConfig("auto", "uniform", quantization_kwargs={"max_error": 0.1, "relative": True}),
    CompressionConfig("auto", rules=[Rule(name=["*.bias"], ndim=(1, 2), dtype="float32", use="balanced")]),
)


def _metadata(data: bytes) -> None:
    found = documents.unpack(data)
    packed = documents.pack(found)
    assert documents.pack(documents.unpack(packed)) == packed, "a document does not round-trip"
    assert documents.pack(documents.normalize(found)) == packed, "a document is not as one that is written"
    json.loads(documents.as_json(found))
    kind = fields.struct_of(found)
    assert fields.widen(kind, kind) == kind
    assert fields.from_dict(json.loads(json.dumps(fields.to_dict(kind)))) == kind
    columns = fields.columns(kind)
    if columns is not None:
        fields.coerce(found, columns)


def _dataset(column: int, data: bytes) -> None:
    """Read a row of the table of datasets, of which one column is given."""
    given: list[Any] = [7, "points", 3, None, None, _COLUMNS, dt.datetime(2024, 1, 1), None]
    given[column] = _text(data)
    row = datasets.from_row(tuple(given))
    assert fields.from_dict(fields.to_dict(row.fields)) == row.fields
    assert (row.columns is None) == (row.columns_sql is None)
    assert indexes.from_text(indexes.to_text(row.indexes)) == row.indexes
    asked = DatasetSchema.of_row(row)
    assert DatasetSchema.parse(json.loads(json.dumps(asked.to_dict()))) == asked
    _ = asked.columns()
    config = config_of(row)
    if config is not None:
        assert CompressionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        config.for_tensor("a.bias", TensorSpec("float32", (3, 4)))


def _facts(data: bytes) -> None:
    metrics, metadata = facts_of(data)
    assert pack_facts(*facts_of(pack_facts(metrics, metadata))) == pack_facts(metrics, metadata)
    {name: float(value) for name, value in metrics.items()}
    assert checkpoint_documents.check(b"x", pack_facts(metrics, metadata, b"x")) == b"x"
    assert checkpoint_documents.check(b"x", data) == b"x"


def _tree(data: bytes) -> None:
    """Read a document of a checkpoint in every way; what it gives can be saved again, or is refused.

    The first byte says whose tensors it is given.
    """
    leaves, document = _LEAVES[data[0] % len(_LEAVES)] if data else [], data[1:]

    def leaf(number: int) -> torch.Tensor:
        if number >= len(leaves):
            raise IntegrityError(f"there is no leaf {number}")
        return leaves[number]

    paths = tensor_paths(document)
    tree = unflatten(document, leaf)
    unflatten_values(document, leaf, {0, 2})
    unflatten(document, leaf, wanted=lambda name: len(name) % 2 == 0)
    assert all(isinstance(name, str) for name in paths)
    try:
        again = flatten(tree)
    except InvalidInputError:  # a forged one may have what nobody could have saved
        return
    made = unflatten(again.document, lambda number: again.leaves[number].tensor)
    assert flatten(made).document == again.document, "a state does not round-trip"


def _tree_changed(data: bytes, chance: random.Random) -> bytes:
    owner = bytes((chance.randrange(len(_LEAVES)),)) if chance.random() < 0.05 else data[:1]
    return owner + tokens_changed(data[1:], chance)


def _manifest(data: bytes) -> None:
    found = dcp_manifest.metadata_of(data)
    dcp_manifest.paths_of(found)
    dcp_manifest.state_of(found, lambda name, item: name)


def _ids(data: bytes) -> None:
    """Read ids of records one by one and all at once; the generated ones round-trip."""
    nonce, given = data[0] if data else 0, _text(data[1:]).split("\n")
    numbers = ids.sequences_of(given, nonce).tolist()
    assert numbers == [-1 if (one := ids.sequence_of(each, nonce)) is None else one for each in given]
    for each, number in zip(given, numbers, strict=True):
        assert number == -1 or ids.generated_id(number, nonce) == each
    schema.database_id_of(given[0])


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _raw(data: bytes, chance: random.Random) -> bytes:
    return bytes(atheris.Mutate(data, len(data) + 16))


def _flattened() -> list[Flattened]:
    """Take states with all kinds of values and tensors apart."""
    weight = torch.ones(4, 3)
    ordered = OrderedDict(weight=weight, tied=weight, row=weight[1])
    ordered._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    values = {
        "none": None, "flags": (True, 1, 2.5, "x", b"y"), 3: frozenset((1, "a")), (1, "k"): complex(1, 2),
        "at": dt.datetime(2024, 1, 2, tzinfo=dt.UTC), "dtype": torch.bfloat16, "device": torch.device("cpu"),
        "size": torch.Size((2, 3)), "range": range(3), "slice": slice(1, None), "array": weight.numpy()[1:3],
        "scalar": weight.numpy()[0, 0], "big": 1 << 80, "delta": dt.timedelta(1, 2, 3),
    }  # fmt: skip
    sparse = {"coo": torch.eye(3).to_sparse(), "csr": torch.eye(2).to_sparse_csr()}
    states: list[Any] = [ordered, values, sparse, [], {"p": torch.nn.Parameter(weight[0]), "l": [{"a": [weight.T]}]}]
    return [flatten(state) for state in states]


def _trees() -> list[bytes]:
    documents = [each.document for each in _flattened()]
    noted = wire.with_note(documents[0], documents[3])
    return [bytes((number,)) + each for number, each in enumerate([*documents, noted])]


def _manifests() -> list[bytes]:
    entry = ("float32", True, (4, 3), [((0, 0), (2, 3), 0), ((2, 0), (2, 3), 1)])
    plain = {
        "kind": "torch.distributed.checkpoint",
        "version": 1,
        "planner_data": {"model.w": ("model", "w"), "steps.0": ("steps", 0), "steps.1": ("steps", 1)},
        "items": {"model.w": entry, "steps.0": None, "steps.1": None},
    }
    return [flatten(plain).document, flatten({**plain, "planner_data": None}).document]


def _json(name: str, column: int, *seeds: Any) -> Target:
    encoded = [(each if isinstance(each, str) else json.dumps(each)).encode() for each in seeds]
    return Target(name, lambda data: _dataset(column, data), _REFUSALS, encoded, json_changed)


_LEAVES = [[leaf.tensor for leaf in each.leaves] for each in _flattened()]
_LEAVES.append(_LEAVES[0])
TARGETS = (
    Target("metadata", _metadata, _REFUSALS, [documents.pack(each) or b"" for each in _SAMPLES], document_changed),
    _json("schema", 3, *_SCHEMAS),
    _json("config", 4, *(each.to_dict() for each in _CONFIGS)),
    _json("fields", 5, _COLUMNS),
    _json("indexes", 7, indexes.to_text([Index(1, "tag"), Index(3, "a.b")])),
    Target(
        "facts",
        _facts,
        _REFUSALS,
        [pack_facts({"loss": 0.5, "n": 3}, each, b"x") for each in _SAMPLES[1:]] + [pack_facts({}, {})],
        document_changed,
    ),
    Target("tree", _tree, _REFUSALS, _trees(), _tree_changed),
    Target("manifest", _manifest, _REFUSALS, _manifests(), tokens_changed),
    Target("ids", _ids, _REFUSALS, [b"\xcccc0000000000abc\n00", b"\x00" + b"0" * 32], _raw),
)
