"""An epoch shows every image, within the token budget, and is the same every time it is asked."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_training.loop.data import LatentDataset
from fit_training.preparation.latent_shards import INDEX, read_index, read_shard, shard_name
from support.toy_latents import CLASS_NAMES, FEATURE_CHANNELS, IMAGES, write_toy_latents


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def data(folder: Path) -> LatentDataset:
    return LatentDataset(folder)


def counts(data: LatentDataset, plan: list[np.ndarray]) -> np.ndarray:
    """How often every image of the folder is drawn."""
    return np.bincount(np.concatenate(plan), minlength=len(IMAGES))


def test_a_batch_is_its_images_end_to_end(folder: Path, data: LatentDataset):
    shards = [read_shard(folder, row) for row in read_index(folder)["shards"]]
    stored, features = (torch.cat([s[k] for s in shards]).float() for k in ("tokens", "features"))
    starts = np.cumsum([0] + [h * w for _, h, w in IMAGES]).tolist()
    images = np.array([20, 3, 3, 11])
    batch = data.batch(images)
    assert batch.grids == tuple(IMAGES[i][1:] for i in images)
    assert batch.labels.tolist() == [IMAGES[i][0] for i in images]
    rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in images])
    assert torch.equal(batch.features, features[rows])
    raw = batch.tokens / data.latent_scale + data.latent_shift
    torch.testing.assert_close(raw, stored[rows], atol=1e-5, rtol=0.0)
    assert batch.features.shape == (len(batch.tokens), FEATURE_CHANNELS)


def test_normalised_latents_have_mean_0_and_deviation_1(data: LatentDataset):
    tokens = data.batch(np.arange(len(IMAGES))).tokens
    assert tokens.mean().item() == pytest.approx(0.0, abs=1e-3)  # stored in float16
    assert tokens.std(correction=0).item() == pytest.approx(1.0, abs=1e-3)


def test_validation_is_seen_through_the_normalisation_of_training(
    data: LatentDataset, tmp_path: Path
):
    other = LatentDataset(write_toy_latents(tmp_path, [(3, 1, 1)] * 3, num_shards=1))
    assert other.latent_shift != data.latent_shift
    other.use_normalisation_of(data)
    assert (other.latent_shift, other.latent_scale) == (data.latent_shift, data.latent_scale)


@pytest.mark.parametrize("class_balance", [0.0, 0.5, 1.0])
def test_within_a_class_every_image_comes_equally_often(data: LatentDataset, class_balance: float):
    labels = np.array([label for label, _, _ in IMAGES])
    for epoch in range(5):
        drawn = counts(data, data.epoch(30, class_balance, 0, epoch))
        for label in range(len(CLASS_NAMES)):
            of_class = drawn[labels == label]
            assert of_class.max() - of_class.min() <= 1


def test_at_balance_1_an_epoch_is_every_image_once(data: LatentDataset):
    for epoch in range(5):
        assert (counts(data, data.epoch(30, 1.0, 0, epoch)) == 1).all()


# (label, images) of photographs: FiT's rule makes four of a large one and two of a small one.
PHOTOGRAPHS = ((0, 4), (0, 2), (0, 2), (0, 4), (0, 2), (1, 2), (1, 4), (2, 4), (3, 2))


def write_photographs(folder: Path, photographs: Sequence[tuple[int, int]]) -> LatentDataset:
    """Photograph by photograph within a variant, variant by variant, as `prepare` does it."""
    made = [
        (photo, label)
        for variant in range(4)
        for photo, (label, images) in enumerate(photographs)
        if variant < images
    ]
    images = [(label, 1 + photo % 2, 2) for photo, label in made]
    photos = [photo for photo, _ in made]
    return LatentDataset(write_toy_latents(folder, images, photos=photos, num_shards=3))


def draws_by_photograph(
    data: LatentDataset, photographs: Sequence[tuple[int, int]], balance: float, epoch: int
) -> list[np.ndarray]:
    """How often each image of each photograph is drawn."""
    drawn = np.bincount(np.concatenate(data.epoch(30, balance, 0, epoch)), minlength=len(data))
    photos = np.array([p for v in range(4) for p, (_, n) in enumerate(photographs) if v < n])
    return [drawn[photos == photo] for photo in range(len(photographs))]


@pytest.mark.parametrize("class_balance", [0.0, 0.5, 1.0])
def test_a_photograph_weighs_the_same_whether_it_became_two_images_or_four(
    tmp_path: Path, class_balance: float
):
    data = write_photographs(tmp_path, PHOTOGRAPHS)
    for epoch in range(10):
        drawn = draws_by_photograph(data, PHOTOGRAPHS, class_balance, epoch)
        for images in drawn:  # within a photograph its images take turns
            assert images.max() - images.min() <= 1
        for label in range(len(CLASS_NAMES)):
            pairs = zip(drawn, PHOTOGRAPHS, strict=True)
            of_class = [images.sum() for images, (own, _) in pairs if own == label]
            assert max(of_class) - min(of_class) <= 1


def test_large_photographs_change_neither_the_epochs_length_nor_the_classes_shares(tmp_path: Path):
    data = write_photographs(tmp_path, PHOTOGRAPHS)
    per_label = np.bincount([label for label, _ in PHOTOGRAPHS])
    wanted = per_label / per_label.sum() * len(data)
    for epoch in range(10):
        drawn = draws_by_photograph(data, PHOTOGRAPHS, 1.0, epoch)
        labels = [label for label, _ in PHOTOGRAPHS]
        found = np.bincount(labels, weights=[images.sum() for images in drawn])
        assert (np.abs(found - wanted) <= 1.0).all()


def test_over_many_epochs_a_photographs_images_come_evenly(tmp_path: Path):
    data = write_photographs(tmp_path, PHOTOGRAPHS)
    plans = [draws_by_photograph(data, PHOTOGRAPHS, 1.0, epoch) for epoch in range(300)]
    for photo in range(len(PHOTOGRAPHS)):
        drawn = np.sum([plan[photo] for plan in plans], axis=0)
        np.testing.assert_allclose(drawn / drawn.mean(), 1.0, atol=0.1)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5))
def test_where_all_photographs_became_as_many_images_every_image_comes_equally_often(
    tmp_path_factory: pytest.TempPathFactory, variants: int, class_balance: float, epoch: int
):
    photographs = [(label, variants) for label in (0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 3)]
    data = write_photographs(tmp_path_factory.mktemp("latents"), photographs)
    drawn = draws_by_photograph(data, photographs, class_balance, epoch)
    for label in range(len(CLASS_NAMES)):
        pairs = zip(drawn, photographs, strict=True)
        of_class = np.concatenate([images for images, (own, _) in pairs if own == label])
        assert of_class.max() - of_class.min() <= 1
    if class_balance == 1.0:
        assert (np.concatenate(drawn) == 1).all()


@pytest.mark.parametrize("class_balance", [0.0, 0.5])
def test_draws_of_a_class_go_with_its_size_to_the_power_of_the_balance(
    data: LatentDataset, class_balance: float
):
    labels = np.array([label for label, _, _ in IMAGES])
    weights = np.bincount(labels) ** class_balance
    wanted = weights / weights.sum() * len(IMAGES)
    drawn = [counts(data, data.epoch(30, class_balance, 0, e)) for e in range(200)]
    per_class = np.stack([np.bincount(labels, weights=d) for d in drawn])
    assert (np.abs(per_class - wanted) <= 1.0).all()  # each epoch rounds a share up or down
    # Rounded at random, not always the same way: 200 draws have a standard error below 0.04.
    np.testing.assert_allclose(per_class.mean(axis=0), wanted, atol=0.15)


def test_over_many_epochs_no_image_is_left_out(data: LatentDataset):
    drawn = sum(counts(data, data.epoch(30, 0.0, 0, e)) for e in range(30))
    assert (np.asarray(drawn) > 0).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 120), st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_batch_keeps_the_token_budget_or_is_one_image(
    data: LatentDataset, tokens_per_batch: int, epoch: int, class_balance: float
):
    plan = data.epoch(tokens_per_batch, class_balance, 7, epoch)
    for images in plan:
        assert len(images) == 1 or data.lengths[images].sum() <= tokens_per_batch


def test_a_large_budget_is_used(data: LatentDataset):
    total = sum(h * w for _, h, w in IMAGES)
    assert len(data.epoch(total, 1.0, 0, 0)) == 1
    assert len(data.epoch(total // 4, 1.0, 0, 0)) <= 8


def test_equal_images_lie_together_so_that_attention_runs_them_at_once(tmp_path: Path):
    data = LatentDataset(write_toy_latents(tmp_path, [(0, 2, 2), (1, 3, 3)] * 16))
    (images,) = data.epoch(10_000, 1.0, 0, 0)
    changes = np.count_nonzero(np.diff(data.lengths[images]))
    assert changes <= 3  # four chunks of eight


def test_an_epoch_is_a_function_of_seed_and_number(folder: Path, data: LatentDataset):
    again = LatentDataset(folder)
    plans = {
        (seed, epoch): [batch.tolist() for batch in data.epoch(25, 0.5, seed, epoch)]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    for (seed, epoch), plan in plans.items():
        assert [batch.tolist() for batch in again.epoch(25, 0.5, seed, epoch)] == plan
    assert len({str(plan) for plan in plans.values()}) == 4


def test_chosen_classes_are_labelled_in_the_order_asked_for(folder: Path):
    data = LatentDataset(folder, ["dog", "ant"])
    assert (data.class_names, len(data)) == (("dog", "ant"), 14)
    plan = data.epoch(40, 1.0, 0, 0)
    drawn = np.concatenate(plan)
    assert {IMAGES[i][0] for i in drawn} == {0, 3}
    labels = torch.cat([data.batch(images).labels for images in plan])
    assert [("dog", "ant")[y] for y in labels] == [CLASS_NAMES[IMAGES[i][0]] for i in drawn]


def test_a_class_that_was_not_prepared_is_refused(folder: Path):
    with pytest.raises(ValueError, match=r"classes \['cow'\] are not in .*; it has \['ant', 'bee'"):
        LatentDataset(folder, ["ant", "cow"])


def test_a_folder_without_a_finished_shard_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no index\.json"):
        LatentDataset(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({**read_index(folder), "shards": []}))
    with pytest.raises(ValueError, match="has no finished shard"):
        LatentDataset(tmp_path)


def test_a_shard_that_has_changed_is_refused(tmp_path: Path):
    folder = write_toy_latents(tmp_path)
    write_toy_latents(tmp_path / "other", seed=1)
    (tmp_path / "other" / shard_name(0, 1)).replace(folder / shard_name(0, 1))
    with pytest.raises(ValueError, match="has sha256"):
        LatentDataset(folder)
