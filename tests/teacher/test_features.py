"""Earlier layers as rows for the local classifier."""

import pytest
import torch
from torch import nn

from gkd_plugin.errors import ConfigError
from gkd_plugin.teacher.features import LocalFeatures, pooled


def test_maps_and_tokens_are_pooled_by_mean_and_deviation():
    images = torch.randn(2, 3, 4, 5)
    means = [[float(channel.mean()) for channel in image] for image in images]
    deviations = [[float(channel.std(correction=0)) for channel in image] for image in images]
    want = torch.cat([torch.tensor(means), torch.tensor(deviations)], dim=1)
    torch.testing.assert_close(pooled(images, "layer"), want)
    torch.testing.assert_close(pooled(images.flatten(2).transpose(1, 2), "block"), want)


def test_what_has_no_positions_stays():
    rows = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(pooled(rows, "head"), rows.float())
    assert torch.equal(pooled(rows[:, :, None, None], "pool"), rows.float())


@pytest.mark.parametrize(
    ("output", "shown"), [(None, "a NoneType"), (torch.zeros(3), r"\[3\]"), ((torch.zeros(2, 3),), "a tuple")]
)
def test_other_outputs_are_refused(output, shown):
    with pytest.raises(ConfigError, match=f"local_features: 'layer' gave {shown}, not a tensor"):
        pooled(output, "layer")


def test_modules_stand_side_by_side_in_the_order_given():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    features, none = LocalFeatures(model, ["2", "0"]), LocalFeatures(model, None)
    x = torch.randn(4, 1, 2, 2)
    want = torch.cat([model(x), pooled(model[0](x), "0")], dim=1)
    model(x)
    torch.testing.assert_close(features.take(), want)
    with pytest.raises(ConfigError, match="'2' gave a NoneType"):  # of another forward pass there is nothing
        features.take()
    assert none.take() is None


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("layer1", "must be a list of module paths, got 'layer1'"),
        ([1], r"must be a list of module paths, got \[1\]"),
        (["wieght"], "Sequential has no module 'wieght'"),
        (["0", "0"], "'0' is given twice"),
    ],
)
def test_bad_input_is_one_line(paths, message):
    with pytest.raises(ConfigError, match=f"local_features: {message}"):
        LocalFeatures(nn.Sequential(nn.Linear(1, 1)), paths)
