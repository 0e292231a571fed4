import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.callbacks import ModelCheckpoint
from torchvision import transforms

from cifarbn.data import Augmentation, Images, InMemoryLoader
from cifarbn.errors import UserError

SCALE = {"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}


def numbered(n: int) -> Images:
    """Return black images; image i has label i."""
    return Images(torch.zeros(n, 3, 32, 32, dtype=torch.uint8), torch.arange(n))


def labels(loader: InMemoryLoader) -> list[list[int]]:
    return [y.tolist() for _, y in loader]


# Batches


def test_a_batch_is_bit_equal_to_torchvisions_totensor_and_normalize(make_images):
    images = make_images(10)
    reference = transforms.Compose(
        [transforms.ToPILImage(), transforms.ToTensor(), transforms.Normalize(*SCALE.values())]
    )
    (x, y), *others = InMemoryLoader(images, 10, **SCALE)
    assert not others
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, torch.stack([reference(image) for image in images.pixels]))
    assert y.tolist() == list(range(10))


def test_the_augmentation_of_an_image_depends_on_its_index_and_not_on_its_batch(make_images):
    images = make_images(20)

    def epoch(batch_size: int, **options) -> torch.Tensor:
        loader = InMemoryLoader(images, batch_size, augmentation=Augmentation(), seed=3, **SCALE, **options)
        loader.sampler.set_epoch(2)
        x, y = (torch.cat(parts) for parts in zip(*loader, strict=True))
        return x[y.argsort()]

    assert torch.equal(epoch(20), epoch(3, shuffle=True))


def test_the_padding_is_black_before_normalisation():
    white = Images(torch.full((50, 3, 32, 32), 255, dtype=torch.uint8), torch.arange(50))
    (x, _), *_ = InMemoryLoader(white, 50, augmentation=Augmentation(), **SCALE)
    values = torch.tensor([[(shade - m) / s for shade in (0, 1)] for m, s in zip(*SCALE.values(), strict=True)])
    for channel in range(3):
        torch.testing.assert_close(x[:, channel].unique(), values[channel])


# Order


def test_an_epoch_is_a_permutation_and_a_pure_function_of_seed_and_epoch():
    def epoch(seed: int, epoch: int) -> list[int]:
        loader = InMemoryLoader(numbered(100), 32, shuffle=True, seed=seed, **SCALE)
        loader.sampler.set_epoch(epoch)
        return sum(labels(loader), [])

    orders = [epoch(seed, e) for seed in (0, 1) for e in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert epoch(1, 1) == orders[3]


@pytest.mark.parametrize("drop_last, sizes", [(False, [4, 4, 2]), (True, [4, 4])])
def test_the_last_batch_is_smaller_or_dropped(drop_last, sizes):
    loader = InMemoryLoader(numbered(10), 4, drop_last=drop_last, **SCALE)
    assert [len(batch) for batch in labels(loader)] == sizes
    assert len(loader) == len(sizes)


# Several ranks


@settings(deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 12), world=st.integers(1, 5), drop_last=st.booleans())
def test_ranks_divide_each_training_batch_equally(n, batch_size, world, drop_last):
    batch_size *= world
    options = {"shuffle": True, "drop_last": drop_last, **SCALE}
    if n < (batch_size if drop_last else world):
        with pytest.raises(UserError, match="give no batch"):
            InMemoryLoader(numbered(n), batch_size, world_size=world, **options)
        return
    whole = labels(InMemoryLoader(numbered(n), batch_size, **options))
    loaders = [InMemoryLoader(numbered(n), batch_size, rank=r, world_size=world, **options) for r in range(world)]
    parts = [labels(loader) for loader in loaders]
    assert len({tuple(map(len, part)) for part in parts}) == 1
    assert [len(loader) for loader in loaders] == world * [len(parts[0])]
    together = [sorted(sum(batch, [])) for batch in zip(*parts, strict=True)]
    # The ranks together have the batch of a single process; only a last batch that is not divisible is cut.
    for shared, single in zip(together, whole, strict=False):
        assert set(shared) <= set(single) and len(single) - len(shared) < world
    assert sum(map(len, whole)) - sum(map(len, together)) < world


@settings(deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 12), world=st.integers(1, 5))
def test_ranks_evaluate_every_image_once(n, batch_size, world):
    loaders = [InMemoryLoader(numbered(n), batch_size, rank=r, world_size=world, **SCALE) for r in range(world)]
    parts = [labels(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(part) for part in parts]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 and all(batch for part in parts for batch in part)
    assert sorted(label for part in parts for batch in part for label in batch) == list(range(n))


def test_a_batch_that_cannot_be_divided_among_the_ranks_is_an_error():
    with pytest.raises(UserError, match="data.batch_size .* multiple of 3, not 128"):
        InMemoryLoader(numbered(500), 128, shuffle=True, world_size=3, **SCALE)


# Resuming in the middle of an epoch


def test_after_a_resume_only_the_next_iteration_begins_in_the_middle():
    def loader() -> InMemoryLoader:
        return InMemoryLoader(numbered(20), 4, shuffle=True, **SCALE)

    whole, cut, resumed = labels(loader()), loader(), loader()
    batches = iter(cut)
    assert [next(batches)[1].tolist() for _ in range(2)] == whole[:2]
    assert cut.state_dict() == {"epoch": 0, "batches": 2}
    resumed.load_state_dict(cut.state_dict())
    assert resumed.state_dict() == cut.state_dict()
    assert labels(resumed) == whole[2:]
    assert labels(resumed) == whole


def test_a_position_in_another_epoch_does_not_apply():
    loader = InMemoryLoader(numbered(20), 4, shuffle=True, **SCALE)
    loader.load_state_dict({"epoch": 0, "batches": 5})
    loader.sampler.set_epoch(1)
    assert len(labels(loader)) == 5


class BatchLog(pl.LightningModule):
    """Records every batch it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[int, list[int], float]] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.batches.append((self.current_epoch, y.tolist(), x.sum().item()))
        return (self.weight - x.mean()) ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, images: Images, ckpt_path=None, **options) -> BatchLog:
    trainer = pl.Trainer(
        max_epochs=3,
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
        **options,
    )
    loader = InMemoryLoader(images, 4, shuffle=True, augmentation=Augmentation(), **SCALE)
    module = BatchLog()
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return module


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
@pytest.mark.parametrize("limit", [None, 3])
def test_lightning_resumes_from_any_step_with_the_remaining_batches(make_images, tmp_path, limit):
    images, options = make_images(20), {"limit_train_batches": limit} if limit else {}
    whole = fit(tmp_path / "whole", images, **options)
    steps = 3 * (limit or 5)
    assert [batch[0] for batch in whole.batches] == sorted([0, 1, 2] * (limit or 5))
    for step in range(1, steps):
        resumed = fit(tmp_path / f"{step}", images, tmp_path / "whole" / f"step={step}.ckpt", **options)
        assert resumed.batches == whole.batches[step:]
        assert resumed.weight == whole.weight
