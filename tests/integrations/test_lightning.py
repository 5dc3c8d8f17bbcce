"""A Lightning trainer keeps its checkpoints in a database, and goes on from them as if nothing had happened."""

import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tensordb import CheckpointNotFoundError, InvalidInputError, MissingDependencyError, TensorStorage
from tensordb.integrations.lightning import TensorDBCheckpointIO

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Lightning's own imports
    import lightning.pytorch as pl
    import pytorch_lightning as old_pl
    from lightning.pytorch.callbacks import ModelCheckpoint

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:.*num_workers.*:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec.*:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec:FutureWarning"),
]


def network(package: Any) -> Any:
    class Network(package.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self, width: int = 8, **settings: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            torch.manual_seed(1)
            self.layers = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1))

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = nn.functional.mse_loss(self.layers(batch[0]), batch[1])
            self.log("loss", loss, on_epoch=True, on_step=False)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    return Network


Network = network(pl)


def batches() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(32, 4, generator=generator)
    return DataLoader(TensorDataset(values, values.sum(1, keepdim=True)), batch_size=8)


def trainer(folder: Path, plugin: Any, callbacks: Any = (), epochs: int = 2, package: Any = pl) -> Any:
    return package.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        plugins=[plugin],
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        barebones=False,
    )


@pytest.fixture
def db(tmp_path: Path) -> Iterator[TensorStorage]:
    with TensorStorage(tmp_path / "data.tdb") as opened:
        yield opened


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def straight(folder: Path, epochs: int) -> tuple[Any, Any]:
    model = Network()
    fitted = trainer(folder, TensorDBCheckpointIO(folder / "unused.tdb", "unused"), epochs=epochs)
    fitted.fit(model, batches())
    return model, fitted


@pytest.mark.parametrize("async_", [False, True])
def test_a_training_that_is_resumed_ends_bit_equal(db: TensorStorage, tmp_path: Path, async_: bool) -> None:
    whole, whole_trainer = straight(tmp_path, 4)
    plugin = TensorDBCheckpointIO(db, "run", async_=async_)
    keep = ModelCheckpoint(tmp_path / "ckpt", filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, plugin, [keep]).fit(Network(), batches())
    model = Network()
    resumed = trainer(tmp_path, TensorDBCheckpointIO(db, "run"), [ModelCheckpoint(tmp_path / "ckpt")], epochs=4)
    resumed.fit(model, batches(), ckpt_path=tmp_path / "ckpt" / "epoch=1.ckpt")
    assert equal(model, whole)
    assert (resumed.global_step, resumed.current_epoch) == (whole_trainer.global_step, whole_trainer.current_epoch)
    ours, theirs = resumed.optimizers[0].state_dict(), whole_trainer.optimizers[0].state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert all(
        torch.equal(ours["state"][number][key], value)
        for number, values in theirs["state"].items()
        for key, value in values.items()
    )


def test_model_checkpoint_keeps_the_best_and_removes_the_rest(db: TensorStorage, tmp_path: Path) -> None:
    keep = ModelCheckpoint(
        tmp_path / "ckpt", filename="{epoch}", monitor="loss", mode="min", save_top_k=2, save_last=True
    )
    model = Network()
    fitted = trainer(tmp_path, TensorDBCheckpointIO(db, "run"), [keep], epochs=5)
    fitted.fit(model, batches())
    paths = {each.metadata["lightning"]["path"] for each in db.checkpoints.list("run")}
    assert paths == {*keep.best_k_models, str(tmp_path / "ckpt" / "last.ckpt")}
    assert sorted(path.name for path in (tmp_path / "ckpt").iterdir()) == sorted(Path(path).name for path in paths)
    assert all(path.stat().st_size < 1000 for path in (tmp_path / "ckpt").iterdir())
    best = db.checkpoints.best("loss", "run")
    assert best.metadata["lightning"]["path"] == keep.best_model_path
    assert (best.step, best.epoch) == (20, 4)
    assert db.checkpoints.load(best, into=Network()).missing == ()
    with db, torch.no_grad():
        state = db.checkpoints.load("run")["model"]
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_the_last_and_the_best_are_found_by_lightning(db: TensorStorage, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "ckpt", filename="{epoch}", monitor="loss", save_last="link")
    trainer(tmp_path, TensorDBCheckpointIO(db, "run"), [keep]).fit(Network(), batches())
    assert (tmp_path / "ckpt" / "last.ckpt").is_symlink()
    whole, _ = straight(tmp_path, 3)
    model = Network()
    keep = ModelCheckpoint(tmp_path / "ckpt", filename="{epoch}", monitor="loss", save_last="link")
    again = trainer(tmp_path, TensorDBCheckpointIO(db, "run"), [keep], epochs=3)
    again.fit(model, batches(), ckpt_path="last")
    assert equal(model, whole)


def test_a_folder_is_opened_when_needed_and_closed_when_done(tmp_path: Path) -> None:
    plugin = TensorDBCheckpointIO(tmp_path / "data.tdb", "run", preset={"model": "lossless"})
    assert not (tmp_path / "data.tdb").exists()
    model = Network()
    fitted = trainer(tmp_path, plugin, [ModelCheckpoint(tmp_path)])
    fitted.fit(model, batches())
    fitted.save_checkpoint(tmp_path / "mine.ckpt", storage_options={"metrics": {"mine": 1}, "metadata": {"note": "a"}})
    plugin = pickle.loads(pickle.dumps(plugin))
    plugin.teardown()
    fitted.strategy.checkpoint_io.teardown()
    with TensorStorage(tmp_path / "data.tdb", read_only=True) as db:
        found = db.checkpoints.best("mine")
        assert found.metadata["note"] == "a"
        other = Network()
        db.checkpoints.load(found, into=other)
        assert equal(model, other)


