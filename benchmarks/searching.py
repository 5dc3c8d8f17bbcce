"""How fast are the nearest vectors found exactly, next to NumPy, FAISS and Lance, and are they the right ones?

100,000 vectors of 384 float32: MiniLM's token embeddings, repeated with noise. All competitors run in one process that
may use a single core, take turns, and are asked the same. NumPy and FAISS hold all vectors in memory and return row
numbers; tensordb and Lance read a folder, and tensordb returns records. Recall is counted against float64. Warm: each
is asked once, untimed, before it is timed; after a pause of some seconds tensordb opens its catalog anew, which costs
the first search as much again and more.

Run `python benchmarks/searching.py`; with `--size tiny` it only checks that every competitor finds the right ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from data import embedding_rows, load_weights
from measure import timed
from pinned import pinned
from report import format_number, format_table, machine
from verdicts import Verdict, format_verdicts

K = 10
SIZES = {"tiny": (2_000, 3), "full": (100_000, 15)}
STACK = 32
_ALL, _TENTH = "one query", "one query, among a tenth"
CASES = (_ALL, f"a query of {STACK} at once", _TENTH)

Search = Callable[[np.ndarray, str], np.ndarray]


def main() -> None:
    """Measure on one core, print, and optionally record."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="tensordb-benchmark-", dir=options.folder) as folder, pinned(1) as process:
        result = process.submit(measure, Path(folder), options.size).result()
    print(f"data: {result['data']}\nmachine: {', '.join(f'{name} {value}' for name, value in machine().items())}")
    for title, unit in (("wall", "ms a query by the wall clock"), ("processor", "ms a query of processor time")):
        lines = [[name, *map(format_number, row)] for name, row in result[title].items()]
        print(f"\n{unit}\n{format_table([['', *CASES], *lines])}")
    lines = [[name, *(f"{each:.4f}" for each in row)] for name, row in result["recall"].items()]
    print(f"\nrecall of the {K} nearest\n{format_table([['', *CASES], *lines])}")
    for name, seconds in result["first"].items():
        print(f"{name}: first search after opening {seconds * 1e3:.0f} ms of processor time")
    if options.size == "full":
        print(f"\n{format_verdicts(_verdicts(result))}")
    else:
        print("tiny: everybody found the right ones; the figures above mean nothing")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")


def measure(folder: Path, size: str) -> dict[str, Any]:
    """Fill every competitor and let them take turns; runs in the process of one core."""
    torch.set_num_threads(1)
    count, rounds = SIZES[size]
    weights = load_weights()
    generator = torch.Generator().manual_seed(0)
    vectors = embedding_rows(weights, count)
    vectors += torch.randn(vectors.shape, generator=generator) * vectors.std() / 4
    noise = torch.randn(rounds * STACK, vectors.shape[1], generator=generator) * vectors.std() / 2
    queries = (vectors[torch.randint(count, (rounds * STACK,), generator=generator)] + noise).numpy()
    right = _Truth(vectors.numpy())
    first: dict[str, float] = {}
    searches: dict[str, Search] = {
        "tensordb lossless": _tensordb(folder / "lossless", "lossless", vectors, queries[0], first),
        "tensordb none": _tensordb(folder / "none", "none", vectors, queries[0], first),
        "numpy": _numpy(vectors.numpy()),
        "faiss": _faiss(vectors.numpy()),
        "lance": _lance(folder / "lance", vectors),
    }
    samples = {name: {case: ([], [], []) for case in CASES} for name in searches}
    for turn in range(-1, rounds):
        names = list(searches)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for case in CASES:
                asked = queries[max(turn, 0) * STACK :][: STACK if case == CASES[1] else 1]
                wall, processor, recall = _once(searches[name], asked, case, right)
                if turn >= 0:
                    for values, value in zip(samples[name][case], (wall, processor, recall), strict=True):
                        values.append(value)
    tables = [
        {name: [median(each[case][kind]) for case in CASES] for name, each in samples.items()} for kind in range(2)
    ]
    recall = {name: [float(np.mean(each[case][2])) for case in CASES] for name, each in samples.items()}
    assert all(value == 1.0 for name, row in recall.items() for value in row if name.startswith("tensordb")), recall
    ratios = [
        ours / theirs
        for ours, theirs in zip(samples["tensordb lossless"][_ALL][1], samples["numpy"][_ALL][1], strict=True)
    ]
    return {
        "data": f"{weights.origin}, {count:,} x {vectors.shape[1]} float32",
        "wall": tables[0],
        "processor": tables[1],
        "recall": recall,
        "first": first,
        "against numpy": median(ratios),
    }


