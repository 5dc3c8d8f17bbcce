"""Streams: every record once, whoever shares them, in an order that seed and epoch decide, from any place on."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tensordb import InvalidInputError, TensorDataset, TensorStorage
from tensordb.feeding.schedule import Batched, InOrder, Shard, Shuffled, Units

from .conftest import COUNT, rows

EVEN: list[Any] = [None, "drop", "pad"]


def numbers(stream: Any) -> list[int]:
    """Return the field `n` of what a stream over it yields."""
    return [int(n) for each in stream for n in torch.as_tensor(each).reshape(-1)]


@pytest.fixture
def data(shared: TensorStorage) -> TensorDataset:
    return shared.dataset("d", columns="n")


@pytest.mark.parametrize("batch_size", [None, 1, 7, 64, COUNT, 5000])
def test_every_record_comes_once_with_its_columns(shared: TensorStorage, batch_size: int | None, loops: str) -> None:
    data, made = shared.dataset("d", columns=("tensor", "n", "text")), rows()
    shuffles: list[Any] = [False, True] if batch_size is None else [False, True, "batches"]
    for shuffle, buffer in itertools.product(shuffles, (1, 50_000, 1 << 30)):
        seen = []
        for tensor, number, text in data.stream(batch_size=batch_size, shuffle=shuffle, seed=3, buffer=buffer):
            shaped = tensor if batch_size else tensor[None]
            wanted = number.tolist() if batch_size else [number]
            assert shaped.equal(made[wanted])
            assert (text if batch_size else [text]) == [f"t{n}" for n in wanted]
            assert len(wanted) == min(batch_size or 1, COUNT - len(seen))
            seen += wanted
        assert sorted(seen) == list(range(COUNT))
        assert (seen == list(range(COUNT))) is (not shuffle)


def test_batches_are_the_callers_own(shared: TensorStorage, loops: str) -> None:
    stream = shared.dataset("d").stream(batch_size=32, shuffle=True, seed=0, buffer=100_000)
    expected = [batch.clone() for batch in stream]
    kept = []
    for batch in stream:
        kept.append(batch)
        batch.add_(0)
    assert all(map(torch.equal, kept, expected))
    for batch in kept:
        batch.zero_()
    assert all(map(torch.equal, stream, expected))


@pytest.mark.parametrize("shuffle", [True, "batches"])
def test_seed_and_epoch_decide_the_order(data: TensorDataset, shuffle: Any) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        stream = data.stream(shuffle=shuffle, seed=seed, batch_size=10)
        stream.set_epoch(epoch)
        return numbers(stream)

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed, epoch in itertools.product((0, 1), repeat=2)}) == 4
    anew = data.stream(shuffle=shuffle, batch_size=10)
    assert numbers(anew) != numbers(anew)
    torch.manual_seed(5)
    one = numbers(anew)
    torch.manual_seed(5)
    assert numbers(anew) == one


def test_a_shuffle_mixes_pages_and_the_records_of_several(data: TensorDataset) -> None:
    order = np.array(numbers(data.stream(shuffle=True, seed=0, batch_size=50)))
    # Neighbours in the order are hardly ever neighbours in the dataset, and a batch has records of many pages.
    assert (np.abs(np.diff(order)) == 1).mean() < 0.05
    assert min(len(set(batch // 85)) for batch in order.reshape(-1, 50)) > 4
    assert abs(np.corrcoef(order, np.arange(COUNT))[0, 1]) < 0.2


def test_shuffled_batches_are_runs_of_adjacent_records_in_random_order(data: TensorDataset) -> None:
    stream = data.stream(shuffle="batches", seed=0, batch_size=50)
    batches = [batch.numpy() for batch in stream]
    assert all((np.diff(batch) % COUNT == 1).all() for batch in batches)
    firsts = [int(batch[0]) for batch in batches]
    assert firsts != sorted(firsts)
    stream.set_epoch(1)  # other records come together
    assert not {int(batch[0]) for batch in stream} & set(firsts)
    short = list(data.stream(shuffle="batches", seed=0, batch_size=64))
    assert [len(batch) for batch in short] == [64] * 9 + [COUNT - 9 * 64]
    dropped = [list(data.stream(shuffle="batches", seed=n, batch_size=64, drop_last=True)) for n in (0, 1)]
    assert [[len(batch) for batch in each] for each in dropped] == [[64] * 9] * 2
    assert set(numbers(dropped[0])) != set(numbers(dropped[1]))  # not the same are left out each time


def test_only_the_last_batches_of_a_rank_are_made_of_the_rests_that_cuts_leave() -> None:
    units = Units(None, np.array([0, 1000]), np.array([10]))
    for rank, seed in itertools.product(range(3), range(5)):
        made = Batched(units, Shard(rank, 3), 16, False, None, seed, 0, 10.0, 1000)
        blocks = [made.block(number) for number in range(len(made.starts) - 1)]
        records = np.concatenate([block.positions for block in blocks])
        torn = [at // 16 for at in range(0, len(records), 16) if (np.diff(records[at : at + 16]) % 1000 != 1).any()]
        assert torn == list(range(len(records) // 16 + 1))[len(records) // 16 + 1 - len(torn) :]
        assert len(torn) <= 2


def test_shuffled_batches_follow_how_records_are_stored(shared: TensorStorage) -> None:
    data = shared.dataset("d", "metadata.n < 595", columns="n", order_by="metadata.label")
    batches = list(data.stream(shuffle="batches", seed=3, batch_size=85))
    # Pages of 85: a batch has records of two of them at most, or three where the ring is closed.
    assert all(len(set((batch // 85).tolist())) <= 3 for batch in batches)


@pytest.mark.parametrize("shuffle", [False, True, "batches"])
@pytest.mark.parametrize("even", EVEN)
@pytest.mark.parametrize("world_size", [1, 3, 7])
def test_ranks_share_the_records_without_overlap_or_loss(
    data: TensorDataset, shuffle: Any, even: Any, world_size: int
) -> None:
    shares = []
    for rank in range(world_size):
        stream = data.stream(
            shuffle=shuffle, seed=0, batch_size=16, even=even, rank=rank, world_size=world_size, buffer=60_000
        )
        batches = list(stream)
        assert len(batches) == len(stream)
        shares.append(numbers(batches))
    together = list(itertools.chain(*shares))
    if even is not None:
        assert len(set(map(len, shares))) == 1
        assert len(shares[0]) == (COUNT // world_size if even == "drop" else -(-COUNT // world_size))
    assert len(set(together)) == (COUNT // world_size * world_size if even == "drop" else COUNT)
    assert len(together) - len(set(together)) == (-COUNT % world_size if even == "pad" else 0)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 9])
@pytest.mark.parametrize("kind", ["in order", "shuffled", "batches"])
def test_ranks_and_workers_share_any_number_of_records(kind: str, batch: int, drop_last: bool) -> None:
    generator = np.random.default_rng(0)
    for total in [0, 1, 2, 5, 36, 100]:
        sizes = generator.multinomial(total, np.full(6, 1 / 6)) if total else np.zeros(0, int)
        sizes = sizes[sizes > 0]
        units = Units(None, np.concatenate([[0], np.cumsum(sizes)]).astype(int), np.full(len(sizes), 10))
        for ranks, workers, even in itertools.product((1, 2, 3), (1, 2, 5), EVEN):
            seen, batches = [], 0
            for rank, worker in itertools.product(range(ranks), range(workers)):
                shard = Shard(rank, ranks, worker, workers)
                options = (shard, batch, drop_last, even)
                made: Any
                if kind == "in order":
                    made = InOrder(total, *options, 10.0, 200)
                elif kind == "shuffled":
                    made = Shuffled(units, *options, 1, 2, 200)
                else:
                    made = Batched(units, *options, 1, 2, 10.0, 200)
                blocks = [made.block(n) for n in range(len(made.starts) - 1)]
                mine = [n for b in blocks for n in b.picked(0, len(b.positions)).tolist()]
                assert np.diff(made.starts).tolist() == [len(b.positions) for b in blocks]
                assert len(mine) == made.starts[-1]
                batches += -(-len(mine) // batch)
                seen += mine
            size = {"drop": total // ranks, "pad": -(-total // ranks)}.get(even)
            shares = [(r + 1) * total // ranks - r * total // ranks if size is None else size for r in range(ranks)]
            kept = [share // batch * batch if drop_last else share for share in shares]
            assert len(seen) == sum(kept)
            assert batches == sum(-(-share // batch) for share in kept)
            if even != "pad":
                assert len(set(seen)) == len(seen)
            elif not drop_last:
                assert set(seen) == set(range(total))


def test_shuffling_opens_each_page_once_however_many_share_it() -> None:
    sizes = np.random.default_rng(0).integers(50, 90, 40)
    units = Units(None, np.concatenate([[0], np.cumsum(sizes)]), np.full(40, 1000))
    opened: list[int] = []
    shards = [Shard(rank, 2, worker, 2) for rank in range(2) for worker in range(2)]
    for shard in shards:
        schedule = Shuffled(units, shard, 16, False, None, 0, 0, 300_000)
        for number in range(len(schedule.starts) - 1):
            positions = schedule.block(number).positions
            opened += np.unique(np.searchsorted(units.starts, positions, "right")).tolist()
    assert len(opened) - len(set(opened)) < len(shards)  # but for pages that a cut goes through


@pytest.mark.parametrize(
    ("shuffle", "batch_size"), [(False, None), (False, 32), (True, None), (True, 32), ("batches", 32)]
)
def test_a_state_resumes_exactly_anywhere(data: TensorDataset, shuffle: Any, batch_size: int | None) -> None:
    def stream() -> Any:
        return data.stream(shuffle=shuffle, batch_size=batch_size, buffer=80_000)

    first = stream()
    begun = iter(first)
    whole: list[Any] = []
    states = [first.state_dict()]
    for each in begun:
        whole.append(each)
        states.append(first.state_dict())
    for taken in [*range(0, len(whole), max(1, len(whole) // 7)), len(whole) - 1]:
        again = stream()
        again.load_state_dict(states[taken])
        if taken:
            assert numbers(again) == numbers(whole[taken:])
            # The epoch after begins at its own beginning.
            assert len(numbers(again)) == COUNT
    assert first.state_dict() == {}  # nothing is left of it
    again = stream()
    again.load_state_dict(states[-1])
    assert len(numbers(again)) == COUNT


def test_resuming_reads_nothing_of_what_came_before(tmp_path: Any) -> None:
    with TensorStorage(tmp_path / "data.tdb", compression_preset="none") as db:
        db.create_dataset("d")
        for n in range(40):
            db.insert_many("d", torch.full((20, 2000), float(n)) + torch.rand(20, 2000))
        data = db.dataset("d")
        stream = data.stream(shuffle=True, seed=0, batch_size=20, buffer=1)
        begun = iter(stream)
        seen = [next(begun) for _ in range(30)]
        state = stream.state_dict()
        rest = list(begun)
        (segment,) = (tmp_path / "data.tdb" / "segments").iterdir()
        content = bytearray(segment.read_bytes())
        size = 20 * 2000 * 4
        gone = {int(batch[0, 0]) for batch in seen}
        for n in gone:  # damage what was read before: nothing may look at it
            place = len(content) * n // 40 + size // 3
            content[place] ^= 0xFF
        segment.write_bytes(content)
        again = data.stream(shuffle=True, seed=0, batch_size=20, buffer=1)
        again.load_state_dict(state)
        assert all(map(torch.equal, again, rest))


def test_a_state_of_another_stream_is_refused(data: TensorDataset) -> None:
    stream = data.stream(shuffle=True, seed=0, batch_size=32)
    next(iter(stream))
    state = stream.state_dict()
    with pytest.raises(InvalidInputError, match="batch_size"):
        data.stream(shuffle=True, seed=0, batch_size=16).load_state_dict(state)
    with pytest.raises(InvalidInputError, match="world_size"):
        data.stream(shuffle=True, seed=0, batch_size=32, rank=0, world_size=2).load_state_dict(state)
    with pytest.raises(InvalidInputError, match="no state of a stream"):
        stream.load_state_dict({"step": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"seed": -1}, "seed is -1"),
        ({"buffer": 0}, "buffer is 0"),
        ({"shuffle": 1}, "shuffle is 1"),
        ({"shuffle": "pages"}, "shuffle is 'pages'; it is True, False or 'batches'"),
        ({"shuffle": "batches"}, "give batch_size="),
        ({"shuffle": "batches", "batch_size": 4, "rank": 0, "world_size": 2}, "needs a seed"),
        ({"mixed": "pda"}, "mixed is 'pda'"),
        ({"even": "yes"}, "even is 'yes'"),
        ({"rank": 0}, "give both"),
        ({"rank": 2, "world_size": 2}, "less than world_size"),
        ({"shuffle": True, "rank": 0, "world_size": 2}, "needs a seed"),
        ({"drop_last": True}, "give batch_size="),
    ],
)
def test_options_that_cannot_be_are_refused(data: TensorDataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        data.stream(**options)


def shapes(batch: Any) -> Sequence[Any]:
    return [tuple(each.shape) for each in batch]


def test_records_of_different_shapes_are_padded_nested_or_listed_or_refused(tmp_path: Any) -> None:
    with TensorStorage(tmp_path / "data.tdb") as db:
        db.create_dataset("d")
        stored = [torch.full((1 + n % 3, 4), float(n)) for n in range(40)]
        db.insert_many("d", stored, [{"n": n} for n in range(40)])
        data = db.dataset("d", columns=("tensor", "n"))
        with pytest.raises(InvalidInputError, match="mixed='pad'"):
            list(data.stream(batch_size=10))
        for shuffle in (False, True, "batches"):
            options: dict[str, Any] = {"batch_size": 8, "shuffle": shuffle, "seed": 0, "buffer": 200}
            for tensor, n in data.stream(mixed="list", **options):
                assert all(each.equal(stored[number]) for each, number in zip(tensor, n.tolist(), strict=True))
            for tensor, n in data.stream(mixed="pad", **options):
                assert tensor.shape[::2] == (8, 4)
                assert tensor.sum().item() == sum(stored[number].sum().item() for number in n.tolist())
            for tensor, n in data.stream(mixed="nested", **options):
                assert all(each.equal(stored[number]) for each, number in zip(tensor.unbind(), n.tolist(), strict=True))
        assert sorted(n for _, n in data.stream(shuffle=True)) == list(range(40))
        batch = next(iter(data.stream(batch_size=2, mixed="list")))
        assert shapes(batch[0]) == [(1, 4), (2, 4)]


def test_large_records_come_as_objects_of_their_own(tmp_path: Any) -> None:
    with TensorStorage(tmp_path / "data.tdb") as db:
        db.create_dataset("d")
        stored = torch.randn(12, 60_000)
        db.insert_many("d", stored, [{"n": n} for n in range(12)])
        shuffles: list[Any] = [False, True, "batches"]
        for shuffle, buffer in itertools.product(shuffles, (1, 1 << 20)):  # a batch may have records of many blocks
            stream = db.dataset("d", columns=("tensor", "n")).stream(
                batch_size=5, shuffle=shuffle, seed=0, buffer=buffer
            )
            seen = []
            for batch, n in stream:
                assert batch.equal(stored[n])
                seen += n.tolist()
            assert sorted(seen) == list(range(12))
        assert all(item.untyped_storage().nbytes() <= 256 << 10 for item in db.dataset("d").stream())


PRESETS = ["none", "fast", "lossless", "archive", "int8_only", "balanced"]
COLUMNS = ("tensor", "n")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TensorStorage, dict[str, torch.Tensor]]]:
    """A database with pages of every kind of values under every preset, and what their records are one by one."""
    images = torch.randint(0, 256, (90, 3, 20, 20), dtype=torch.uint8).float().cumsum(-1).to(torch.uint8)
    stacks = {
        "float32": torch.randn(90, 300),
        "bfloat16": torch.randn(90, 300).bfloat16(),
        "float64": torch.randn(90, 300, dtype=torch.float64),
        "images": images,
        "equal": torch.zeros(90, 300),
        "sparse": torch.randn(90, 300) * (torch.rand(90, 300) < 0.1),
        "counts": torch.randint(0, 9, (90, 300)),
    }
    expected = {}
    with TensorStorage(tmp_path_factory.mktemp("pages") / "data.tdb") as db:
        for preset, (name, stack) in itertools.product(PRESETS, stacks.items()):
            db.set_compression_preset(preset)
            where = f"{preset}-{name}"
            db.create_dataset(where)
            db.insert_many(where, stack, [{"n": n} for n in range(90)])
            data = db.dataset(where, columns=COLUMNS)
            expected[where] = torch.stack([data[n][0] for n in range(90)])
        yield db, expected


def test_pages_stored_in_any_way_come_in_shuffled_batches(
    pages: tuple[TensorStorage, dict[str, torch.Tensor]], loops: str
) -> None:
    db, expected = pages
    for (where, tensors), shuffle in itertools.product(expected.items(), (True, "batches")):
        data = db.dataset(where, columns=COLUMNS)
        for batch, n in data.stream(batch_size=40, shuffle=shuffle, seed=0):  # type: ignore[arg-type]
            assert torch.equal(batch, tensors[n])


def test_a_part_of_the_records_reads_a_part_of_the_pages(shared: TensorStorage, loops: str) -> None:
    data = shared.dataset("d", "metadata.label = 2", columns=("tensor", "n"), order_by="random()")
    for shuffle in (False, True, "batches"):
        seen = []
        for batch, n in data.stream(batch_size=9, shuffle=shuffle, seed=0):
            assert batch.equal(rows()[n])
            seen += n.tolist()
        assert sorted(seen) == [n for n in range(COUNT) if n % 7 == 2]
