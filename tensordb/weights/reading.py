"""Reading weights: found in one catalog block and decoded after it, so that those deleted meanwhile are read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import duckdb
import torch

from tensordb.catalog.weights import WeightRow
from tensordb.engine import Database
from tensordb.engine.contents import on_all_cores
from tensordb.errors import InvalidInputError
from tensordb.weights.finding import check_text, find_all, find_any, find_deltas, nothing, span_of


def load(db: Database, text: Any, *, device: Any, out: Any, index: Any, delta: bool) -> torch.Tensor:
    """Return the tensor of a hash, or what `index` picks of it."""
    target = check_target(device, out)
    with db.catalog.read() as con:
        check_known(db, con, text)
        row = find_deltas(con, text)[0] if delta else find_any(con, text)
        source = db.sources.open(con, {row.object_id: title_of(row)})[row.object_id]
    if index is None:
        return _placed(db.sources.decode(title_of(row), source, out=out), target)
    tensor = db.sources.decode(title_of(row), source, index=index)
    return _placed(tensor if out is None else _filled(out, tensor), target)


def check_known(db: Database, con: duckdb.DuckDBPyConnection, text: Any) -> None:
    """Raise WeightNotFoundError for a whole hash that surely nothing has, without a query."""
    low, high = span_of(text)
    if low == high and db.catalog.known.lacks_weight(con, low):
        raise nothing(text, "weight or delta")


def load_batch(db: Database, hashes: Any, *, device: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of many hashes, decoded on all cores, by what was asked and in that order."""
    if isinstance(hashes, str) or not isinstance(hashes, Iterable):
        raise InvalidInputError(f"hashes is {hashes!r}; give a list of hashes")
    wanted = list(dict.fromkeys(check_text(each) for each in hashes))
    target = check_target(device, None)
    with db.catalog.read() as con:
        found = find_all(con, wanted)
        sources = db.sources.open(con, {row.object_id: title_of(row) for row in found.values()})
    decoded: dict[str, torch.Tensor] = {}

    def work(at: int) -> None:
        row = found[wanted[at]]
        decoded[wanted[at]] = _placed(db.sources.decode(title_of(row), sources[row.object_id]), target)

    on_all_cores([found[each].nbytes for each in wanted], range(len(wanted)), work)
    return {each: decoded[each] for each in wanted}


def title_of(row: WeightRow) -> str:
    """Return what a weight is called in errors."""
    return f"{'weight' if row.base_id is None else 'delta'} {row.content_id.hex()}"


def check_target(device: Any, out: Any) -> torch.device | None:
    """Return the device that a tensor is to be on, None for where it is decoded.

    Raises:
        InvalidInputError: There is no such device, `out` is no tensor, or both were given.
    """
    if out is not None and not isinstance(out, torch.Tensor):
        raise InvalidInputError(f"out= is a {type(out).__name__}; give a tensor like the result")
    if out is not None and device is not None:
        raise InvalidInputError("both device= and out= were given; the result is where out= is, drop device=")
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"device is {device!r}, which torch does not know: {error}") from error


def _placed(tensor: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    return tensor if device is None else tensor.to(device)


def _filled(out: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    if out.shape != tensor.shape or out.dtype != tensor.dtype:
        raise InvalidInputError(
            f"out= is {out.dtype} {tuple(out.shape)}; it must be like the result, {tensor.dtype} {tuple(tensor.shape)}"
        )
    with torch.no_grad():  # a parameter is what one reads into
        return out.copy_(tensor)