class _Truth:
    """The right answers, in float64."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors
        self._norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        self._scores: dict[tuple[bytes, int], np.ndarray] = {}

    def recall(self, found: np.ndarray, query: np.ndarray, case: str) -> float:
        """Return which share of the nearest was found; equally near ones count alike."""
        step = 10 if case == _TENTH else 1
        key = query.tobytes(), step
        if key not in self._scores:
            parts = np.array_split(self._vectors[::step], 50)
            products = np.concatenate([part.astype(np.float64) @ query for part in parts])
            self._scores[key] = products / self._norms[::step]
        scores = self._scores[key]
        least = np.partition(scores, len(scores) - K)[len(scores) - K]
        assert len(set(found.tolist())) == K, found
        assert (found % step == 0).all(), found
        return float((scores[found // step] >= least - 1e-12).mean())


def _once(search: Search, asked: np.ndarray, case: str, right: _Truth) -> tuple[float, float, float]:
    found: list[np.ndarray] = []
    search(asked[:1], case)  # others had their turn: warm is what is asked again
    begin = time.process_time()
    seconds = timed(lambda: found.append(search(asked, case)))
    processor = time.process_time() - begin
    recalls = [right.recall(row, query, case) for row, query in zip(found[0][:2], asked[:2], strict=True)]
    return seconds / len(asked) * 1e3, processor / len(asked) * 1e3, float(np.mean(recalls))


def _tensordb(path: Path, preset: str, vectors: torch.Tensor, query: np.ndarray, first: dict[str, float]) -> Search:
    from tensordb import TensorStorage

    with TensorStorage(path, compression_preset=preset) as db:
        db.create_dataset("vectors")
        db.insert_many("vectors", vectors, [{"row": row, "tenth": row % 10} for row in range(len(vectors))])
        db.search("vectors", query, K)  # loads what any first search in a process loads
    db = TensorStorage(path)
    first[f"tensordb {preset}"] = timed(lambda: db.search("vectors", query, K), time.process_time)

    def search(asked: np.ndarray, case: str) -> np.ndarray:
        found = db.search("vectors", asked, K, where="metadata.tenth = 0" if case == _TENTH else None)
        return np.array([[hit.record.metadata["row"] for hit in each] for each in found])

    return search


def _numpy(vectors: np.ndarray) -> Search:
    inverses = 1 / np.linalg.norm(vectors, axis=1)
    tenth, tenth_inverses = vectors[::10].copy(), inverses[::10]

    def search(asked: np.ndarray, case: str) -> np.ndarray:
        rows, scale = (tenth, tenth_inverses) if case == _TENTH else (vectors, inverses)
        scores = (rows @ asked[0] * scale)[None] if len(asked) == 1 else asked @ rows.T * scale
        best = np.argpartition(scores, len(rows) - K, axis=1)[:, -K:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1) * (10 if case == _TENTH else 1)

    return search


def _faiss(vectors: np.ndarray) -> Search:
    import faiss

    faiss.omp_set_num_threads(1)
    scaled = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    whole, tenth = faiss.IndexFlatIP(vectors.shape[1]), faiss.IndexFlatIP(vectors.shape[1])
    whole.add(scaled)
    tenth.add(np.ascontiguousarray(scaled[::10]))

    def search(asked: np.ndarray, case: str) -> np.ndarray:
        return tenth.search(asked, K)[1] * 10 if case == _TENTH else whole.search(asked, K)[1]

    return search


def _lance(path: Path, vectors: torch.Tensor) -> Search:
    import lance
    import pyarrow as pa

    rows = pa.array(range(len(vectors)))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().reshape(-1)), vectors.shape[1])
    table = pa.table({"row": rows, "tenth": pa.array(np.arange(len(vectors)) % 10), "vector": column})
    dataset = lance.write_dataset(table, str(path))

    def search(asked: np.ndarray, case: str) -> np.ndarray:
        found = []
        for query in asked:
            nearest = {"column": "vector", "q": query, "k": K, "metric": "cosine", "use_index": False}
            condition = {"filter": "tenth = 0", "prefilter": True} if case == _TENTH else {}
            found.append(dataset.to_table(columns=["row", "_distance"], nearest=nearest, **condition)["row"].to_numpy())
        return np.stack(found)

    return search


def _verdicts(result: dict[str, Any]) -> list[Verdict]:
    recall = min(value for name, row in result["recall"].items() for value in row if name.startswith("tensordb"))
    return [
        Verdict("ms a query, warm, one core", 25.0, result["processor"]["tensordb lossless"][0], at_least=False),
        Verdict("recall", 1.0, recall),
        Verdict("times NumPy in memory", 2.0, result["against numpy"], at_least=False),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record the result")
    parser.add_argument("--folder", type=Path, help="where to put the stores")
    return parser.parse_args()


if __name__ == "__main__":
    main()
