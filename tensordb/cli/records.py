"""Commands about records: head, query. Each returns whether nothing is wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import torch

from tensordb.cli.output import fields, table, to_json
from tensordb.cli.overview import open_to_read
from tensordb.datasets.record import Record, describe
from tensordb.errors import InvalidInputError


def head(options: argparse.Namespace) -> bool:
    """Show the first records of a dataset."""
    with open_to_read(options) as db:
        _show(db.scan(options.dataset, limit=options.n), as_json=options.json)
    return True


def query(options: argparse.Namespace) -> bool:
    """Show the records that match, or the result of one SQL statement."""
    _check_query(options)
    params = values_of(options.params)
    with open_to_read(options) as db:
        if options.sql is not None:
            _show_table(db.sql(options.sql, params), as_json=options.json)
        else:
            _show(
                db.scan(options.dataset, options.where, params=params, order_by=options.order_by, limit=options.limit),
                as_json=options.json,
            )
    return True


def _check_query(options: argparse.Namespace) -> None:
    if (options.sql is None) == (options.dataset is None):
        raise InvalidInputError("query takes a DATASET or --sql QUERY, one of the two (see 'tensordb query --help')")
    if options.sql is not None and (options.order_by is not None or options.limit is not None):
        raise InvalidInputError("--order-by and --limit go with a DATASET; write them into the SQL of --sql")


def values_of(text: str | None) -> Any:
    """Return the values of --params, None when there are none."""
    if text is None:
        return None
    try:
        params = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"--params {text!r} is not JSON: {error}; give a list or an object") from None
    if not isinstance(params, list | dict):
        raise InvalidInputError(f"--params {text!r} is neither a list (for ?) nor an object (for $name)")
    return params


def _show(found: Iterable[Record], *, as_json: bool) -> None:
    if as_json:
        print(to_json([_plain_record(each) for each in found]))
        return
    rows = [[each.id, describe(each.tensor), _in_words(summary(each.tensor)), fields(each.metadata)] for each in found]
    print(table(["record_id", "tensor", "values", "metadata"], rows) if rows else "no records")


def _show_table(result: pa.Table, *, as_json: bool) -> None:
    names = _distinct(result.column_names)
    rows = list(zip(*map(_values, result.column_names, result.columns), strict=True))
    if as_json:
        print(to_json([dict(zip(names, row, strict=True)) for row in rows]))
    else:
        print(table(names, rows))


def _values(name: str, column: pa.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ArithmeticError, ValueError) as error:  # DuckDB has dates before the year 1, and infinite ones
        raise InvalidInputError(
            f"column {name!r} has a {column.type} that Python lacks: {error}; cast it to VARCHAR"
        ) from error
    return values


def summary(tensor: torch.Tensor) -> dict[str, float | int | None]:
    """Return least, largest and mean finite value of a real tensor, and how many values are not finite."""
    if tensor.is_complex():
        return {"min": None, "max": None, "mean": None, "non_finite": int((~torch.isfinite(tensor)).sum())}
    values = tensor.detach().cpu().to(torch.float64)
    finite = values[torch.isfinite(values)]
    lost = values.numel() - finite.numel()
    if not finite.numel():
        return {"min": None, "max": None, "mean": None, "non_finite": lost}
    return {"min": finite.min().item(), "max": finite.max().item(), "mean": finite.mean().item(), "non_finite": lost}


def _plain_record(record: Record) -> dict[str, Any]:
    encoding = record.encoding
    return {
        "record_id": record.id,
        "created_at": record.created_at,
        "dtype": str(record.tensor.dtype).removeprefix("torch."),
        "shape": list(record.tensor.shape),
        "nbytes": encoding.original_nbytes,
        "metadata": record.metadata,
        "values": summary(record.tensor),
        "encoding": {
            "compression": encoding.compression,
            "quantization": encoding.quantization,
            "stored_nbytes": encoding.stored_nbytes,
            "ratio": encoding.ratio,
            "relative_l2": encoding.error.relative_l2,
        },
    }


def _in_words(values: dict[str, float | int | None]) -> str:
    lost = f", {values['non_finite']:,} not finite" if values["non_finite"] else ""
    if values["min"] is None:
        return f"-{lost}"
    return f"{values['min']:.3g} to {values['max']:.3g}, mean {values['mean']:.3g}{lost}"


def _distinct(names: list[str]) -> list[str]:
    """Return column names with a number behind those that came before: a JSON object has a name once."""
    taken: list[str] = []
    for name in names:
        number, candidate = 0, name
        while candidate in taken:
            number, candidate = number + 1, f"{name}_{number + 1}"
        taken.append(candidate)
    return taken