def test_both_packages_of_lightning_take_the_plugin(db: TensorStorage, tmp_path: Path) -> None:
    module = network(old_pl)()
    keep = old_pl.callbacks.ModelCheckpoint(tmp_path / "ckpt", filename="last")
    fitted = trainer(tmp_path, TensorDBCheckpointIO(db, "run"), [keep], package=old_pl)
    fitted.fit(module, batches())
    again = network(old_pl)()
    keep = old_pl.callbacks.ModelCheckpoint(tmp_path / "ckpt", filename="last")
    resumed = trainer(tmp_path, TensorDBCheckpointIO(db, "run"), [keep], package=old_pl)
    resumed.fit(again, batches(), ckpt_path=db.checkpoints.get("run").id)
    assert equal(again, module)


@pytest.mark.parametrize("optimizers", [0, 1, 2])
def test_a_checkpoint_comes_back_as_lightning_made_it(db: TensorStorage, tmp_path: Path, optimizers: int) -> None:
    checkpoint = {
        "epoch": 3,
        "global_step": 9,
        "pytorch-lightning_version": "2.5",
        "state_dict": {"a": torch.ones(2)},
        "loops": {"fit_loop": {"state": ()}},
        "callbacks": {"C{'a': None}": {"best": torch.tensor(float("inf")), "path": "x"}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}] * optimizers,
        "lr_schedulers": [],
        "hyper_parameters": {"sizes": [1, 2], "name": None},
        "Data": {"seen": 5},
    }
    plugin = TensorDBCheckpointIO(db, "run")
    plugin.save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    loaded = plugin.load_checkpoint(tmp_path / "a.ckpt", map_location=lambda storage, place: storage)
    assert loaded.keys() == checkpoint.keys()
    assert str(sorted(loaded.items())) == str(sorted(checkpoint.items()))


def test_saving_at_a_path_again_replaces_and_removing_deletes(db: TensorStorage, tmp_path: Path) -> None:
    plugin = TensorDBCheckpointIO(db, "run", async_=True)
    path = tmp_path / "deep" / "last.ckpt"
    plugin.remove_checkpoint(path)
    for step in range(3):
        plugin.save_checkpoint({"state_dict": {"a": torch.full((2,), float(step))}, "global_step": step}, path)
        assert plugin.load_checkpoint(path)["global_step"] == step
    plugin.teardown()
    (only,) = db.checkpoints.list("run")
    assert only.step == 2
    (tmp_path / "deep" / "link.ckpt").symlink_to("last.ckpt")
    assert plugin.load_checkpoint(tmp_path / "deep" / "link.ckpt")["global_step"] == 2
    plugin.remove_checkpoint(tmp_path / "deep" / "link.ckpt")
    assert len(db.checkpoints.list("run")) == 1
    path.unlink()
    assert plugin.load_checkpoint(path)["global_step"] == 2
    plugin.remove_checkpoint(os.path.relpath(path))
    assert db.checkpoints.list("run") == []
    assert list((tmp_path / "deep").iterdir()) == []
    plugin.teardown()


def test_removing_leaves_files_of_others_alone(db: TensorStorage, tmp_path: Path) -> None:
    (tmp_path / "weights.ckpt").write_bytes(b"precious")
    TensorDBCheckpointIO(db, "run").remove_checkpoint(tmp_path / "weights.ckpt")
    assert (tmp_path / "weights.ckpt").read_bytes() == b"precious"


def test_a_path_without_a_checkpoint_is_not_found(db: TensorStorage, tmp_path: Path) -> None:
    plugin = TensorDBCheckpointIO(db, "run")
    with pytest.raises(CheckpointNotFoundError, match=r"missing\.ckpt"):
        plugin.load_checkpoint(tmp_path / "missing.ckpt")
    plugin.save_checkpoint({"state_dict": {}, "epoch": 1}, tmp_path / "there.ckpt")
    with pytest.raises(CheckpointNotFoundError, match=r"there\.ckpt"):
        plugin.load_checkpoint(tmp_path / "missing.ckpt")


def test_hyperparameters_that_cannot_be_stored_are_refused_by_their_path(db: TensorStorage, tmp_path: Path) -> None:
    fitted = trainer(tmp_path, TensorDBCheckpointIO(db, "run"))
    fitted.fit(Network(act=len), batches())
    with pytest.raises(InvalidInputError, match=r"state\.hyper_parameters\.act"):
        fitted.save_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


def test_storage_options_and_databases_of_other_kinds_are_refused(db: TensorStorage, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="storage_options"):
        TensorDBCheckpointIO(db, "run").save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"other": 1})
    with pytest.raises(InvalidInputError, match="TensorStorage or a path"):
        TensorDBCheckpointIO(3, "run")  # type: ignore[arg-type]


def test_without_lightning_the_extra_is_named(db: TensorStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning_fabric"):
        for module in [each for each in sys.modules if each.partition(".")[0] == name]:
            monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"tensordb\[lightning\]"):
        TensorDBCheckpointIO(db, "run")
