import pytest
import torch

from gkd_plugin.errors import ConfigError
from gkd_plugin.models.projection import Projection, make_projection


def embeddings(batch=5, width=3):
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(0))


def weights(projection):
    (linear,) = [module for module in projection.modules() if isinstance(module, torch.nn.Linear)]
    return linear.weight.detach(), linear.bias.detach()


def mapped(projection, e):
    """z = We + b, sample by sample."""
    weight, bias = weights(projection)
    return torch.stack([torch.stack([row @ sample + b for row, b in zip(weight, bias, strict=True)]) for sample in e])


def test_identity():
    assert torch.equal(Projection("identity", 3)(embeddings()), embeddings())
    with pytest.raises(ConfigError, match="out_features: 4 given; 'identity' leaves the embedding as wide as it is"):
        Projection("identity", 3, 4)


def test_linear():
    projection = Projection("linear", 3, 4)
    assert torch.allclose(projection(embeddings()), mapped(projection, embeddings()), atol=1e-6)


def test_normalised_rows_have_length_1():
    projection = Projection("normalised", 3, 4)
    z = mapped(projection, embeddings())
    expected = torch.stack([row / sum(value**2 for value in row) ** 0.5 for row in z])
    assert torch.allclose(projection(embeddings()), expected, atol=1e-6)


@pytest.mark.parametrize("out_features", [4, None])
def test_standardised_over_the_batch(out_features):
    projection = Projection("standardised", 3, out_features)
    z = embeddings() if out_features is None else mapped(projection, embeddings())
    expected = torch.empty_like(z)
    for column in range(z.shape[1]):
        values = z[:, column]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        expected[:, column] = (values - mean) / (variance + 1e-4) ** 0.5
    assert torch.allclose(projection(embeddings()), expected, atol=1e-5)
    assert bool(list(projection.parameters())) == (out_features is not None)


@pytest.mark.parametrize("kind", ["linear", "normalised", "standardised"])
def test_float32_under_autocast(kind):
    projection = Projection(kind, 3, 4)
    e = embeddings().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = projection(e)
    assert out.dtype == torch.float32
    assert torch.equal(out, projection(e.float()))


def test_an_embedding_of_another_width():
    with pytest.raises(ConfigError, match=r"^projection\.in_features: 4 given, the embedding has 3$"):
        Projection("linear", 4, 2)(embeddings())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (3, r": must be a section with kind, in_features, out_features, got 3"),
        ({"kind": "linear", "in_feature": 3}, r"\.in_feature: unknown key; did you mean 'in_features'"),
        ({"kind": "linear", "out_features": 3}, r"\.in_features: missing"),
        ({"in_features": 3}, r"\.kind: missing"),
        ({"kind": "linera", "in_features": 3}, r"\.kind: there is no 'linera'; did you mean 'linear'"),
        ({"kind": "normalised", "in_features": 3}, r"\.out_features: missing; 'normalised' needs it"),
        ({"kind": "linear", "in_features": 0, "out_features": 3}, r"\.in_features must be a whole number from 1 up"),
        ({"kind": "linear", "in_features": 3, "out_features": "8"}, r"\.out_features must be a whole number from 1 up"),
    ],
)
def test_sections_that_describe_none(section, message):
    with pytest.raises(ConfigError, match=rf"^auxiliary_model_wrapper\.kwargs\.projection{message}"):
        make_projection(section)
