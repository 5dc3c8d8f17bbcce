"""A small training to be saved: every kind of state that a real one has."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Training:
    """A network with buffers, AdamW and a schedule; one step draws its own data."""

    def __init__(self, seed: int = 0, width: int = 24) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, 3))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=50)

    def step(self) -> float:
        loss = self.model(torch.randn(16, 8)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return float(loss.detach())

    def parts(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "scheduler": self.scheduler}

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies of every tensor of the model and of the optimizer."""
        tensors = {f"model.{key}": value.clone() for key, value in self.model.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value.clone() for key, value in values.items()}
        return tensors


def tensors_of(tree: Any) -> dict[str, torch.Tensor]:
    """Return every tensor of a loaded state, by the names that `Training.state` gives."""
    tensors = {f"model.{key}": value for key, value in tree["model"].items()}
    for number, values in tree["optimizer"]["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
    return tensors


def assert_same(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Check that tensors are equal bit for bit."""
    assert list(given) == list(expected)
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype, name
        assert given[name].shape == tensor.shape, name
        as_bytes = [each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (given[name], tensor)]
        assert torch.equal(*as_bytes), name
