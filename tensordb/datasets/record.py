"""What reading gives back: records, and pages of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, overload

import torch

from tensordb.display import html_table
from tensordb.looking import plots
from tensordb.looking.figures import Figures
from tensordb.looking.pages import tensor_html
from tensordb.looking.plots import Kind
from tensordb.model import Encoding


@dataclass(frozen=True, eq=False)
class Record:
    """One tensor of a dataset with what is known of it. ``record["tensor"]`` works like ``record.tensor``.

    Attributes:
        id: The record id.
        dataset: Name of its dataset.
        tensor: The decoded tensor, in its original dtype and shape. It aliases what is stored only where
            ``copy=False`` asked for that.
        metadata: The metadata as it was given (tuples come back as lists).
        created_at: When it was inserted, in UTC.
        encoding: What was applied to the stored tensor: compression, quantization, sizes in bytes, measured error.
    """

    id: str
    dataset: str
    tensor: torch.Tensor
    metadata: dict[str, Any]
    created_at: dt.datetime
    encoding: Encoding

    @classmethod
    def made(cls, known: dict[str, Any], tensor: torch.Tensor, metadata: dict[str, Any]) -> Record:
        """Return a record whose other fields are `known`, in less than half the time that its constructor takes."""
        record = object.__new__(cls)
        values = record.__dict__
        values.update(known)
        values["tensor"], values["metadata"] = tensor, metadata
        return record

    def __getitem__(self, name: str) -> Any:
        if name == "record_id":
            return self.id
        if name not in self.keys():
            raise KeyError(f"a record has {', '.join(self.keys())}, not {name!r}")
        return getattr(self, name)

    def keys(self) -> list[str]:
        """Return the names that ``record[name]`` takes, so that ``dict(record)`` works."""
        return [each.name for each in fields(self)]

    def plot(self, ax: Any = None, *, kind: Kind = "picture") -> Any:
        """Draw the tensor with matplotlib.

        Args:
            ax: Axes to draw on (default: new ones).
            kind: ``"picture"``: a line of a vector, an image of bytes with channels first or last, else a heatmap of
                the last two dimensions at 0 of the others; thinned out where it is large. ``"histogram"``: of the
                values, of a random sample where there are many.

        Returns:
            The axes.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        return plots.plot(self.tensor, f"{shorten(self.id, 40)}: {describe(self.tensor)}", kind, ax)

    def __repr__(self) -> str:
        return (
            f"Record(id={self.id!r}, dataset={self.dataset!r}, tensor={describe(self.tensor)}, "
            f"metadata={shorten(repr(self.metadata))}, encoding={summarize(self.encoding)})"
        )

    def _repr_html_(self) -> str:
        figures = Figures.of(self.tensor)
        rows = [
            ("id", self.id),
            ("dataset", self.dataset),
            ("tensor", describe(self.tensor)),
            ("values", str(figures)),
            *((f"metadata.{name}", shorten(repr(value))) for name, value in self.metadata.items()),
            ("created at", f"{self.created_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("encoding", summarize(self.encoding)),
        ]
        return html_table(["", "record"], rows) + tensor_html(self.tensor, figures)


class Page(Sequence[Record]):
    """A list-like part of a dataset's records.

    Attributes:
        records: The records of this page.
        offset: Position of the first one among all that match.
        limit: Largest number of records that was asked for.
        total: How many records match in all.
    """

    def __init__(self, records: Sequence[Record], *, offset: int, limit: int, total: int) -> None:
        self.records = list(records)
        self.offset = offset
        self.limit = limit
        self.total = total

    @property
    def next(self) -> int | None:
        """The offset of the next page, None on the last one."""
        following = self.offset + self.limit
        return following if self.limit and following < self.total else None

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __eq__(self, other: object) -> bool:
        return self.records == (other.records if isinstance(other, Page) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        if not self.records:
            return f"Page(no records at offset {self.offset}, {self.total} in all)"
        last = self.offset + len(self.records) - 1
        return f"Page(records {self.offset} to {last} of {self.total}, next={self.next})"

    def _repr_html_(self) -> str:
        rows = [
            (each.id, describe(each.tensor), shorten(repr(each.metadata)), summarize(each.encoding))
            for each in self.records[:50]
        ]
        return html_table(["id", "tensor", "metadata", "encoding"], rows, caption=repr(self))


def describe(tensor: torch.Tensor) -> str:
    """Return dtype and shape in a few characters, such as ``float32[3, 224, 224]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def summarize(encoding: Encoding) -> str:
    """Return what was applied in one line."""
    sizes = f"{encoding.original_nbytes:,} → {encoding.stored_nbytes:,} bytes"
    text = f"{encoding.compression}, {sizes} (ratio {encoding.ratio:.2f})"
    if encoding.quantization != "none":
        text = f"{encoding.quantization} + {text}, {encoding.error.snr_db:.1f} dB"
    return text if encoding.note is None else f"{text}; {encoding.note}"


def shorten(text: str, limit: int = 120) -> str:
    """Return the text, cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
