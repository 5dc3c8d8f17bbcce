"""The demo's subject: the handwritten digits of scikit-learn, and a small network that learns to read them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tensordb.datasets.record import Record
from tensordb.errors import MissingDependencyError

_HELD_OUT = 360
_SHADES = " .:-=+*%@"
_BRIGHTEST = 16


@dataclass(frozen=True)
class Digits:
    """The images with what is known of them.

    Attributes:
        images: uint8 ``[1797, 8, 8]``, values from 0 to 16.
        metadata: Label and split (``"train"`` or ``"test"``) of each image.
    """

    images: torch.Tensor
    metadata: list[dict[str, int | str]]


@dataclass(frozen=True)
class Examples:
    """What a network is fed: images float32 ``[N, 8, 8]`` from 0 to 1, labels int64 ``[N]``."""

    images: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, records: Sequence[Record]) -> Examples:
        """Return the examples that records of the dataset hold."""
        images = torch.stack([each.tensor for each in records]).float() / _BRIGHTEST
        return cls(images, torch.tensor([each.metadata["label"] for each in records]))


def load_digits() -> Digits:
    """Return the 1,797 images in a fixed split.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependencyError("the demo needs scikit-learn: pip install 'tensordb[demo]'") from error
    found = datasets.load_digits()
    held_out = set(torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))[:_HELD_OUT].tolist())
    metadata: list[dict[str, int | str]] = [
        {"label": int(label), "split": "test" if place in held_out else "train"}
        for place, label in enumerate(found.target)
    ]
    return Digits(torch.from_numpy(found.images).to(torch.uint8), metadata)


def network() -> nn.Sequential:
    """Return an untrained network of 167,178 parameters, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            ("flatten", nn.Flatten()),
            ("first", nn.Linear(64, 512)),
            ("first_relu", nn.ReLU()),
            ("second", nn.Linear(512, 256)),
            ("second_relu", nn.ReLU()),
            ("output", nn.Linear(256, 10)),
        ]
        return nn.Sequential(OrderedDict(layers))


def step(net: nn.Module, optimizer: torch.optim.Optimizer, batch: Examples) -> float:
    """Train on one batch and return its loss."""
    loss = nn.functional.cross_entropy(net(batch.images), batch.labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.item())


def accuracy(weights: Mapping[str, torch.Tensor], examples: Examples) -> float:
    """Return the share of examples that a network of these weights reads right."""
    net = network()
    net.load_state_dict(dict(weights))
    with torch.no_grad():
        right = net(examples.images).argmax(1) == examples.labels
    return float(right.float().mean())


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute on one thread: for layers this small, threads cost more than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def picture(records: Sequence[Record]) -> str:
    """Return images drawn with characters side by side, their labels below."""
    rows = []
    for row in range(8):
        drawn = ["".join(_shade(value) * 2 for value in each.tensor[row].tolist()) for each in records]
        rows.append(" ".join(drawn))
    rows.append(" ".join(f"{'label ' + str(each.metadata['label']):^16}" for each in records))
    return "\n".join(rows)


def _shade(value: int) -> str:
    return _SHADES[value * (len(_SHADES) - 1) // _BRIGHTEST]
