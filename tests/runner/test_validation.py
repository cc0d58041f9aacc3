"""Every rule of the static validation, on a config that is valid without the change."""

from __future__ import annotations

import pytest
import yaml
from torch import nn
from torchdistill.losses.registry import HIGH_LEVEL_LOSS_DICT
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT

from gkd_plugin.errors import ConfigError
from gkd_plugin.runner.overrides import apply_overrides
from gkd_plugin.runner.validation import check_call, problems, validate
from gkd_plugin.runner.yaml_nodes import compose_value, to_plain

LOADER = """
    dataset_id: d/train
    sampler: {class_or_func: !import_get {key: 'torch.utils.data.RandomSampler'}, kwargs: }
    kwargs: {batch_size: 4, num_workers: 0}
"""
LOSS = """
      key: WeightedSumLoss
      kwargs:
        sub_terms:
          ce:
            criterion: {key: CrossEntropyLoss, kwargs: {reduction: mean}}
            criterion_wrapper:
              key: SimpleLossWrapper
              kwargs: {input: {is_from_teacher: false, module_path: '.', io: output}, target: {uses_label: true}}
            weight: 1.0
"""
PLAIN_TRAINING = f"""
dependencies: [{{name: gkd_plugin}}]
datasets:
  d/train: !import_call {{key: builtins.dict, init: {{kwargs: {{a: 1}}}}}}
models:
  model: {{key: resnet20, kwargs: {{num_classes: 3}}, src_ckpt: , dst_ckpt: runs/x.pt}}
train:
  log_freq: 10
  num_epochs: 2
  train_data_loader: {LOADER}
  val_data_loader: {LOADER}
  model: {{forward_proc: forward_batch_only, forward_hook: {{input: [], output: [fc]}}, requires_grad: true}}
  optimizer: {{key: SGD, kwargs: {{lr: 0.1}}, module_wise_kwargs: [{{module: fc, kwargs: {{lr: 1.0}}}}]}}
  scheduler: {{key: StepLR, kwargs: {{step_size: 1}}, scheduling_step: 0}}
  criterion: {LOSS}
test:
  test_data_loader: {LOADER}
"""
STAGES = f"""
_note: &role {{forward_proc: forward_batch_only, forward_hook: {{output: [fc]}}, wrapper: DataParallel}}
x-note: 1
datasets:
  d/train: !import_call {{_any: 1, key: builtins.dict, init: }}
models:
  teacher_model: {{key: resnet34, kwargs: {{weights: !getattr [!import_get {{key: sys.modules}}, x]}}, _note: 1}}
  student_model: {{key: timm_model, kwargs: {{model_name: resnet18.a1_in1k, num_classes: 3}}, experiment: e}}
train:
  student: {{dst_ckpt: runs/stage.pt}}
  stage1: &stage1
    num_epochs: 1
    train_data_loader: {LOADER.replace("    ", "      ")}
      cache_output:
    teacher: *role
    student:
      <<: *role
      auxiliary_model_wrapper: {{key: EmptyModule, kwargs: {{a: 1}}}}
      sequential: [conv1, +extra]
      adaptations: {{extra: {{key: Conv2d, kwargs: {{in_channels: 1, out_channels: 1, kernel_size: 1}}}}}}
      frozen_modules: []
    optimizer:
      key: SGD
      kwargs: {{lr: 0.1}}
      module_wise_configs: [{{module: fc, is_teacher: false}}]
    criterion: {LOSS}
  stage2:
    num_epochs: 1
    teacher: *role
    student: *role
    criterion: {{key: WeightedSumLoss, kwargs: }}
    pre_epoch_process: default_pre_epoch_process_with_teacher
device: {{default: cuda:0, teacher: cuda:1, precision: bf16}}
tracker: {{engine: }}
"""


def found(text, *changes, drop=(), **options):
    """Problems after ``--set`` changes, ``path=value`` additions and dropped paths."""
    root = compose_value(text, "--test")
    paths = {change.partition("=")[0] for change in changes}
    for path in paths | set(drop):
        _make(root, path)
    apply_overrides(root, list(changes))
    plain = to_plain(root)
    for path in drop:
        *parents, last = path.split(".")
        section = plain
        for parent in parents:
            section = getattr(section[parent], "value", section[parent])
        del section[last]
    return problems(plain, **options)


