"""Encoding again what is stored already: under a config that keeps its scheme, and pages without some of their rows.

Nothing is ever quantized here: codes, parameters, exceptions and the measured error are taken over as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tensordb.encoding.codecs import CODEC_NAMES
from tensordb.encoding.filters import FILTER_NAMES
from tensordb.encoding.lossy import Stored
from tensordb.encoding.pipeline import Prepared, prepare_stored
from tensordb.encoding.presets import CompressionConfig
from tensordb.encoding.quantizers import Exceptions
from tensordb.encoding.quantizers.exceptions import most_exceptions, position_dtype
from tensordb.encoding.reading import PayloadReader
from tensordb.model import Encoding, TensorSpec
from tensordb.tensors import spec_of, view_of

RAW = CompressionConfig("none")
_AUTO, _BEST = CompressionConfig("auto"), CompressionConfig("best")
_BEST_LEVEL = 19


def config_like(applied: Encoding) -> CompressionConfig | None:
    """Return the lossless config that gives what was applied to a tensor; None for one that is stored raw.

    Raw may be what its user asked for, or all that ``auto`` could do for a small one.
    """
    return _config_like(applied.compression, tuple(sorted(applied.compression_parameters.items())))


@lru_cache(maxsize=256)
def _config_like(compression: str, pairs: tuple[tuple[str, Any], ...]) -> CompressionConfig | None:
    names, parameters = compression.split("+"), dict(pairs)
    codec = names[-1] if names[-1] in CODEC_NAMES[1:] else None
    if codec is None:
        return None if compression == "none" else _AUTO
    if codec == "pcodec" or (codec == "zstd" and parameters.get("level") == _BEST_LEVEL):
        return _BEST
    if codec == "zstd" and (parameters.get("strategy") == "huffman" or parameters == {"level": 3}):
        return _AUTO
    asked = {"filter": names[0]} if names[0] != codec and names[0] in FILTER_NAMES else {}
    return CompressionConfig(codec, compression_kwargs={**parameters, **asked})


def lossless(tensor: torch.Tensor, config: CompressionConfig, note: str | None, *, page: bool) -> Prepared:
    """Return a tensor compressed as `config` says and never quantized, with the note that its records had before."""
    return prepare_stored(Stored(spec_of(tensor), page, tensor, note=note), config)


def without_other_rows(reader: PayloadReader, rows: Sequence[int]) -> Prepared | None:
    """Return a quantized page with these rows alone, given in ascending order.

    Values, quantizer, note and the error that was measured over the whole page are taken over as they are.

    Returns:
        None where too large a part of what remains are exceptions.

    Raises:
        IntegrityError: Something of the page is damaged.
    """
    chunks, wanted = reader._chunks, np.asarray(rows, np.int64)
    spec = TensorSpec(reader.spec.dtype, (len(rows), *reader.spec.shape[1:]))
    positions, values = chunks.exceptions_of_rows(wanted)
    elements = len(rows) * chunks.record_elements
    if len(positions) > most_exceptions(elements):
        return None
    assert chunks.quantizer is not None
    dtype = chunks.quantizer.parameter_dtype
    stored = Stored(
        spec,
        True,
        view_of(chunks.codes_of_rows(wanted), TensorSpec(chunks.codes_dtype, spec.shape)),
        chunks.quantizer,
        tuple(_tensor(each, dtype) for each in chunks.parameters_of_rows(wanted)),
        chunks.descriptor.error,
        chunks.descriptor.note,
        Exceptions(positions.astype(position_dtype(elements)), values) if len(positions) else None,
    )
    return prepare_stored(stored, config_like(reader.encoding) or RAW)


def _tensor(items: NDArray[Any], dtype: str) -> torch.Tensor:
    return view_of(np.ascontiguousarray(items).view(np.uint8), TensorSpec(dtype, (len(items),)))
