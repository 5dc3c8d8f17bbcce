"""The verbs behind ``db.weights``. Every body is a few lines; behaviour lives beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from tensordb.engine import Database
from tensordb.overloading import overload
from tensordb.weights import listing, reading, storing
from tensordb.weights.requests import Preset, Request, check_batch, check_max_error, config_of, requests_of
from tensordb.weights.weight import Weight, WeightInfo, WeightStorageInfo

Params = Sequence[Any] | Mapping[str, Any] | None


class Weights:
    """Tensors by the hash of what they hold: equal ones are stored once, also with those of checkpoints.

    A hash is the BLAKE3-256 of the stored content, 64 hexadecimal digits; where one is asked for, its first 8 or more
    do if they are unambiguous. With a preset that quantizes, it is the hash of the quantized content, which is what
    `load` returns. One hash may have several labels (name, layer type, model), each with metadata of its own.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def store(
        self,
        tensor_or_weight: torch.Tensor | Weight,
        *,
        name: str | None = None,
        layer_type: str | None = None,
        model_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        preset: Preset = None,
    ) -> str:
        """Store one weight; it is durable when this returns.

        What is stored already adds no bytes, and stays encoded as it is, whatever `preset` says. A further label is
        kept beside those that are there; one with the same name, layer type and model replaces their metadata.

        Args:
            tensor_or_weight: Any dense tensor or parameter of any dtype, shape, strides and device, or a `Weight`.
            name: Such as ``"layer.0.weight"``, the name that a config's rules go by. This and what follows go before
                what a `Weight` says.
            layer_type: Such as ``"Linear"``.
            model_name: Such as ``"resnet50"``.
            metadata: JSON-like values by name.
            preset: Name of a preset, or a config; None follows the storage.

        Returns:
            The hash.

        Raises:
            InvalidInputError: The tensor, or what is said about it, cannot be stored.
        """
        request = Request.of(tensor_or_weight, name, layer_type, model_name, metadata)
        return storing.store(self._db, request, config_of(preset, self._db.config))

    @overload
    def store_batch(
        self,
        weights: Mapping[str, torch.Tensor | Weight],
        *,
        layer_type: str | None = None,
        model_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        preset: Preset = None,
    ) -> dict[str, str]: ...
    @overload
    def store_batch(
        self,
        weights: Iterable[torch.Tensor | Weight | tuple[str, torch.Tensor | Weight]],
        *,
        layer_type: str | None = None,
        model_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        preset: Preset = None,
    ) -> list[str]: ...
    def store_batch(
        self,
        weights: Any,
        *,
        layer_type: str | None = None,
        model_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        preset: Preset = None,
    ) -> dict[str, str] | list[str]:
        """Store many weights in one atomic commit, encoded on all cores.

        Args:
            weights: A mapping of names to tensors or `Weight` values, such as ``model.state_dict()``; or an iterable of
                those or of (name, tensor) pairs, such as ``model.named_parameters()``. An iterable may be larger than
                memory: about 256 MB of its tensors are held at a time.
            layer_type: Of all of them; likewise `model_name`, `metadata` and `preset`, as for `store`.
            model_name: Such as ``"resnet50"``.
            metadata: JSON-like values by name.
            preset: Name of a preset, or a config.

        Returns:
            The hashes: by name for a mapping, else in order.

        Raises:
            InvalidInputError: One of them cannot be stored; none was.
            ConflictError: Others deleted what an iterator's weights shared; nothing was stored, repeat it.
        """
        check_batch(weights)
        repeatable = not isinstance(weights, Iterator)

        def requests() -> Iterator[Request]:
            return requests_of(weights, layer_type, model_name, metadata)

        config = config_of(preset, self._db.config)
        hashes = storing.store_all(self._db, requests, config, repeatable=repeatable)
        return dict(zip(weights, hashes, strict=True)) if isinstance(weights, Mapping) else hashes

    def load(
        self,
        hash: str,  # noqa: A002
        *,
        device: torch.device | str | None = None,
        out: torch.Tensor | None = None,
        index: Any = None,
    ) -> torch.Tensor:
        """Load the tensor of a weight, or of a delta.

        Args:
            hash: The hash, or its first digits.
            device: Where the tensor is to be (default: the CPU).
            out: A tensor or parameter like the result to read into, anywhere; it is returned.
            index: Ints, slices and ``...``, to read a part without decoding the rest.

        Raises:
            WeightNotFoundError: There is no such hash.
            IntegrityError: Stored bytes are damaged; the message names the weight.
        """
        return reading.load(self._db, hash, device=device, out=out, index=index, delta=False)

    def load_batch(self, hashes: Iterable[str], *, device: torch.device | str | None = None) -> dict[str, torch.Tensor]:
        """Load many weights or deltas, decoded on all cores: a dict by the hashes as given, in that order."""
        return reading.load_batch(self._db, hashes, device=device)

    def exists(self, hash: str) -> bool:  # noqa: A002
        """Tell whether a weight has this hash; one that only deltas have, or need as their base, is none."""
        return listing.exists(self._db, hash, delta=False)

    def delete(self, hash: str) -> None:  # noqa: A002
        """Delete a weight with its labels; WeightNotFoundError when there is none.

        Checkpoints, records and deltas of the same content are not affected, and deltas from it stay readable.
        """
        listing.delete(self._db, hash)

    def get_metadata(self, hash: str) -> WeightInfo:  # noqa: A002
        """Return what is known of a weight, or of a delta, without its tensor."""
        return listing.info(self._db, hash)

    def list_weights(
        self,
        *,
        where: str | None = None,
        params: Params = None,
        name: str | None = None,
        layer_type: str | None = None,
        model_name: str | None = None,
    ) -> list[WeightInfo]:
        """Return the weights that match, oldest first; deltas are listed by `list_deltas`.

        Args:
            where: A DuckDB SQL condition over the columns of ``history.weights``, which has one row for each label:
                ``hash, name, layer_type, model_name, metadata, dtype, shape, nbytes, stored_nbytes, compression,
                quantization, relative_l2, max_abs, created_at`` and more. A weight matches if one of its labels does.
            params: Values for ``?`` (a sequence) or ``$name`` (a mapping) in the condition.
            name: Only those stored under this name.
            layer_type: Only those of this layer type.
            model_name: Only those of this model.

        Raises:
            InvalidQueryError: DuckDB refuses the condition.
        """
        labelled = {"name": name, "layer_type": layer_type, "model_name": model_name}
        return listing.weights_where(self._db, where, params, labelled)

    def get_storage_info(self) -> WeightStorageInfo:
        """Return how much is stored for all weights and deltas, against what they would take raw."""
        return listing.storage_info(self._db)

    def store_delta(
        self,
        tensor_or_weight: torch.Tensor | Weight,
        base_hash: str,
        *,
        name: str | None = None,
        layer_type: str | None = None,
        model_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        preset: Preset = None,
        max_error: float | None = None,
    ) -> str:
        """Store a weight as its difference from another one, where that is smaller; else by itself.

        What it is read with is kept for as long as it needs that, also when it is deleted: the base, or where the base
        is a delta itself what that is a difference from, so that any delta is read with one tensor. Where differences
        have become large it is stored by itself.

        Args:
            tensor_or_weight: As for `store`.
            base_hash: Hash of a weight or delta of the same dtype and shape.
            name: As for `store`; likewise `layer_type`, `model_name` and `metadata`.
            layer_type: Such as ``"Linear"``.
            model_name: Such as ``"resnet50"``.
            metadata: JSON-like values by name.
            preset: One that does not quantize; None is the storage's if that is so, else ``"lossless"``.
            max_error: How much a value of float16, bfloat16, float32 or float64 may at most differ, in absolute terms.
                What is stored is then a tensor within it that is near what it is read with, so that changes below it
                cost nothing; one stored by itself is rounded.
                None (default) is bit for bit.

        Returns:
            The hash, of what `load_delta` returns.

        Raises:
            WeightNotFoundError: There is no such base.
            InvalidInputError: The base has another dtype or shape, the preset quantizes, or the tensor cannot be
                stored.
        """
        request = Request.of(tensor_or_weight, name, layer_type, model_name, metadata)
        config = storing.lossless(config_of(preset, self._db.config), preset is not None, request)
        return storing.store_delta(self._db, request, base_hash, config, check_max_error(max_error))

    def load_delta(
        self,
        hash: str,  # noqa: A002
        *,
        device: torch.device | str | None = None,
        out: torch.Tensor | None = None,
        index: Any = None,
    ) -> torch.Tensor:
        """Load the tensor of a delta, whole; arguments as for `load`."""
        return reading.load(self._db, hash, device=device, out=out, index=index, delta=True)

    def delta_exists(self, hash: str) -> bool:  # noqa: A002
        """Tell whether a delta has this hash."""
        return listing.exists(self._db, hash, delta=True)

    def delete_delta(self, hash: str, *, base_hash: str | None = None) -> None:  # noqa: A002
        """Delete a delta, of several bases only that of `base_hash` if it is given; deltas from it stay readable."""
        listing.delete_deltas(self._db, hash, base_hash)

    def list_deltas(self, base_hash: str | None = None) -> list[WeightInfo]:
        """Return the deltas that were stored with this base, which may be deleted, or all, oldest first."""
        return listing.deltas_from(self._db, base_hash)