def _make(root, path):
    """Adds the last key of a path where it is absent."""
    *parents, last = path.split(".")
    node = root
    for parent in parents:
        node = node.value[int(parent)] if parent.isdigit() else {k.value: v for k, v in node.value}[parent]
    if not last.isdigit() and last not in [key.value for key, _ in node.value]:
        node.value.append(
            (yaml.ScalarNode("tag:yaml.org,2002:str", last), yaml.ScalarNode("tag:yaml.org,2002:null", ""))
        )


@pytest.mark.parametrize("text", [PLAIN_TRAINING, STAGES])
def test_valid_configs_pass(text):
    assert found(text) == []
    validate(to_plain(compose_value(text, "--test")))


MODULE = "train.model"
LOAD = "train.train_data_loader"
TERM = "train.criterion.kwargs.sub_terms.ce"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        # unknown keys, in every kind of section
        ("trian=1", "trian: unknown key; did you mean 'train'"),
        ("models.studnet_model=1", "models.studnet_model: unknown key; did you mean 'student_model'"),
        ("models.model.kwarg={}", "models.model.kwarg: unknown key; did you mean 'kwargs'"),
        ("train.optimiser={}", "train.optimiser: unknown key; did you mean 'optimizer'"),
        ("train.stages={}", "train.stages: unknown key; did you mean 'stage1'"),
        (f"{LOAD}.dataset=1", f"{LOAD}.dataset: unknown key; did you mean 'dataset_id'"),
        (f"{LOAD}.cache_output=[1]", f"{LOAD}.cache_output: unknown key"),
        (f"{LOAD}.sampler.kwarg=1", f"{LOAD}.sampler.kwarg: unknown key; did you mean 'kwargs'"),
        (f"{MODULE}.forward_hooks={{}}", f"{MODULE}.forward_hooks: unknown key; did you mean 'forward_hook'"),
        (f"{MODULE}.forward_hook.outputs=[]", f"{MODULE}.forward_hook.outputs: unknown key; did you mean 'output'"),
        ("train.optimizer.args=[]", "train.optimizer.args: unknown key; did you mean 'kwargs'"),
        ("train.scheduler.step=1", "train.scheduler.step: unknown key"),
        ("train.criterion.kwarg={}", "train.criterion.kwarg: unknown key; did you mean 'kwargs'"),
        (f"{TERM}.factor=1", f"{TERM}.factor: unknown key; allowed: 'criterion', 'criterion_wrapper', 'weight'"),
        ("test.loader={}", "test.loader: unknown key"),
        ("device={devault: cpu}", "device.devault: unknown key; did you mean 'default'"),
        ("tracker={engin: wandb}", "tracker.engin: unknown key; did you mean 'engine'"),
        ("datasets.d/train.inti={}", "datasets.d/train.inti: unknown key; did you mean 'init'"),
        ("datasets.d/train.init.kwarg={}", "datasets.d/train.init.kwarg: unknown key; did you mean 'kwargs'"),
        # sections and values of the wrong kind
        ("train=3", "train: 3 given; must be a section"),
        ("models=[1]", "models: [1] given; must be a section with model, student_model, teacher_model"),
        ("models.model=resnet18", "models.model: 'resnet18' given; must be a section"),
        ("models.model.kwargs=", "models.model.kwargs: nothing given; must be a section"),
        ("models.model.quantized=3", "models.model.quantized: 3 given; must be true or false"),
        ("datasets={}", "datasets: is empty"),
        ("datasets.d/x=", "datasets.d/x: nothing given; must be a dataset"),
        ("train.num_epochs=0", "train.num_epochs: 0 given; must be a whole number, 1 or more"),
        ("train.num_epochs=1.5", "train.num_epochs: 1.5 given"),
        ("train.num_epochs=true", "train.num_epochs: true given"),
        ("train.log_freq=-1", "train.log_freq: -1 given"),
        ("test.log_freq=x", "test.log_freq: 'x' given"),
        (f"{MODULE}.requires_grad=1", f"{MODULE}.requires_grad: 1 given; must be true or false"),
        (f"{MODULE}.forward_hook.output=embedding", f"{MODULE}.forward_hook.output: 'embedding' given; must be a list"),
        (f"{MODULE}.forward_hook.input=", f"{MODULE}.forward_hook.input: nothing given; must be a list"),
        (f"{MODULE}.forward_hook.input=[1]", f"{MODULE}.forward_hook.input: [1] given"),
        (f"{MODULE}.frozen_modules=", f"{MODULE}.frozen_modules: nothing given; must be a list"),
        (f"{MODULE}.adaptations=[1]", f"{MODULE}.adaptations: [1] given"),
        (f"{MODULE}.sequential=[+x]", f"{MODULE}.sequential: '+x' is not in adaptations"),
        (f"{MODULE}.wrapper=DDP", f"{MODULE}.wrapper: 'DDP' given; allowed: 'DataParallel'"),
        (f"{MODULE}.wrapper={{key: DataParalel}}", "did you mean 'DataParallel'"),
        (f"{MODULE}.src_ckpt=3", f"{MODULE}.src_ckpt: 3 given; must be the path of a file"),
        (f"{LOAD}.kwargs=", f"{LOAD}.kwargs: nothing given; must be a section"),
        (f"{LOAD}.sampler=", f"{LOAD}.sampler: nothing given; must be a section"),
        (f"{LOAD}.sampler.class_or_func=RandomSampler", "write class_or_func: !import_get"),
        ("train.optimizer.kwargs.lr=[1]", "train.optimizer.kwargs.lr: [1] given; must be a number"),
        ("train.optimizer.kwargs.lr='1e-3'", "train.optimizer.kwargs.lr: '1e-3' is text to YAML"),
        ("train.optimizer.grad_accum_step=0", "train.optimizer.grad_accum_step: 0 given"),
        ("train.optimizer.module_wise_kwargs.0=fc", "train.optimizer.module_wise_kwargs.0: 'fc' given"),
        ("train.optimizer.module_wise_kwargs.0.module=", "module_wise_kwargs.0.module: nothing given"),
        ("train.optimizer={}", "train.optimizer: is empty"),
        ("train.scheduler.scheduling_step=-1", "train.scheduler.scheduling_step: -1 given"),
        (f"{TERM}.weight=", f"{TERM}.weight: nothing given; must be a number"),
        (f"{TERM}.criterion_wrapper=", f"{TERM}.criterion_wrapper: missing; 'CrossEntropyLoss' needs one"),
        ("device=cpu", "device: 'cpu' given; must be a section with default, precision, teacher"),
        ("device={default: gpu}", "device.default: 'gpu' given; allowed: auto, cpu, cuda, cuda:<number>, mps"),
        ("device={teacher: 'cuda:x'}", "device.teacher: 'cuda:x' given"),
        ("device={precision: fp32}", "device.precision: 'fp32' given"),
        ("device={precision: yes}", "device.precision: true given"),
        ("tracker={engine: tensorboard}", "tracker.engine: 'tensorboard' given; allowed: 'trackio', 'wandb'"),
        # what torchdistill does not read
        ("train.teacher={}", "train.teacher: is not read where there is no models.teacher_model; write model"),
        ("train.optimizer.module_wise_configs=[]", "unknown key; did you mean 'module_wise_kwargs'"),
        # registries
        ("models.model.key=resnet181", "models.model.key: 'resnet181' is not registered; did you mean 'resnet18'"),
        ("models.model.key=", "models.model.key: nothing given"),
        ("models.model.key=detection", "models.model.key: 'detection' is a module of torchvision"),
        (f"{MODULE}.forward_proc=forward_batch", "is not registered; did you mean 'forward_batch_only'"),
        (f"{MODULE}.auxiliary_model_wrapper={{key: EmptyModul}}", "did you mean 'EmptyModule'"),
        (f"{MODULE}.auxiliary_model_wrapper=", "auxiliary_model_wrapper: nothing given; must be a section"),
        (f"{MODULE}.adaptations={{x: {{key: Conv2, kwargs: {{}}}}}}", "adaptations.x.key: 'Conv2' is not registered"),
        ("train.optimizer.key=SDG", "train.optimizer.key: 'SDG' is not registered; did you mean 'SGD'"),
        ("train.scheduler.key=SepLR", "train.scheduler.key: 'SepLR' is not registered; did you mean 'StepLR'"),
        ("train.criterion.key=WeightedSum", "'WeightedSum' is not registered; did you mean 'WeightedS"),
        ("train.criterion.func2extract_model_loss=x", "func2extract_model_loss: 'x' is not registered"),
        (f"{TERM}.criterion.key=CrossEntropyLos", "did you mean 'CrossEntropyLoss'"),
        (f"{TERM}.criterion_wrapper.key=SimpleLoss", "did you mean 'SimpleLossWrapper'"),
        ("train.pre_epoch_process=x", "train.pre_epoch_process: 'x' is not registered"),
        ("train.post_epoch_process=", "train.post_epoch_process: nothing given"),
        (f"{LOAD}.collate_fn=x", f"{LOAD}.collate_fn: 'x' is not registered"),
        (f"{LOAD}.batch_sampler={{key: BatchSample, kwargs: {{}}}}", "did you mean 'BatchSampler'"),
        (f"{LOAD}.dataset_wrapper={{key: CRDDatasetWraper}}", "did you mean 'CRDDatasetWrapper'"),
        (f"{LOAD}.dataset_id=d/trian", f"{LOAD}.dataset_id: 'd/trian' is not in datasets; did you mean 'd/train'"),
        (f"{LOAD}.dataset_id=", f"{LOAD}.dataset_id: missing"),
        ("dependencies=[{name: gkd_plugn}]", "dependencies.0: 'gkd_plugn' cannot be imported: ModuleNotFoundError"),
        ("dependencies=[3]", "dependencies.0: 3 cannot be imported: TypeError"),
        # call signatures
        ("train.optimizer.kwargs.mometum=1", "kwargs.mometum: unknown argument; did you mean 'momentum'"),
        ("train.optimizer.kwargs.params=1", "train.optimizer.kwargs.params: given already"),
        ("train.scheduler.kwargs={}", "train.scheduler.kwargs: argument 'step_size' is missing"),
        ("train.scheduler.kwargs=", "train.scheduler.kwargs: nothing given; must be a section"),
        (f"{LOAD}.kwargs.batchsize=1", f"{LOAD}.kwargs.batchsize: unknown argument; did you mean 'batch_size'"),
        (f"{LOAD}.kwargs.sampler=1", f"{LOAD}.kwargs.sampler: given already"),
        (f"{LOAD}.kwargs.shuffle=true", f"{LOAD}.kwargs.shuffle: excludes a sampler"),
        (f"{LOAD}.sampler.kwargs={{replace: true}}", "unknown argument; did you mean 'replacement'"),
        (f"{LOAD}.batch_sampler={{key: BatchSampler, kwargs: {{batch_size: 2}}}}", "argument 'drop_last' is missing"),
        (
            f"{LOAD}.batch_sampler={{key: BatchSampler, kwargs: {{batch_size: 2, drop_last: true}}}}",
            f"{LOAD}.kwargs.batch_size: cannot be given beside a batch_sampler",
        ),
        (f"{TERM}.criterion.kwargs.reduce_to=1", f"{TERM}.criterion.kwargs.reduce_to: unknown argument"),
        ("datasets.d/train.key=builtins.dikt", "datasets.d/train: builtins.dikt: no such name in builtins; did"),
        ("datasets.d/train.key=torch.utils.data.Subset", "datasets.d/train.init.kwargs.a: unknown argument"),
        ("datasets.d/train.init=3", "datasets.d/train.init: 3 given"),
        ("datasets.d/train.init.args=3", "datasets.d/train.init.args: 3 given; must be a list"),
        ("datasets.d/train.init.kwargs=", "datasets.d/train.init.kwargs: nothing given"),
        # checkpoints
        ("models.model.src_ckpt=runs/no.pt", "models.model.src_ckpt: no such file: runs/no.pt; train it first"),
        ("train.model.src_ckpt=runs/no.pt", "train.model.src_ckpt: no such file: runs/no.pt"),
    ],
)  # fmt: skip
def test_each_rule(change, line):
    lines = found(PLAIN_TRAINING, change)
    assert any(line in given for given in lines), lines


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("models", "models: missing"),
        ("datasets", "datasets: missing"),
        ("train", "train: missing"),
        ("models.model", "models.student_model: missing"),
        ("models.model.kwargs", "models.model.kwargs: missing"),
        ("train.num_epochs", "train.num_epochs: missing"),
        ("train.criterion", "train.criterion: missing"),
        ("train.optimizer", "train.optimizer: missing"),
        ("train.optimizer.kwargs", "train.optimizer.kwargs: missing"),
        ("train.train_data_loader", "train.train_data_loader: missing"),
        (f"{LOAD}.sampler", f"{LOAD}.sampler.class_or_func: missing; write class_or_func: !import_get"),
        ("train.model", "train.model: missing"),
        ("train.model.forward_proc", "train.model.forward_proc: missing; write forward_proc: 'forward_batch_only'"),
        ("test.test_data_loader", "test.test_data_loader: missing"),
        (f"{TERM}.criterion", f"{TERM}.criterion: missing"),
        (f"{TERM}.criterion.kwargs", f"{TERM}.criterion.kwargs: missing"),
    ],
)
def test_each_required_part(path, line):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(given.startswith(line) for given in lines), lines


