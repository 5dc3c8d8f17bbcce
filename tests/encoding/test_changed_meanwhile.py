"""A tensor that others change while it is stored: refused, never stored under the id of what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tensordb import CompressionConfig, TensorStorage
from tensordb.encoding.pipeline import prepare
from tensordb.encoding.presets import get_compression_preset
from tensordb.engine import contents
from tensordb.errors import ConflictError


@pytest.mark.parametrize("preset", ["none", "lossless", "archive", "fast"])
@pytest.mark.parametrize("elements", [300, 3_000_000])
def test_a_change_between_hash_and_payload_is_an_error(preset: str, elements: int) -> None:
    tensor = torch.randn(elements if preset != "archive" else 300)
    prepared = prepare(tensor, get_compression_preset(preset))
    prepared.content_id()
    tensor[-1] += 1
    with pytest.raises(ConflictError, match="changed by others"):
        prepared.encode()


def test_codes_of_a_quantizer_are_nobody_elses() -> None:
    tensor = torch.randn(3000)
    prepared = prepare(tensor, CompressionConfig("auto", "int8"))
    tensor.zero_()
    assert prepared.encode().content_id == prepared.content_id()


def test_what_was_changed_while_it_was_saved_damages_no_later_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(50_000)
    before = weight.clone()
    look_up = contents.ContentWriter._look_up

    def late(self: contents.ContentWriter, *arguments: object) -> object:
        found = look_up(self, *arguments)  # type: ignore[arg-type]
        weight.add_(1)
        return found

    with TensorStorage(tmp_path) as db:
        with monkeypatch.context() as patched:
            patched.setattr(contents.ContentWriter, "_look_up", late)
            with pytest.raises(ConflictError, match="changed by others"):
                db.checkpoints.save("run", {"w": weight}, rng=False)
        assert db.checkpoints.runs() == []
        db.checkpoints.save("run", {"w": before}, rng=False)
        assert torch.equal(db.checkpoints.load("run")["model"]["w"], before)
        assert db.verify().ok
