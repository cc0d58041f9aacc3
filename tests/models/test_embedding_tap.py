"""The embedding tap on real timm architectures of different heads."""

import copy
import pickle
from unittest.mock import Mock

import pytest
import timm
import torch

from gkd_plugin.models import Embedding, EmbeddingTap, tap_embedding, timm_model
from gkd_plugin.models.embedding_tap import _ClassifierInputs, _pooled
from tests.runner.fakes import refused

DEIT = "deit_tiny_distilled_patch16_224"
# classifiers for each branch, stage or token, or fed by tokens
SEVERAL_INPUTS = [DEIT, "pit_ti_distilled_224", "crossvit_tiny_240", "efficientvim_m1_dist", "resnet50_clip"]
SEVERAL_INPUTS += ["levit_128s", "iformer_m_distilled"]
# small models of the other kinds of heads: linear, conv-MLP + dropout after the embedding, batch norm in the
# classifier, MLP heads, auxiliary heads, heads that pool
KINDS = ["test_resnet", "test_vit", "vgg11", "mobilenetv3_small_050", "lcnet_035", "caformer_s18", "cpubone_nano"]
KINDS += ["efficientformerv2_s0", "efficientvim_m1", "levit_256d", "repvit_m1", "sequencer2d_s", "swiftformer_xs"]
KINDS += ["volo_d1_224", *SEVERAL_INPUTS]


def made(name, **kwargs):
    """(model, two images, the embeddings of its later forward passes)."""
    torch.manual_seed(0)
    model = timm_model(name, **{"num_classes": 3, **kwargs}).eval()
    return model, torch.randn(2, *model.pretrained_cfg["input_size"]), record(model)


def record(model):
    seen = []
    model.embedding.register_forward_hook(lambda _module, _args, output: seen.append(output))
    return seen


def pre_logits(model, x):
    """timm's own embedding."""
    return model.forward_head(model.forward_features(x), pre_logits=True)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_logits_and_embedding_are_timms_own_in_one_pass(name):
    model, x, seen = made(name)
    plain = timm.create_model(name, num_classes=3).eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    calls = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _module, _args, _output, path=path: calls.append(path))
    assert torch.equal(model(x), plain(x))
    assert len(calls) == len(set(calls)) > 0
    (embedding,) = seen
    torch.testing.assert_close(embedding, pre_logits(plain, x))
    assert isinstance(model, type(plain))
    assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("name", [*SEVERAL_INPUTS, "test_resnet"])
def test_in_training_it_has_the_dropout_mask_of_the_logits(name):
    """With the same seed, timm's ``pre_logits`` has the mask that the logits of the forward pass have."""
    model, x, seen = made(name, **({} if name == "resnet50_clip" else {"drop_rate": 0.5}))
    model.train()
    torch.manual_seed(1)
    model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(seen[0], pre_logits(model, x))


@torch.no_grad()
def test_an_aborted_forward_leaves_nothing_behind():
    model, x, seen = made(DEIT)
    stop = Mock(side_effect=RuntimeError("stopped"))
    handle = model.get_classifier()[-1].register_forward_pre_hook(stop, prepend=True)
    with pytest.raises(RuntimeError, match="stopped"):
        model(x)
    handle.remove()
    model(x)
    torch.testing.assert_close(seen[0], pre_logits(model, x))


@pytest.mark.parametrize("name", ["test_resnet", DEIT])
@torch.no_grad()
def test_the_tap_compiles_in_one_graph(name):
    model, x, seen = made(name)
    want = model(x)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), want)
    torch.testing.assert_close(seen[1], seen[0])


@pytest.mark.parametrize("name", ["test_resnet", DEIT, "crossvit_tiny_240"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_have_their_own_tap(name, duplicate):
    model = timm_model(name, num_classes=3).eval()
    twin = duplicate(model)
    mine, theirs = record(model), record(twin)
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    assert torch.equal(twin(x), model(x))
    assert isinstance(twin, EmbeddingTap)
    assert len(mine) == len(theirs) == 1
    assert twin.embedding is not model.embedding


@pytest.mark.parametrize("name", ["test_resnet", DEIT, "crossvit_tiny_240", "repvit_m1", "resnet50_clip"])
def test_reset_classifier_moves_the_tap(name):
    model, x, seen = made(name)
    for classes in (9, 0, 4):
        model.reset_classifier(classes)
        assert model(x).shape == (2, classes or model.head_hidden_size)
        assert [tuple(e.shape) for e in seen] == [(2, model.head_hidden_size)]
        seen.clear()


def test_an_encoders_embedding_is_the_mean_of_its_tokens():
    with torch.device("meta"):
        plain, model = timm.create_model("qwen3_vit_88m_enc").eval(), timm_model("qwen3_vit_88m_enc").eval()
        x = torch.zeros(2, 3, 64, 64)
    assert plain(x).shape[1:] == (4, model.head_hidden_size)
    assert model(x).shape == (2, model.head_hidden_size)
    tokens, maps = torch.randn(2, 4, 6), torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(_pooled(tokens, 6), tokens.mean(1))
    torch.testing.assert_close(_pooled(maps, 6), maps.mean((2, 3)))


def test_what_cannot_be_tapped_and_inputs_that_do_not_make_the_embedding():
    inputs = _ClassifierInputs(Embedding(), 8, 2)
    inputs.hook(0, False, None, [torch.zeros(1, 3)])
    refused(r"widths \[3, 4\] do not make an embedding of width 8", inputs.hook, 1, False, None, [torch.zeros(1, 4)])
    refused("only timm's classifiers and encoders", tap_embedding, timm.create_model("test_resnet", features_only=True))
    refused("already has an attribute 'embedding'", tap_embedding, timm_model("test_resnet"))
