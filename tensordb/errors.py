"""The error tree: one root, children by what the caller can do about it.

Every error pickles (DataLoader workers send them between processes) and its message says what happened, the value
that caused it, and the remedy.
"""

from __future__ import annotations


class TensorDBError(Exception):
    """Root of every error that tensordb raises on purpose."""


class NotFoundError(TensorDBError, KeyError):
    """Something asked for by name or id does not exist."""

    def __str__(self) -> str:
        # KeyError shows its argument's repr; a sentence wants to be read as it is.
        return Exception.__str__(self)


class DatasetNotFoundError(NotFoundError, ValueError):
    """No dataset has this name."""


class TensorNotFoundError(NotFoundError, ValueError):
    """No record of the dataset has this id."""


class CheckpointNotFoundError(NotFoundError):
    """No checkpoint matches."""


class WeightNotFoundError(NotFoundError):
    """No weight or delta has this hash."""


class AlreadyExistsError(TensorDBError):
    """A dataset name or record id is taken."""


class InvalidInputError(TensorDBError, ValueError):
    """An argument cannot be used; the message names the value and the remedy."""


class SchemaValidationError(InvalidInputError):
    """A tensor or its metadata does not match the dataset's schema; the message names the field."""


class UnknownPresetError(InvalidInputError):
    """No preset, codec or quantizer has this name; the message lists those that exist."""


class InvalidQueryError(InvalidInputError):
    """A condition, ordering or SQL text that DuckDB refuses; the message carries its reason."""


class ConflictError(TensorDBError):
    """The operation met a state that forbids it: an aborted transaction, a closed database."""


class ReadOnlyError(TensorDBError):
    """A write to a database that was opened for reading."""


class IntegrityError(TensorDBError):
    """Stored bytes are not what was written: a checksum, a length or a reference does not match."""


class FormatError(TensorDBError):
    """Stored bytes of a form that cannot be read: none is written like this, or see `UnsupportedFormatError`."""


class UnsupportedFormatError(FormatError):
    """What is stored may well be sound, but is not for this installation: read it with a newer release or torch.

    That is no damage: nothing is removed or written anew because of it. `MissingCodecError` is one of these.
    """


class DatabaseBusyError(TensorDBError):
    """Another process kept the database longer than `busy_timeout`; nothing was changed, try again."""


class StoreError(TensorDBError):
    """The environment failed (file system, permissions); what was committed before is not affected."""


class StorageFullError(StoreError):
    """No space is left for a write; nothing was lost, work goes on once there is space."""


class MissingDependencyError(TensorDBError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class MissingCodecError(MissingDependencyError, UnsupportedFormatError):
    """What is stored went through a codec whose package is not installed; the message names the extra."""
