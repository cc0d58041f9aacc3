"""Class centres and NCM against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_plugin.functional import ClassCentreAccumulator, class_centres, nearest_class_mean
from tests import reference


def samples(size=40, classes=5, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (size - classes,), generator=generator)])
    return torch.randn(size, width, generator=generator) + 1, labels


def test_centres_match_the_loops():
    embedding, labels = samples()
    want = torch.tensor(reference.centres(embedding, labels, 5))
    torch.testing.assert_close(class_centres([(embedding, labels)]), want)


@settings(deadline=None, max_examples=20)
@given(pieces=st.integers(1, 12))
def test_streaming_over_batches_changes_nothing(pieces):
    embedding, labels = samples()
    batches = zip(embedding.chunk(pieces), labels.chunk(pieces), strict=True)
    assert torch.allclose(class_centres(batches, 5), class_centres([(embedding, labels)], 5), rtol=0, atol=1e-7)


def test_long_streams_keep_their_digits():
    accumulator = ClassCentreAccumulator(1)
    for _ in range(200):
        accumulator.update(torch.tensor([[1e4, 1e-3]]), torch.tensor([0]))
    assert accumulator.result()[0, 1].item() == pytest.approx(1e-7, rel=1e-6)


def test_counts():
    accumulator = ClassCentreAccumulator()
    accumulator.update(torch.ones(3, 2), torch.tensor([0, 2, 2]))
    assert accumulator.counts.tolist() == [1, 0, 2]


def test_low_precision_embeddings_are_accepted():
    embedding, labels = samples()
    want = class_centres([(embedding.bfloat16().float(), labels)])
    assert torch.allclose(class_centres([(embedding.bfloat16(), labels)]), want)


def test_a_class_without_samples_is_named():
    with pytest.raises(ValueError, match="no sample of class 1: its centre cannot be computed"):
        class_centres([(torch.ones(2, 3), torch.tensor([0, 2]))])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named(label):
    with pytest.raises(ValueError, match=f"class index out of range: label {label}, allowed 0 … 2"):
        class_centres([(torch.ones(1, 3), torch.tensor([label]))], num_classes=3)


def test_nothing_at_all():
    with pytest.raises(ValueError, match="no samples"):
        class_centres([])


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"embeddings \[B, D\] and labels \[B\]"):
        ClassCentreAccumulator().update(torch.ones(2, 3, 1), torch.zeros(2, dtype=torch.long))


def test_nearest_class_mean_is_the_nearest_on_the_sphere():
    embedding, labels = samples()
    centres = class_centres([(embedding, labels)])
    scores = nearest_class_mean(embedding, centres)
    rows = torch.nn.functional.normalize(embedding, dim=1)
    assert torch.equal(scores.argmax(1), torch.cdist(rows, centres).argmin(1))
    assert scores.abs().max() <= 1 + 1e-6
