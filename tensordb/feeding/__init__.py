"""Feeding training loops: snapshots of datasets as `torch.utils.data` knows them, read without the catalog."""

from tensordb.feeding.collating import collate
from tensordb.feeding.dataset import TensorDataset
from tensordb.feeding.stream import TensorStream

__all__ = ["TensorDataset", "TensorStream", "collate"]
