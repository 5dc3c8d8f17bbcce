"""Rounds of a race between quantizers on the matrices of a model, in a process that stays: kept apart to be pinned."""

from __future__ import annotations

import gc
import logging
import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from measure import timed
from minilm import Model, embed, load_model
from text import documents, sentences
from torch import Tensor
from weight_coders import WeightCoder, weight_coders

from tensordb.encoding import kernels

_SLOW = 1.0
"""Seconds beyond which a quantizer is not timed again: some search for the best scale."""
Seconds = dict[str, dict[str, float]]


def quiet() -> None:
    """Keep what peers say about absent GPU kernels out of the output."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


class Race:
    """The matrices of a model, and what each quantizer makes of them."""

    def __init__(self, threads: int, rows: int) -> None:
        kernels.load()
        torch.set_num_threads(threads)
        # See coder_race.py: a busy machine does not slow the clock of what one thread computes.
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.model: Model = load_model()
        # torchao wants whole groups; the two rows of the token types have no effect on any figure.
        self.names = [name for name, each in self.model.state.items() if each.ndim == 2 and len(each) > 2]
        self.matrices = [self.model.state[name][: rows or None].clone() for name in self.names]
        self.coders, self.missing = weight_coders()
        self.stored: dict[str, list[Any]] = {}
        self.first: dict[str, float] = {}
        for name, coder in list(self.coders.items()):
            self._prepare(name, coder)
        self.out = [torch.empty_like(each) for each in self.matrices]

    def _prepare(self, name: str, coder: WeightCoder) -> None:
        """Quantize and dequantize once, so that what a peer compiles is compiled; leave out what fails."""
        try:
            made: list[Any] = []
            self.first[name] = timed(lambda: made.extend(map(coder.quantize, self.matrices)), self.clock)
            stored = [coder.store(each) for each in made]
            coder.dequantize(stored[0], torch.empty_like(self.matrices[0]))
            self.stored[name] = stored
        except Exception as error:  # a peer may fail in any way on a machine it was not made for
            self.missing.append(f"{name}: LEFT OUT, {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            del self.coders[name]

    def round(self, turn: int) -> Seconds:
        """Let each quantizer do both ways once, in an order that rotates; the first time of slow ones has to do."""
        names = list(self.coders)
        first = turn % len(names)
        order = names[first:] + names[:first]
        gc.collect()
        gc.disable()
        try:
            return {
                "quantize": {name: self._quantize(name) for name in order},
                "dequantize": {name: self._dequantize(name) for name in order},
            }
        finally:
            gc.enable()

    def _quantize(self, name: str) -> float:
        if self.first[name] > _SLOW:
            return self.first[name]
        kept: list[Any] = []
        return timed(lambda: kept.extend(map(self.coders[name].quantize, self.matrices)), self.clock)

    def _dequantize(self, name: str) -> float:
        pairs = list(zip(self.stored[name], self.out, strict=True))
        restore = self.coders[name].dequantize
        return timed(lambda: [restore(stored, out) for stored, out in pairs], self.clock)

    def accuracy(self, count: int) -> dict[str, dict[str, float]]:
        """Return bits a weight, SNR in dB and mean cosine of the embeddings of `count` sentences, by quantizer."""
        texts = sentences(documents(1), count)
        reference = embed(self.model, texts)
        return {name: self._accuracy(coder, texts, reference) for name, coder in self.coders.items()}

    def _accuracy(self, coder: WeightCoder, texts: Sequence[str], reference: Tensor) -> dict[str, float]:
        stored = self.stored[coder.name]
        rebuilt = [
            coder.dequantize(each, torch.empty_like(like)).reshape(like.shape).float()
            for each, like in zip(stored, self.matrices, strict=True)
        ]
        state = dict(self.model.state)
        for name, each in zip(self.names, rebuilt, strict=True):
            state[name] = torch.cat([each, state[name][len(each) :]])
        cosine = (embed(self.model, texts, state) * reference).sum(1).mean()
        weights = sum(each.numel() for each in self.matrices)
        return {
            "bits": 8 * sum(map(coder.nbytes, stored)) / weights,
            "snr": _snr(self.matrices, rebuilt),
            "cosine": float(cosine),
        }


def _snr(originals: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> float:
    signal = sum(float(a.double().square().sum()) for a in originals)
    noise = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(originals, rebuilt, strict=True))
    return 10 * math.log10(signal / noise) if noise else math.inf


_race: Race | None = None


def open_race(threads: int, rows: int) -> tuple[str, list[str], int]:
    """Begin a race in this process; return where the weights come from, who is left out, and the raw bytes."""
    global _race
    quiet()
    _race = Race(threads, rows)
    return _race.model.origin, _race.missing, sum(each.nbytes for each in _race.matrices)


def run_round(turn: int) -> Seconds:
    """Run one round of the race."""
    return _running().round(turn)


def accuracy(texts: int) -> dict[str, dict[str, float]]:
    """Return bits, SNR, and cosine over so many texts, by quantizer."""
    return _running().accuracy(texts)


def _running() -> Race:
    if _race is None:
        raise RuntimeError("open_race() comes first")
    return _race
