"""The table: each row changes a valid configuration and must give one line with the path and these parts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchdistill.losses.registry import HIGH_LEVEL_LOSS_DICT
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT
from torchdistill.optim.registry import OPTIM_DICT

from gkd_plugin.config.config import problems
from gkd_plugin.errors import ConfigError
from tests.config.samples import PLAIN_TRAINING, STAGES, changed, found, parse

MODEL, LOAD, ROLE = "models.model", "train.train_data_loader", "train.model"
OPTIM, PLAN, TERM = "train.optimizer", "train.scheduler", "train.criterion.kwargs.sub_terms.ce"
ONE, TWO, STUDENT = "train.stage1", "train.stage2", "models.student_model"
KD = (
    "{key: KDLoss, kwargs: {student_module_path: '.', student_module_io: output, teacher_module_path: '.', "
    "teacher_module_io: output, temperature: %s, alpha: 0.5}}"
)
SMALL = ("0", "1.0e-30", "x", ".nan")
NO_NUMBER = ("'0.1'", "true", "[1]", ".nan", ".inf")

REFUSED = [  # change, path of the line where it is not the changed one, parts of the line
    ("trian=1", "", "'train'"),
    ("datasets.d/x=", "", "nothing given", "!import_call"),
    ("datasets.d/x=3", "", "3 given", "!import_call"),
    ("datasets.d/x={key: builtins.dict}", "", "a section given", "!import_call"),
    ("dependencies=[{name: gkd_plugn}]", "dependencies.0", "ModuleNotFoundError", "gkd_plugn"),
    ("dependencies=[3]", "dependencies.0", "TypeError"),
    # models
    ("models=[1]", "", "[1] given", "model, student_model, teacher_model"),
    ("models.studnet_model=1", "", "'student_model'"),
    (f"{MODEL}=resnet18", "", "'resnet18' given", "section"),
    (f"{MODEL}.kwarg=1", "", "'kwargs'"),
    (f"{MODEL}.kwargs=", "", "nothing given", "section"),
    (f"{MODEL}.quantized=3", "", "3 given", "true or false"),
    (f"{MODEL}.sync_bn='yes'", "", "'yes' given", "true or false"),
    (f"{MODEL}.dst_ckpt=3", "", "3 given", "path"),
    (f"{MODEL}.src_ckpt=''", "", "'' given", "path"),
    (f"{MODEL}.src_ckpt=3", "", "3 given", "text", "path"),
    (f"{MODEL}.src_ckpt_classifier=extended", "", "'extended' given", "src_ckpt"),
    (f"{MODEL}.src_ckpt_classifier=nwe", "", "'nwe' given", "'new'"),
    (f"{MODEL}.key=resnet181", "", "'resnet181' is not registered", "'resnet18'"),
    (f"{MODEL}.key=", "", "nothing given"),
    (f"{MODEL}.key=densenet", "", "'densenet' is not registered", "densenet1"),  # in torchvision, a module
    # loaders
    (f"{LOAD}.dataset=1", "", "'dataset_id'"),
    (f"{LOAD}.cache_output=[1]", "", "not read any more"),
    (f"{LOAD}.dataset_id=d/trian", "", "'d/trian'", "'d/train'"),
    (f"{LOAD}.dataset_id=", "", "missing", "'d/train'"),
    (f"{LOAD}.dataset_id=[x]", "", "['x']", "'d/train'"),
    (f"{LOAD}.sampler=", "", "nothing given", "section"),
    (f"{LOAD}.sampler.kwarg=1", "", "'kwargs'"),
    (f"{LOAD}.sampler.class_or_func=RandomSampler", "", "'RandomSampler' given", "!import_get"),
    (f"{LOAD}.sampler.kwargs={{replace: true}}", f"{LOAD}.sampler.kwargs.replace", "'replacement'"),
    (f"{LOAD}.sampler.kwargs={{replacement: 1}}", f"{LOAD}.sampler.kwargs.replacement", "1 given"),
    (f"{LOAD}.collate_fn=x", "", "'x' is not registered"),
    (f"{LOAD}.requires_supp=1", "", "1 given"),
    (f"{LOAD}.dataset_wrapper={{key: CRDataset}}", f"{LOAD}.dataset_wrapper.key", "'CRDDatasetWrapper'"),
    (f"{LOAD}.kwargs=", "", "nothing given", "section"),
    (f"{LOAD}.kwargs.batchsize=1", "", "'batch_size'"),
    (f"{LOAD}.kwargs.sampler=1", "", "given already"),
    (f"{LOAD}.kwargs.shuffle=true", "", "excludes a sampler"),
    *((f"{LOAD}.kwargs.batch_size={x}", "", "whole number, 1") for x in ("0", "-1", "1.5", "'4'", "")),
    *((f"{LOAD}.kwargs.num_workers={x}", "", "whole number, 0") for x in ("-1", "1.5", "true")),
    (f"{LOAD}.kwargs.drop_last='yes'", "", "'yes' given", "true or false"),
    (f"{LOAD}.kwargs.prefetch_factor=2", f"{LOAD}.kwargs", "prefetch_factor"),
    ("test.loader=1", "", "unknown key", "'test_data_loader'"),
    ("test.log_freq=x", "", "'x' given", "whole number"),
    # train
    ("train=3", "", "3 given", "section"),
    ("train.optimiser=1", "", "'optimizer'"),
    ("train.stages=1", "", "'stage1'"),
    ("train.val_frequ=2", "", "'val_freq'"),
    *((f"train.num_epochs={x}", "", "whole number, 1 or more") for x in ("0", "1.5", "true", "")),
    *((f"train.{x}", "", "whole number, 1 or more") for x in ("log_freq=-1", "val_freq=0")),
    ("train.teacher={}", "", "no models.teacher_model", "write model"),
    ("train.pre_epoch_process=x", "", "'x' is not registered", "'refilled'"),
    ("train.post_epoch_process=", "", "nothing given"),
    # teacher, student, model of a stage
    (f"{ROLE}.forward_hooks={{}}", "", "'forward_hook'"),
    (f"{ROLE}.forward_hook.outputs=[]", "", "'output'"),
    (f"{ROLE}.forward_hook.output=embedding", "", "'embedding' given", "list of module paths"),
    (f"{ROLE}.forward_hook.input=", "", "nothing given", "list"),
    (f"{ROLE}.forward_hook.input=[1]", "", "[1] given", "list"),
    (f"{ROLE}.forward_proc=forward_batch", "", "'forward_batch' is not registered", "'forward_batch_only'"),
    (f"{ROLE}.requires_grad=1", "", "1 given", "true or false"),
    (f"{ROLE}.src_ckpt=3", "", "3 given", "path"),
    (f"{ROLE}.frozen_modules=", "", "nothing given", "list"),
    (f"{ROLE}.adaptations=[1]", "", "[1] given"),
    (f"{ROLE}.adaptations={{x: {{key: Conv2, kwargs: {{}}}}}}", f"{ROLE}.adaptations.x.key", "'Conv2'"),
    (f"{ROLE}.sequential=[+x]", "", "'+x'", "adaptations"),
    (f"{ROLE}.wrapper=DDP", "", "'DDP' given", "'DataParallel'"),
    (f"{ROLE}.wrapper={{key: DataParalel}}", f"{ROLE}.wrapper.key", "'DataParallel'"),
    (f"{ROLE}.wrapper={{kwarg: 1}}", f"{ROLE}.wrapper.kwarg", "'kwargs'"),
    (f"{ROLE}.auxiliary_model_wrapper=", "", "nothing given", "section"),
    (f"{ROLE}.auxiliary_model_wrapper.key=EmptyModul", "", "'EmptyModule'"),
    # optimizer and scheduler
    (f"{OPTIM}.args=[]", "", "'kwargs'"),
    (f"{OPTIM}.key=SDG", "", "'SDG' is not registered", "'SGD'"),
    (f"{OPTIM}.kwargs.mometum=1", "", "'momentum'"),
    (f"{OPTIM}.kwargs.params=1", "", "given already"),
    *((f"{OPTIM}.kwargs.lr={x}", "", "given; must be a finite") for x in (*NO_NUMBER, "-0.1", "")),
    *((f"{OPTIM}.kwargs.momentum={x}", "", "a number from 0 to 1") for x in (*NO_NUMBER, "-1", "5", "x")),
    *((f"{OPTIM}.kwargs.weight_decay={x}", "", "finite number, 0 or more") for x in (*NO_NUMBER, "-1")),
    (f"{OPTIM}.kwargs.lr=1.0e+30", "", "1e+30 given", "at most 1e+09"),
    (f"{OPTIM}.kwargs.weight_decay=1000000001", "", "1000000001 given", "at most 1e+09"),
    (f"{OPTIM}.kwargs.dampening=x", "", "'x' given", "finite number"),
    (f"{OPTIM}.kwargs.nesterov='yes'", "", "'yes' given", "true or false"),
    (f"{OPTIM}={{key: Adam, kwargs: {{betas: [0.9, 1.5]}}}}", OPTIM, "ValueError", "1.5"),
    (
        f"{OPTIM}={{key: SGD, kwargs: {{}}, filters_params: false}}",
        OPTIM,
        "TypeError",
    ),  # torch takes parameters, no module
    (f"{OPTIM}.filters_params=1", "", "1 given"),
    *((f"{OPTIM}.grad_accum_step={x}", "", "whole number, 1 or more") for x in ("0", "1.5")),
    *((f"{OPTIM}.max_grad_norm={x}", "", "number above 0") for x in ("two", "-2.0", "0", "true", ".nan", ".inf")),
    (f"{OPTIM}.module_wise_kwargs=3", "", "3 given", "list"),
    (f"{OPTIM}.module_wise_kwargs.0=fc", "", "'fc' given", "section"),
    (f"{OPTIM}.module_wise_kwargs.0.module=", "", "nothing given"),
    (f"{OPTIM}.module_wise_kwargs.0.is_teacher=true", "", "unknown key"),
    (f"{OPTIM}.module_wise_kwargs.0.kwargs.lr='1'", "", "'1' given"),
    (f"{OPTIM}.module_wise_kwargs.0.kwargs.momentun=1", "", "'momentum'"),
    (f"{OPTIM}.module_wise_configs=[]", "", "'module_wise_kwargs'"),
    (f"{PLAN}.step=1", "", "unknown key"),
    (f"{PLAN}.scheduling_step=-1", "", "-1 given", "whole number, 0 or more"),
    (f"{PLAN}.key=SepLR", "", "'SepLR' is not registered", "'StepLR'"),
    (f"{PLAN}.kwargs={{}}", "", "'step_size' is missing"),
    (f"{PLAN}.kwargs=", "", "nothing given", "section"),
    *((f"{PLAN}.kwargs.step_size={x}", "", "a whole number") for x in ("1.5", "'1'", "true", "")),
    (f"{PLAN}.kwargs.step_size=0", PLAN, "ZeroDivisionError"),
    (f"{PLAN}={{key: CosineAnnealingLR, kwargs: {{T_max: 0}}}}", PLAN, "ZeroDivisionError"),
    (f"{PLAN}={{key: CosineAnnealingLR, kwargs: {{T_max: '9'}}}}", f"{PLAN}.kwargs.T_max", "'9' given"),
    (f"{PLAN}={{key: MultiStepLR, kwargs: {{milestones: '9'}}}}", f"{PLAN}.kwargs.milestones", "a list"),
    (f"{PLAN}={{key: OneCycleLR, kwargs: {{max_lr: 0.1, total_steps: 1}}}}", PLAN, "step 2 times"),
    # criterion
    ("train.criterion.kwarg={}", "", "'kwargs'"),
    ("train.criterion.key=WeightedSum", "", "'WeightedSum' is not registered", "'WeightedSumLoss'"),
    ("train.criterion.kwargs={sub_term: {}}", "train.criterion.kwargs.sub_term", "'sub_terms'"),
    ("train.criterion.func2extract_model_loss=x", "", "'x' is not registered"),
    ("train.criterion.kwargs.model_term={weight: x}", "train.criterion.kwargs.model_term.weight", "'x'"),
    (f"{TERM}.factor=1", "", "unknown key", "'weight'"),
    *((f"{TERM}.weight={x}", "", "must be a finite number") for x in (*NO_NUMBER, "", "1.0e+38")),
    (f"{TERM}.criterion_wrapper=", "", "missing", "'CrossEntropyLoss'", "'SimpleLossWrapper'"),
    (f"{TERM}.criterion_wrapper.key=SimpleLoss", "", "'SimpleLossWrapper'"),
    ("train.criterion.kwargs={1: 1}", "train.criterion.kwargs.1", "'sub_terms'"),
    ("train.criterion.kwargs={zzz: 1}", "train.criterion.kwargs.zzz", "'sub_terms'"),
    (f"{TERM}.criterion_wrapper.kwargs.zzz=1", "", "unknown argument", "'input', 'target'"),
    (f"{TERM}.criterion_wrapper.kwargs.input.module_pth=x", "", "'module_path'"),
    (f"{TERM}.criterion_wrapper.kwargs.input.io=outputs", "", "'outputs' given", "'output'"),
    (f"{TERM}.criterion.key=CrossEntropyLos", "", "'CrossEntropyLoss'"),
    (f"{TERM}.criterion.kwargs.reduce_to=1", "", "unknown argument"),
    (f"{TERM}.criterion.kwargs.label_smoothing='0.1'", "", "'0.1' given", "finite number"),
    *((f"{TERM}.criterion={KD % x}", f"{TERM}.criterion.kwargs.temperature", "0.0001") for x in SMALL),
    # the other sections
    ("device=cpu", "", "'cpu' given", "channels_last, compile, default, precision, teacher"),
    ("device.devault=cpu", "", "'default'"),
    ("device.default=gpu", "", "'gpu' given", "cuda:<number>"),
    ("device.teacher=cuda:x", "", "'cuda:x' given"),
    ("device.precision=fp32", "", "'fp32' given", "'fp16'"),
    ("device.precision=yes", "", "true given"),
    ("device.teacher_dtype=half", "", "'half' given", "'bf16', 'float32', 'fp16'"),
    ("device.compile=yes", "", "true given", "'both', 'student', 'teacher'"),
    ("device.channels_last=1", "", "1 given", "true or false"),
    ("teacher_cache={views: 2}", "", "no models.teacher_model"),
    ("tracker={engin: wandb}", "tracker.engin", "'engine'"),
    ("tracker={engine: tensorboard}", "tracker.engine", "'tensorboard' given", "'trackio', 'wandb'"),
    ("tracker={kwargs: 1}", "tracker.kwargs", "1 given", "section"),
]
REFUSED_IN_STAGES = [
    ("models.teacher_model.src_ckpt_classifier=centres", "", "'centres' given", "'extended', 'new'"),
    (f"{STUDENT}.kwargs.model_name=resnet81", "", "'resnet81'", "resnet18"),
    ("models.teacher_model.dst_ckpt=t.pt", "", "not read", "student"),
    (f"{STUDENT}.kwargs=", "", "nothing given", "section"),
    (f"{STUDENT}.kwargs={{}}", f"{STUDENT}.kwargs", "'model_name' is missing"),
    (f"{STUDENT}.kwargs.modl_name=1", "", "'model_name'"),
    (f"{STUDENT}.kwargs.drop_rte=0.1", "", "'drop_rate'"),
    (f"{TWO}.num_epoch=1", "", "'num_epochs'"),
    (f"{TWO}=", "", "nothing given", "section"),
    (f"{TWO}.model={{}}", "", "a models.teacher_model", "teacher and student"),
    ("train.optimizer={}", "", "put it into stage1, stage2"),
    ("train.stage01={}", "", "'stage1'"),
    ("train.student.forward_proc=x", "", "unknown key", "'dst_ckpt'"),
    (f"{ONE}.student.auxiliary_model_wrapper.sequential=[+y]", "", "'+y'", "adaptations"),
    (f"{ONE}.optimizer.module_wise_kwargs=[]", "", "'module_wise_configs'"),
    (f"{TWO}.optimizer=", "", "nothing given"),
    (f"{TWO}.scheduler={{key: StepLR, kwargs: {{step_size: 0}}}}", f"{TWO}.scheduler", "ZeroDivisionError"),
    ("teacher_cache={views: 0}", "teacher_cache.views", "0 given", "whole number, 1 or more"),
    ("teacher_cache={folder: x}", "teacher_cache.views", "missing"),
    ("teacher_cache={views: 2, foldr: x}", "teacher_cache.foldr", "'folder'"),
    ("teacher_cache={views: 2, folder: 3}", "teacher_cache.folder", "3 given", "path"),
    ('teacher_cache={views: 2, folder: "a\\0b"}', "teacher_cache.folder", "given", "path"),
    ("teacher_cache={views: 2, seed: -1}", "teacher_cache.seed", "-1 given"),
]


@pytest.mark.parametrize(
    ("text", "change", "path", "parts"),
    [(PLAIN_TRAINING, *row[:2], row[2:]) for row in REFUSED]
    + [(STAGES, *row[:2], row[2:]) for row in REFUSED_IN_STAGES],
)
def test_what_is_refused(text, change, path, parts):
    lines = found(text, change)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{path or change.partition('=')[0]}: ")
    assert [part for part in parts if part not in lines[0]] == [], lines


@pytest.mark.parametrize(
    ("path", "lacking"),
    [
        *((path, path) for path in ("models", "datasets", "train", f"{MODEL}.kwargs", "train.num_epochs", LOAD, ROLE)),
        *((path, path) for path in (f"{LOAD}.kwargs", f"{ROLE}.forward_proc", "test.test_data_loader", OPTIM)),
        *((path, path) for path in (f"{OPTIM}.kwargs", "train.criterion", f"{TERM}.criterion", f"{TERM}.weight")),
        *((path, path) for path in (f"{TERM}.criterion.kwargs", f"{TERM}.criterion_wrapper.kwargs.input.io")),
        *((path, path) for path in (f"{LOAD}.sampler", f"{PLAN}.kwargs", f"{OPTIM}.key", f"{LOAD}.dataset_id")),
        (f"{LOAD}.sampler.class_or_func", f"{LOAD}.sampler.class_or_func"),
        (MODEL, "models.student_model"),
        ("datasets.d/train", "datasets"),
    ],
)
def test_what_must_be_there(path, lacking):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(line.startswith(f"{lacking}: ") for line in lines), lines
    assert not [line for line in lines if "Error" in line]


def test_each_stage_needs_its_own_sections():
    lines = found(STAGES, drop=[f"{TWO}.teacher", f"{TWO}.student", f"{TWO}.criterion"])
    assert [line.partition(":")[0] for line in lines] == [
        f"{TWO}.{name}" for name in ("teacher", "student", "criterion")
    ]
    assert [line.partition(";")[0] for line in found(STAGES, drop=[ONE]) if "stage1" in line] == [
        "train: stage1 is missing"
    ]
    assert found(STAGES, "train.stage4={}")[-1].startswith("train: stage3 is missing")


ACCEPTED = [
    "dependencies=gkd_plugin",
    "dependencies=",
    f"{MODEL}.src_ckpt=https://example.org/x.pt",
    "models.model={key: resnet18, kwargs: {num_classes: 3}, quantized: true}",
    "models.model={key: anything, repo_or_dir: owner/repo, kwargs: {x: 1}}",
    f"{LOAD}.batch_sampler=",
    f"{LOAD}.dataset_wrapper={{}}",
    f"{LOAD}.kwargs.prefetch_factor=",
    f"{ROLE}.wrapper={{key: DistributedDataParallel, kwargs: {{}}}}",
    f"{ROLE}.auxiliary_model_wrapper={{}}",
    f"{ROLE}.auxiliary_model_wrapper={{key: , kwargs: {{a: 1}}}}",
    f"{OPTIM}.max_grad_norm=",
    f"{OPTIM}.max_grad_norm=1.0e+9",
    f"{OPTIM}.kwargs={{lr: 0, momentum: 1, weight_decay: 1}}",
    f"{OPTIM}.kwargs.lr=!import_call {{key: torch.ones, init: {{args: [1]}}}}",
    f"{PLAN}=",
    f"{PLAN}={{}}",
    f"{PLAN}={{key: ReduceLROnPlateau, kwargs: {{mode: max}}}}",
    f"{PLAN}={{key: OneCycleLR, kwargs: {{max_lr: [0.1], total_steps: 2}}}}",
    f"{PLAN}={{key: OneCycleLR, kwargs: {{max_lr: 0.1, total_steps: 1}}, scheduling_step: 1}}",
    f"{PLAN}={{key: poly_lr_scheduler, kwargs: {{num_iterations: 1, num_epochs: 2}}}}",
    f"{TERM}.criterion={KD % 4}",
    f"{TERM}.criterion={{key: VIDLoss, kwargs: {{feature_pairs: {{}}, margin: 1}}}}",  # ignored
    "device.precision=no",
    "device={precision: 'no', default: auto, teacher: }",
    "device={default: mps}",
    "device={teacher_dtype: bf16, channels_last: true, compile: student}",
    "device=",
    "teacher_cache=",
    "tracker={engine: wandb, kwargs: {project: x}}",
]
ACCEPTED_IN_STAGES = [
    "models.teacher_model.src_ckpt_classifier=",
    f"{STUDENT}.src_ckpt_classifier=centres",
    f"{STUDENT}.kwargs.drop_rate=0.1",
    f"{STUDENT}.kwargs.model_name=hf-hub:owner/model",
    f"{TWO}.optimizer={{}}",
    "teacher_cache={views: 1, seed: 0, folder: }",
]


@pytest.mark.parametrize(
    ("text", "change"),
    [(PLAIN_TRAINING, change) for change in ACCEPTED] + [(STAGES, change) for change in ACCEPTED_IN_STAGES],
)
def test_what_is_accepted(text, change):
    assert found(text, change) == []


@pytest.mark.parametrize(
    "path", ["dependencies", "test", "train.val_data_loader", "train.log_freq", PLAN, f"{ROLE}.forward_hook"]
)
def test_what_may_be_left_out(path):
    assert found(PLAIN_TRAINING, drop=[path]) == []


def test_auxiliary_wrapper_gets_torchdistills_arguments(monkeypatch):
    class Dummy:
        def __init__(self, teacher_model, device, device_ids, distributed, width, depth=1):
            pass

    monkeypatch.setitem(AUXILIARY_MODEL_WRAPPER_DICT, "dummy", Dummy)
    where = f"{ONE}.teacher.auxiliary_model_wrapper"
    assert found(STAGES, f"{where}={{key: dummy, kwargs: {{width: 1}}}}") == []
    unknown, doubled, missing = found(STAGES, f"{where}={{key: dummy, kwargs: {{witdh: 1, device: cpu}}}}")
    assert unknown.startswith(f"{where}.kwargs.witdh: ")
    assert "(allowed: 'depth', 'width')" in unknown
    assert doubled.startswith(f"{where}.kwargs.device: given already")
    assert missing == f"{where}.kwargs: argument 'width' is missing"


def test_checkpoints_that_exist_or_will(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("models.model.src_ckpt", "train.model.src_ckpt"):
        change = f"{path}=./runs/teacher.pt"
        assert [line.partition(";")[0] for line in found(PLAIN_TRAINING, change)] == [
            f"{path}: no such file: ./runs/teacher.pt"
        ]
        assert found(PLAIN_TRAINING, change, produced=["runs/teacher.pt"]) == []
        assert found(PLAIN_TRAINING, change, needs_checkpoints=False) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher.pt").touch()
    assert found(PLAIN_TRAINING, change) == []


def test_batch_sampler_excludes_what_it_decides_itself():
    sampler = "train.train_data_loader.batch_sampler={key: BatchSampler, kwargs: {batch_size: 2, drop_last: true}}"
    lines = found(PLAIN_TRAINING, sampler, "train.train_data_loader.kwargs.shuffle=true")
    assert [line.partition(":")[0] for line in lines] == [
        f"train.train_data_loader.kwargs.{key}" for key in ("batch_size", "shuffle")
    ]
    assert found(PLAIN_TRAINING, sampler, drop=["train.train_data_loader.kwargs.batch_size"]) == []
    lines = found(PLAIN_TRAINING, sampler.replace(", drop_last: true", ""))
    assert "train.train_data_loader.batch_sampler.kwargs: argument 'drop_last' is missing" in lines
    lines = found(PLAIN_TRAINING, sampler.replace("BatchSampler", "BatchSamplr"))
    assert any(
        ".batch_sampler.key: 'BatchSamplr' is not registered; did you mean 'BatchSampler'" in line for line in lines
    )
    assert any(
        ".batch_sampler.kwargs.batch_size: 0 given" in line for line in found(PLAIN_TRAINING, sampler.replace("2", "0"))
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("temperature: 0 given"), "temperature: 0 given"),
        (ConfigError("one\ntwo"), "two"),
        (TypeError("no such argument"), "TypeError: no such argument"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_a_loss_checks_its_own_arguments(monkeypatch, error, line):
    def dummy(**kwargs):
        raise error

    monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", dummy)
    change = "train.criterion={key: dummy, kwargs: {a: 1}}"
    assert f"train.criterion: {line}" in found(PLAIN_TRAINING, change)
    assert found(PLAIN_TRAINING, change.replace("a: 1", "a: !import_get {key: os.sep}")) == []


def test_trials_change_neither_the_tree_nor_the_seed(monkeypatch):
    def loss(terms):
        terms.clear()
        return nn.Linear(1, 1)

    def optimizer(params, lr, bounds):
        bounds.clear()
        return torch.optim.SGD([*params, nn.Linear(1, 1).weight], lr)

    monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", loss)
    monkeypatch.setitem(OPTIM_DICT, "dummy", optimizer)
    tree = parse(PLAIN_TRAINING, "test")
    for path, value in (
        ("train.criterion", {"key": "dummy", "kwargs": {"terms": {"a": 1}}}),
        ("train.optimizer", {"key": "dummy", "kwargs": {"lr": 0.1, "bounds": [1, 2]}}),
    ):
        tree = changed(tree, path.split("."), value)
    before, state = copy.deepcopy(tree), torch.random.get_rng_state()
    assert problems(tree) == []
    assert tree == before
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_later_stage_schedules_the_optimizer_that_it_keeps():
    change = "train.stage2.scheduler={key: OneCycleLR, kwargs: {max_lr: [0.1, 0.2], total_steps: 9}}"
    [line] = found(STAGES, change)
    assert line.startswith("train.stage2.scheduler: ValueError: ")
    assert found(STAGES, change.replace("[0.1, 0.2]", "[0.1]")) == []


def test_a_schedule_is_not_tried_with_the_optimizer_of_an_earlier_stage():
    changes = (
        "train.stage2.optimizer={key: SDG, kwargs: {}}",
        "train.stage2.scheduler={key: StepLR, kwargs: {step_size: 0}}",
    )
    assert [line.partition(":")[0] for line in found(STAGES, *changes)] == ["train.stage2.optimizer.key"]


def test_a_stage_of_refilled_needs_an_optimizer_of_its_own():
    change = "train.stage2.criterion={key: refilled, kwargs: {stage: classifier}}"
    [line] = found(STAGES, change)
    assert line.startswith("train.stage2.optimizer: missing")
    assert found(STAGES, change, "train.stage2.optimizer={key: SGD, kwargs: {}}") == []
