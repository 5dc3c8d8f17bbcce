"""What the databases of older formats hold, and how they were made.

Run with an older commit of tensordb on the path, ``PYTHONPATH=<checkout> python tests/old_files/making.py out.zip``,
this writes a database of its format; what it holds is made from numbers, so that any release can say what it must
read. A file that was committed is never made again.
"""

from __future__ import annotations

import datetime as dt
import inspect
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

LOSSLESS = ("lossless", "none", "fast", "archive")
LOSSY = ("balanced", "maximum", "bf16_only", "q6")
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)
STEPS = 4


def values(number: int, *shape: int) -> torch.Tensor:
    """Return float32 values that are the same in every release of torch: a linear congruential sequence."""
    count = int(torch.tensor(shape).prod()) if shape else 1
    words = (torch.arange(count, dtype=torch.int64) * 1103515245 + 12345 * (number + 1)) % 2**31
    return (words.to(torch.float32) / 2**30 - 1).reshape(shape)


def records() -> dict[str, dict[str, tuple[torch.Tensor, dict[str, Any], str]]]:
    """Return what each dataset holds: tensor, metadata and preset by record id."""
    kinds = {}
    for number, dtype in enumerate(DTYPES):
        kinds[f"small {dtype}"] = (values(number, 6, 5).mul(100).to(dtype), {"i": number, "s": "naïve ☃"}, "lossless")
    for number, preset in enumerate(LOSSLESS + LOSSY):
        metadata = {"x": number / 4, "when": dt.datetime(2020, 1, 1 + number), "deep": {"list": [number, None]}}
        kinds[f"large {preset}"] = (values(number, 90, 80), metadata, preset)
    kinds["empty"] = (torch.empty(0, 3), {}, "lossless")
    kinds["scalar"] = (torch.tensor(float("nan")), {"b": True}, "lossless")
    pages = {f"page {i}": (values(i, 64), {"i": i}, "lossless") for i in range(40)}
    return {"kinds": kinds, "pages ü": pages}


def state(step: int) -> dict[str, torch.Tensor]:
    """Return the state that a checkpoint of this step holds: most of it stays, some moves a little."""
    weight = values(1, 100, 80)
    weight[step] *= 2
    return {"w": weight, "b": values(step, 7), "frozen": torch.ones(5000)}


def weight(number: int) -> torch.Tensor:
    """Return a weight; the second one differs a little from the first."""
    tensor = values(2, 120, 60)
    tensor[0, :number] = 1
    return tensor


def fill(db: Any) -> None:
    """Put everything that this release knows of into an empty database."""
    for name, content in records().items():
        db.create_dataset(name)
        if name.startswith("pages"):
            tensors = torch.stack([tensor for tensor, _, _ in content.values()])
            db.insert_many(name, tensors, [metadata for _, metadata, _ in content.values()], record_ids=list(content))
            continue
        for key, (tensor, metadata, preset) in content.items():
            db.set_compression_preset(preset)
            db.insert(name, tensor, metadata, record_id=key)
    db.set_compression_preset("lossless")
    if hasattr(db, "checkpoints"):
        for step in range(STEPS):
            facts = {"state": {"step": step}, "step": step, "metrics": {"loss": 1 / (step + 1)}, "rng": False}
            db.checkpoints.save("run", state(step), **facts)
        db.checkpoints.tag("run", "second", step=1)
        if "new_run" in inspect.getfullargspec(db.checkpoints.fork).args[3:]:
            db.checkpoints.fork("run", 2, "fork")
        else:  # the order before the step had a place of its own
            db.checkpoints.fork("run", "fork", step=2)
    if hasattr(db, "weights"):
        base = db.weights.store(weight(0), name="base", metadata={"epoch": 1})
        db.weights.store_delta(weight(3), base, name="next")


def main(target: str) -> None:
    """Write the database of the release on the path into a zip file."""
    from tensordb import TensorStorage

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "db"
        with TensorStorage(folder) as db:
            fill(db)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder))


if __name__ == "__main__":
    main(sys.argv[1])