@pytest.mark.parametrize("path", ["dependencies", "test", "train.scheduler", "train.val_data_loader", "train.log_freq"])
def test_optional_parts(path):
    assert found(PLAIN_TRAINING, drop=[path]) == []


@pytest.mark.parametrize(
    "change",
    [
        "device={precision: no}",
        "device={precision: 'no', default: auto, teacher: }",
        "device={default: mps}",
        "device=",
        "train.scheduler=",
        "train.model.wrapper={key: DistributedDataParallel, kwargs: {}}",
        "models.model.src_ckpt=https://example.org/x.pt",
        "models.model={key: resnet18, kwargs: {num_classes: 3}, quantized: true}",
        "models.model={key: anything, repo_or_dir: owner/repo, kwargs: {x: 1}}",
        "dependencies=gkd_plugin",
        "dependencies=",
        "train.optimizer.kwargs.lr=1e-3",
        "tracker={engine: wandb, kwargs: {project: x}}",
    ],
)
def test_also_valid(change):
    assert found(PLAIN_TRAINING, change) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("models.student_model.kwargs.model_name=resnet81", "timm has no model 'resnet81'; did you mean 'resnet"),
        ("models.student_model.kwargs={}", "models.student_model.kwargs: argument 'model_name' is missing"),
        ("train.stage2.num_epoch=1", "train.stage2.num_epoch: unknown key; did you mean 'num_epochs'"),
        ("train.optimizer={}", "train.optimizer: is not read where there are stages; put it into stage1, stage2"),
        (
            "train.stage4={}",
            "train: stage3 is missing; stages count from 1 without gaps, given: stage1, stage2, stage4",
        ),
        ("train.stage01={}", "train.stage01: unknown key; did you mean 'stage1'"),
        ("train.stage2=", "train.stage2: nothing given; must be a section"),
        ("train.student.forward_proc=x", "train.student.forward_proc: unknown key; allowed: 'dst_ckpt'"),
        ("train.stage2.model={}", "train.stage2.model: is not read where there is a models.teacher_model"),
        ("train.stage1.optimizer.module_wise_kwargs=[]", "module_wise_kwargs: unknown key"),
    ],
)
def test_stages(change, line):
    lines = found(STAGES, change)
    assert any(line in given for given in lines), lines


