"""Checkpoints of torch.distributed.checkpoint in a database: models sharded over many ranks.

`TensorDBWriter` and `TensorDBReader` go where `FileSystemWriter` and `FileSystemReader` do. Every rank encodes and
writes its own shards, through a database of its own on the same folder; the coordinator commits once, so that a
checkpoint is there whole or not at all. What is loaded may be sharded otherwise: each rank decodes only the chunks
that its own shards touch. Nothing is pickled: values that are no tensors are stored as `db.checkpoints` stores them.

>>> import tempfile, warnings
>>> import torch
>>> import torch.distributed.checkpoint as dcp
>>> from tensordb.integrations.dcp import TensorDBReader, TensorDBWriter
>>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):  # dcp says: no ranks
...     state = {"model": torch.nn.Linear(4, 2).state_dict(), "step": 7}
...     _ = dcp.save(state, storage_writer=TensorDBWriter(folder, "run", step=7))
...     found = {"model": torch.nn.Linear(4, 2).state_dict(), "step": 0}
...     dcp.load(found, storage_reader=TensorDBReader(folder, "run"))
>>> found["step"], torch.equal(found["model"]["weight"], state["model"]["weight"])
(7, True)

With many ranks give `dcp.async_save` a ``process_group`` of its own, since the training uses its group meanwhile.

What is saved so is a checkpoint like all others: `db.checkpoints` lists, tags, prunes and forks it, and
``db.checkpoints.load("run")`` gives its whole state, with the shards put together.
"""

from tensordb.integrations.dcp_reader import TensorDBReader
from tensordb.integrations.dcp_writer import TensorDBWriter

__all__ = ["TensorDBReader", "TensorDBWriter"]
