"""The embedding tap on real timm architectures of different heads."""

import copy
import io

import pytest
import timm
import torch

from gkd_plugin import ConfigError
from gkd_plugin.models import Embedding, EmbeddingTap, tap_embedding, timm_model

# one of each kind of head: linear, conv-MLP + dropout after the embedding, 1 × 1 convolution, two classifiers,
# MLP head, list of heads, norm + linear, attention pool fed by tokens
KINDS = [
    "test_resnet",
    "mobilenetv3_small_050",
    "dla34",
    "deit_tiny_distilled_patch16_224",
    "caformer_s18",
    "crossvit_tiny_240",
    "levit_128s",
    "resnet50_clip",
    "test_vit",
    "test_vgg" if timm.is_model("test_vgg") else "vgg11",
]


def meta_model(name, **kwargs):
    with torch.device("meta"):
        return timm_model(name, **kwargs).eval()


def record(model):
    seen = []
    model.embedding.register_forward_hook(lambda _module, _args, output: seen.append(output))
    return seen


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_head_is_tapped_once(name):
    model = meta_model(name, num_classes=7)
    seen = record(model)
    logits = model(torch.zeros(2, *model.pretrained_cfg["input_size"], device="meta"))
    assert logits.shape == (2, 7)
    assert [tuple(x.shape) for x in seen] == [(2, model.head_hidden_size)]


@pytest.mark.parametrize("name", KINDS)
def test_classifier_parameters_are_those_the_embedding_does_not_need(name):
    model = meta_model(name, num_classes=7)
    seen = record(model)
    model(torch.zeros(2, *model.pretrained_cfg["input_size"], device="meta"))
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(seen[0].sum(), parameters, allow_unused=True)
    unused = {id(p) for p, g in zip(parameters, gradients, strict=True) if g is None}
    assert unused == {id(p) for p in model.classifier_parameters()}


@pytest.mark.slow
def test_every_architecture_of_timm():
    """All names on the meta device; the encoders without a classifier are refused by name."""
    refused = []
    for name in timm.list_models():
        try:
            model = meta_model(name, num_classes=7)
        except ConfigError:
            refused.append(name)
            continue
        seen = record(model)
        logits = model(torch.zeros(2, *model.pretrained_cfg["input_size"], device="meta"))
        assert [tuple(x.shape) for x in seen] == [(2, model.head_hidden_size)], name
        assert logits.shape == (2, 7), name
    assert all(name.endswith("_enc") for name in refused)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "deit_tiny_distilled_patch16_224"])
def test_logits_and_embedding_are_timms_own(name):
    torch.manual_seed(0)
    model = timm_model(name, num_classes=5).eval()
    plain = timm.create_model(name, num_classes=5).eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    seen = record(model)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
        want = plain.forward_head(plain.forward_features(x), pre_logits=True)
    torch.testing.assert_close(seen[0], want)
    assert isinstance(model, type(plain))
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_in_training_the_embedding_is_the_one_behind_the_logits():
    model = timm_model("test_resnet", num_classes=3, drop_rate=0.5).train()
    seen = record(model)
    logits = model(torch.randn(4, 3, 64, 64))
    torch.testing.assert_close(model.get_classifier()(seen[0]), logits)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_copies_have_their_own_tap(name, how):
    model = timm_model(name, num_classes=3).eval()
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    mine, theirs = record(model), record(twin)
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
    assert isinstance(twin, EmbeddingTap)
    assert len(mine) == len(theirs) == 1
    assert twin.embedding is not model.embedding


def test_reset_classifier_moves_the_tap():
    model = timm_model("test_resnet", num_classes=3).eval()
    model.reset_classifier(9)
    seen = record(model)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 9)
    assert len(seen) == 1
    assert {id(p) for p in model.classifier_parameters()} == {id(p) for p in model.get_classifier().parameters()}


def test_no_classifier_gives_the_embedding():
    model = timm_model("test_resnet", num_classes=0).eval()
    seen = record(model)
    output = model(torch.randn(2, 3, 64, 64))
    assert torch.equal(output, seen[0])
    assert output.shape == (2, model.head_hidden_size)
    assert list(model.classifier_parameters()) == []


def test_the_tap_has_no_parameters():
    assert list(Embedding().parameters()) == []
    assert Embedding().state_dict() == {}


def test_models_without_a_classifier_interface_are_refused():
    features = timm.create_model("test_resnet", features_only=True)
    with pytest.raises(ConfigError, match="only timm models with a classifier interface"):
        tap_embedding(features)


def test_tapping_twice_is_refused():
    with pytest.raises(ConfigError, match="already has an attribute 'embedding'"):
        tap_embedding(timm_model("test_resnet"))