def test_each_stage_needs_its_own_sections():
    lines = found(STAGES, drop=["train.stage2.teacher", "train.stage2.student", "train.stage2.criterion"])
    assert [line.partition(":")[0] for line in lines] == [
        f"train.stage2.{name}" for name in ("teacher", "student", "criterion")
    ]
    assert any(line.startswith("train: stage1 is missing") for line in found(STAGES, drop=["train.stage1"]))


def test_all_problems_in_one_error_in_a_stable_order():
    changes = ["trian=1", "train.num_epochs=0", "train.optimizer.key=SDG", "device={default: gpu}"]
    root = compose_value(PLAIN_TRAINING, "--test")
    for change in changes:
        _make(root, change.partition("=")[0])
    apply_overrides(root, changes)
    with pytest.raises(ConfigError) as caught:
        validate(to_plain(root))
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "trian", "train.num_epochs", "train.optimizer.key", "device.default"
    ]  # fmt: skip


def test_checkpoints_that_exist_or_will(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change = "models.model.src_ckpt=./runs/teacher.pt"
    assert found(PLAIN_TRAINING, change) != []
    assert found(PLAIN_TRAINING, change, produced=["runs/teacher.pt"]) == []
    assert found(PLAIN_TRAINING, change, needs_checkpoints=False) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher.pt").touch()
    assert found(PLAIN_TRAINING, change) == []


class TestCriterion:
    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (ConfigError("temperature: 0 given"), "train.criterion: temperature: 0 given"),
            (ConfigError("one\ntwo"), "train.criterion: two"),
            (TypeError("no such argument"), "train.criterion: TypeError: no such argument"),
            (KeyError("io"), "train.criterion: KeyError: 'io'"),
            (ZeroDivisionError(), "train.criterion: ZeroDivisionError"),
        ],
    )
    def test_checks_its_own_arguments(self, monkeypatch, error, line):
        def dummy(**kwargs):
            raise error

        monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", dummy)
        assert line in found(PLAIN_TRAINING, "train.criterion={key: dummy, kwargs: {a: 1}}")

    def test_gets_a_copy_and_leaves_the_seed(self, monkeypatch):
        import torch

        def dummy(terms):
            terms.clear()
            return nn.Linear(1, 1)

        monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", dummy)
        root = compose_value(PLAIN_TRAINING, "--test")
        apply_overrides(root, ["train.criterion={key: dummy, kwargs: {terms: {a: 1}}}"])
        plain = to_plain(root)
        state = torch.random.get_rng_state()
        assert problems(plain) == []
        assert plain["train"]["criterion"]["kwargs"] == {"terms": {"a": 1}}
        assert torch.equal(state, torch.random.get_rng_state())

    def test_is_not_built_where_it_holds_objects(self, monkeypatch):
        monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", lambda **kwargs: 1 / 0)
        assert found(PLAIN_TRAINING, "train.criterion={key: dummy, kwargs: {a: !import_get {key: os.sep}}}") == []


