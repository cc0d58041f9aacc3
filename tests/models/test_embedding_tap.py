"""The embedding tap on real timm architectures of different heads."""

import copy
import io
import multiprocessing

import pytest
import timm
import torch

from gkd_plugin import ConfigError
from gkd_plugin.models import Embedding, EmbeddingTap, tap_embedding, timm_model
from gkd_plugin.models.embedding_tap import _ClassifierInputs, _pooled

# small models of each kind of head: linear, conv-MLP + dropout after the embedding, classifiers for each branch, stage
# or token, batch norm in the classifier, MLP heads, auxiliary heads, attention pools fed by tokens, heads that pool
KINDS = [
    "test_resnet",
    "test_vit",
    "vgg11",
    "mobilenetv3_small_050",
    "lcnet_035",
    "deit_tiny_distilled_patch16_224",
    "pit_ti_distilled_224",
    "caformer_s18",
    "cpubone_nano",
    "crossvit_tiny_240",
    "efficientformerv2_s0",
    "efficientvim_m1",
    "efficientvim_m1_dist",
    "iformer_m_distilled",
    "levit_128s",
    "levit_256d",
    "repvit_m1",
    "resnet50_clip",
    "sequencer2d_s",
    "swiftformer_xs",
    "volo_d1_224",
]
SEVERAL_INPUTS = [
    "deit_tiny_distilled_patch16_224",
    "pit_ti_distilled_224",
    "crossvit_tiny_240",
    "efficientvim_m1_dist",
    "resnet50_clip",
    "levit_128s",
    "iformer_m_distilled",
]


def meta_model(name, **kwargs):
    with torch.device("meta"):
        return timm_model(name, **kwargs).eval()


def record(model):
    seen = []
    model.embedding.register_forward_hook(lambda _module, _args, output: seen.append(output))
    return seen


@pytest.mark.parametrize("name", KINDS)
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
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], want)
    assert isinstance(model, type(plain))
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_in_training_the_embedding_is_the_one_behind_the_logits():
    model = timm_model("test_resnet", num_classes=3, drop_rate=0.5).train()
    seen = record(model)
    logits = model(torch.randn(4, 3, 64, 64))
    torch.testing.assert_close(model.get_classifier()(seen[0]), logits)


@pytest.mark.parametrize("name", SEVERAL_INPUTS)
def test_in_training_it_has_the_dropout_mask_of_the_logits(name):
    """With the same seed, timm's ``pre_logits`` has the mask that the logits of the forward pass have."""
    drop = {} if name == "resnet50_clip" else {"drop_rate": 0.5}
    model = timm_model(name, num_classes=3, **drop).train()
    seen = record(model)
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    torch.manual_seed(1)
    model(x)
    torch.manual_seed(1)
    want = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(seen[0], want)


@pytest.mark.parametrize("name", ["resnet50_clip", "deit_tiny_distilled_patch16_224", "test_vit", "caformer_s18"])
def test_every_module_runs_once(name):
    model = timm_model(name, num_classes=3).eval()
    calls = []
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _module, _args, _output, path=path: calls.append(path))
    model(torch.randn(1, *model.pretrained_cfg["input_size"]))
    assert len(calls) == len(set(calls)) > 0


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "deit_tiny_distilled_patch16_224", "crossvit_tiny_240"])
def test_an_aborted_forward_leaves_nothing_behind(name):
    model = timm_model(name, num_classes=3).eval()
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    classifiers = model.get_classifier()
    last = classifiers[-1] if isinstance(classifiers, tuple | list | torch.nn.ModuleList) else classifiers

    def stop(*_):
        raise RuntimeError("stopped")

    handle = last.register_forward_pre_hook(stop, prepend=True)
    with pytest.raises(RuntimeError, match="stopped"):
        model(x)
    handle.remove()
    seen = record(model)
    with torch.no_grad():
        model(x)
        torch.testing.assert_close(seen[0], model.forward_head(model.forward_features(x), pre_logits=True))


@pytest.mark.parametrize("name", ["test_resnet", "deit_tiny_distilled_patch16_224"])
def test_the_tap_compiles_in_one_graph(name):
    model = timm_model(name, num_classes=3).eval()
    seen = record(model)
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        want = model(x)
        got = torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(seen[1], seen[0])


def classify_in_worker(model, x, results):
    seen = record(model)
    logits = model(x)
    results.put((logits.detach().tolist(), seen[0].tolist()))


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224"])
def test_a_spawned_process_gets_a_tapped_model(name):
    context = multiprocessing.get_context("spawn")
    model = timm_model(name, num_classes=3).eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    results = context.Queue()
    worker = context.Process(target=classify_in_worker, args=(model, x, results))
    worker.start()
    logits, embedding = results.get(timeout=120)
    worker.join()
    torch.testing.assert_close(torch.tensor(logits), model(x))
    torch.testing.assert_close(torch.tensor(embedding), model.forward_head(model.forward_features(x), pre_logits=True))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "deit_tiny_distilled_patch16_224", "crossvit_tiny_240"])
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


@pytest.mark.parametrize("name", ["test_resnet", "deit_tiny_distilled_patch16_224", "crossvit_tiny_240", "repvit_m1"])
def test_reset_classifier_moves_the_tap(name):
    model = timm_model(name, num_classes=3).eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    for classes in (9, 0, 4):
        model.reset_classifier(classes)
        seen = record(model)
        assert model(x).shape == (1, classes or model.head_hidden_size)
        assert [tuple(e.shape) for e in seen] == [(1, model.head_hidden_size)]
        model.embedding._forward_hooks.clear()


@pytest.mark.parametrize("name", [*SEVERAL_INPUTS, "mobilenetv3_small_050", "caformer_s18", "test_vit"])
def test_no_classifier_gives_the_embedding(name):
    model = meta_model(name, num_classes=0)
    seen = record(model)
    output = model(torch.zeros(2, *model.pretrained_cfg["input_size"], device="meta"))
    assert output.shape == seen[0].shape == (2, model.head_hidden_size)


def test_an_encoders_embedding_is_the_mean_of_its_tokens():
    with torch.device("meta"):
        plain = timm.create_model("qwen3_vit_88m_enc").eval()
    model = meta_model("qwen3_vit_88m_enc")
    x = torch.zeros(2, 3, 64, 64, device="meta")
    assert plain(x).shape[1:] == (4, model.head_hidden_size)
    assert model(x).shape == (2, model.head_hidden_size)
    tokens, maps = torch.randn(2, 4, 6), torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(_pooled(tokens, 6), tokens.mean(1))
    torch.testing.assert_close(_pooled(maps, 6), maps.mean((2, 3)))


def test_inputs_that_do_not_make_the_embedding_are_refused():
    inputs = _ClassifierInputs(Embedding(), 8, 2)
    inputs.add(0, torch.zeros(1, 3))
    with pytest.raises(ConfigError, match=r"widths \[3, 4\] do not make an embedding of width 8"):
        inputs.add(1, torch.zeros(1, 4))


def test_the_tap_has_no_parameters():
    assert list(Embedding().parameters()) == []
    assert Embedding().state_dict() == {}


def test_models_without_a_classifier_interface_are_refused():
    features = timm.create_model("test_resnet", features_only=True)
    with pytest.raises(ConfigError, match="only timm's classifiers and encoders"):
        tap_embedding(features)


def test_tapping_twice_is_refused():
    with pytest.raises(ConfigError, match="already has an attribute 'embedding'"):
        tap_embedding(timm_model("test_resnet"))
