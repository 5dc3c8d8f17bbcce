"""The config that the catalog has of a dataset."""

from __future__ import annotations

from tensordb.catalog.datasets import DatasetRow
from tensordb.encoding.presets import CompressionConfig
from tensordb.errors import IntegrityError, InvalidInputError


def config_of(row: DatasetRow) -> CompressionConfig | None:
    """Return a dataset's own config, None when it follows the storage's.

    Raises:
        IntegrityError: What the catalog has is no config.
    """
    try:
        return None if row.config is None else CompressionConfig.from_dict(row.config)
    except InvalidInputError as error:
        raise IntegrityError(f"the stored compression config of dataset {row.name!r} is damaged: {error}") from error