def test_auxiliary_wrapper_gets_torchdistills_arguments(monkeypatch):
    class Dummy:
        def __init__(self, teacher_model, device, device_ids, distributed, width, depth=1):
            pass

    monkeypatch.setitem(AUXILIARY_MODEL_WRAPPER_DICT, "dummy", Dummy)
    change = "train.stage1.teacher={forward_proc: forward_batch_only, auxiliary_model_wrapper: {key: dummy, kwargs: "
    assert found(STAGES, change + "{width: 1}}}") == []
    assert found(STAGES, change + "{witdh: 1, device: cpu}}}") == [
        (
            "train.stage1.teacher.auxiliary_model_wrapper.kwargs.witdh: unknown argument; did you mean 'width'? "
            "(allowed: 'depth', 'width')"
        ),
        (
            "train.stage1.teacher.auxiliary_model_wrapper.kwargs.device: given already, by torchdistill or by "
            "position; remove it"
        ),
        "train.stage1.teacher.auxiliary_model_wrapper.kwargs: argument 'width' is missing",
    ]


def test_check_call():
    assert check_call("p", lambda a, *, b=1, **more: None, kwargs={"a": 1, "c": 2}) == []
    assert check_call("p", lambda a, /, b: None, [1], {"b": 1}) == []
    assert check_call("p", lambda *a: None, [1, 2]) == []
    assert check_call("p", lambda a: None, [1, 2]) == ["p: 2 positional arguments given, at most 1 fit"]
    assert check_call("p", lambda a, b: None, [1], {"a": 1}, names=["b"]) == [
        "p.a: given already, by torchdistill or by position; remove it"
    ]
    assert check_call("p", dict, [1, 2], {"x": 1}) == [], "no signature, no complaint"
