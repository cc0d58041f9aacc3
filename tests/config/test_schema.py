"""The table: each row changes a valid configuration and must give one line with the path and these parts."""

import copy
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torchdistill.losses.registry import HIGH_LEVEL_LOSS_DICT
from torchdistill.optim.registry import OPTIM_DICT

from gkd_plugin.config.config import problems
from gkd_plugin.errors import ConfigError
from tests.config.samples import PLAIN_TRAINING, STAGES, found, parse

MODEL, LOAD, ROLE = "models.model", "train.train_data_loader", "train.model"
OPTIM, PLAN, TERM = "train.optimizer", "train.scheduler", "train.criterion.kwargs.sub_terms.ce"
OBJECT, WRAPPER = "datasets.d/train", f"{TERM}.criterion_wrapper"
ONE, TWO, STUDENT = "train.stage1", "train.stage2", "models.student_model"
KD = (
    "{key: KDLoss, kwargs: {student_module_path: '.', student_module_io: output, teacher_module_path: '.', "
    "teacher_module_io: output, temperature: %s, alpha: 0.5}}"
)
VID = "{key: VIDLoss, kwargs: {feature_pairs: {}, margin: %s}}"
COSINE = "{key: CosineAnnealingLR, kwargs: {T_max: %s, eta_min: %s}}"
ONE_CYCLE = "{key: OneCycleLR, kwargs: {max_lr: %s, total_steps: %s}}"
TEACHER, AUXILIARY = (f"{ONE}.{role}.auxiliary_model_wrapper" for role in ("teacher", "student"))
PROJECTED = "{key: projected_student, kwargs: {%s}}"
SUBSET = "!import_call {key: torch.utils.data.Subset, init: {kwargs: {%s}}}"
JOINT = "{key: refilled, kwargs: {stage: joint, %s: %s}}"
REFILLED, SGD = "{key: refilled, kwargs: {stage: classifier}}", "{key: %s, kwargs: {}}"
VALIDATION = "{dataset_id: d/train, sampler: {class_or_func: !import_get {key: builtins.list}}, kwargs: {}}"
NO_FILTER = "{key: SGD, kwargs: {}, filters_params: false}"
BAD_NUMBERS = ("'0.1'", "true", "[1]", ".nan", ".inf", "")

VALUES = f"""
!import_call            : datasets.d/x= datasets.d/x=3
section with kwargs     : {MODEL}=resnet18
section                 : {MODEL}.kwargs= {LOAD}.sampler= {LOAD}.kwargs= {PLAN}.kwargs= {ROLE}.auxiliary_model_wrapper=
section                 : train=3 {OPTIM}.module_wise_kwargs.0=fc {ROLE}.adaptations=[1]
model, student_model, t : models=[1]
true or false           : {MODEL}.quantized=3 {MODEL}.sync_bn='yes' {LOAD}.requires_supp=1 {ROLE}.requires_grad=1
true or false           : {LOAD}.kwargs.drop_last='yes' {OPTIM}.kwargs.nesterov='yes' {OPTIM}.filters_params=1
true or false           : {LOAD}.sampler.kwargs.replacement=1 device.channels_last=1
true or false           : {MODEL}.kwargs.pretrained=[x]
text: the path          : {MODEL}.dst_ckpt=3 {MODEL}.src_ckpt='' {MODEL}.src_ckpt=3 {ROLE}.src_ckpt=3
src_ckpt                : {MODEL}.src_ckpt_classifier=extended {MODEL}.src_ckpt_prefix='encoder_q'
the class itself        : {LOAD}.sampler.class_or_func=RandomSampler
whole number, 1 or more : {LOAD}.kwargs.batch_size=0 {LOAD}.kwargs.batch_size=-1 {LOAD}.kwargs.batch_size=1.5
whole number, 1 or more : {LOAD}.kwargs.batch_size='4' {LOAD}.kwargs.batch_size= test.log_freq=x
whole number, 1 or more : train.num_epochs=0 train.num_epochs=1.5 train.num_epochs=true train.num_epochs=
whole number, 1 or more : train.log_freq=-1 train.val_freq=0 {OPTIM}.grad_accum_step=0 {OPTIM}.grad_accum_step=1.5
number from 0 to 999    : {LOAD}.kwargs.num_workers=-1 {LOAD}.kwargs.num_workers=1.5 {LOAD}.kwargs.num_workers=true
number from 0 to 999    : {LOAD}.kwargs.num_workers=100000
whole number, 0 or more : {PLAN}.scheduling_step=-1
a whole number          : {PLAN}.kwargs.step_size=1.5 {PLAN}.kwargs.step_size='1' {PLAN}.kwargs.step_size=true
a whole number, 1 or mo : {PLAN}.kwargs.step_size= {PLAN}.kwargs.step_size=0 {PLAN}.kwargs.step_size=-5
a whole number from 0 t : {MODEL}.kwargs.num_classes=-1 {MODEL}.kwargs.num_classes=1000001
a finite number         : {OPTIM}.kwargs.lr=-0.1 {OPTIM}.kwargs.weight_decay=-1 {PLAN}.kwargs.gamma=-1
a finite number         : {OPTIM}.module_wise_kwargs.0.kwargs.lr='1' {TERM}.criterion.kwargs.label_smoothing='0.1'
a finite number         : train.criterion.kwargs.model_term.weight=x
at most 1e+09           : {OPTIM}.kwargs.lr=1.0e+30 {OPTIM}.kwargs.weight_decay=1000000001 {TERM}.weight=1.0e+38
at most 1e+09           : test.test_data_loader.kwargs.timeout=1.0e+30
a number from 0 to 1    : {OPTIM}.kwargs.momentum=-1 {OPTIM}.kwargs.momentum=5 {OPTIM}.kwargs.momentum=x
a number from 0 to 1    : {OPTIM}.kwargs.dampening=-1 {OPTIM}.kwargs.dampening=x
a number above 0        : {OPTIM}.max_grad_norm=two {OPTIM}.max_grad_norm=-2.0 {OPTIM}.max_grad_norm=0
a number above 0        : {OPTIM}.max_grad_norm=true {OPTIM}.max_grad_norm=.nan {OPTIM}.max_grad_norm=.inf
e.g. ['embedding']      : {ROLE}.forward_hook.output=embedding {ROLE}.forward_hook.input= {ROLE}.forward_hook.input=[1]
e.g. ['layer4', 'fc']   : {ROLE}.frozen_modules=
a list                  : {OPTIM}.module_wise_kwargs=3 {OBJECT}.init.args=3
section                 : {OBJECT}.init=3 {OBJECT}.init.kwargs=
a text                  : {OPTIM}.module_wise_kwargs.0.module= {MODEL}.src_ckpt_prefix=3
'DataParallel'          : {ROLE}.wrapper=DDP
'new'                   : {MODEL}.src_ckpt_classifier=nwe
'output'                : {WRAPPER}.kwargs.input.io=outputs
default, precision      : device=cpu
cuda:<number>           : device.default=gpu device.teacher=cuda:x
'fp16'                  : device.precision=fp32 device.precision=true
'bf16', 'float32', 'fp  : device.teacher_dtype=half
'both', 'student', 'te  : device.compile=true
'trackio', 'wandb'      : tracker.engine=tensorbord
section                 : tracker.kwargs=1
none of the             : {MODEL}.key=
default_post_epoch_proc : train.post_epoch_process=
"""
"""What the line says is allowed, and changes whose value it repeats."""
MISSPELT = f"""
trian=1 train, models.studnet_model=1 student_model, {MODEL}.kwarg=1 kwargs, {MODEL}.key=resnet181 resnet18
{MODEL}.key=densenet densenet161, {LOAD}.dataset=1 dataset_id, {LOAD}.dataset_id=d/trian d/train
{LOAD}.dataset_id= d/train, {LOAD}.dataset_id=[x] d/train, {LOAD}.sampler.kwarg=1 kwargs
{LOAD}.sampler.kwargs.replace=true replacement
{LOAD}.dataset_wrapper.key=CRDataset CRDDatasetWrapper, {LOAD}.kwargs.batchsize=1 batch_size
test.loader=1 test_data_loader, train.optimiser=1 optimizer, train.stages=1 stage1, train.val_frequ=2 val_freq
train.pre_epoch_process=x refilled, {ROLE}.forward_hooks=1 forward_hook, {ROLE}.forward_hook.outputs=1 output
{ROLE}.forward_proc=forward_batch forward_batch_only, {ROLE}.wrapper.key=DataParalel DataParallel
{ROLE}.wrapper.kwarg=1 kwargs, {ROLE}.auxiliary_model_wrapper.key=EmptyModul EmptyModule, {OPTIM}.args=1 kwargs
{OPTIM}.key=SDG SGD, {OPTIM}.kwargs.mometum=1 momentum, {OPTIM}.module_wise_kwargs.0.kwargs.momentun=1 momentum
{OPTIM}.module_wise_kwargs.0.is_teacher=true module, {OPTIM}.module_wise_configs=1 module_wise_kwargs
{PLAN}.step=1 scheduling_step, {PLAN}.key=SepLR StepLR, train.criterion.kwarg=1 kwargs
train.criterion.key=WeightedSum WeightedSumLoss, train.criterion.kwargs.sub_term=1 sub_terms
train.criterion.kwargs.zzz=1 sub_terms, {TERM}.factor=1 weight, {WRAPPER}.key=SimpleLoss SimpleLossWrapper
{WRAPPER}.kwargs.zzz=1 target, {WRAPPER}.kwargs.input.module_pth=x module_path
{TERM}.criterion.key=CrossEntropyLos CrossEntropyLoss, {TERM}.criterion.kwargs.reduce_to=1 reduction
{OBJECT}.inti=1 init, {OBJECT}.init.kwarg=1 kwargs, device.devault=cpu default, tracker.engin=wandb engine
"""
"""Changes, and the name that the line offers."""
REFUSED = [  # change, path of the line where it is not the changed one, parts of the line
    *((f"{OPTIM}.kwargs.lr={x}", "", "given; must be a finite number") for x in BAD_NUMBERS),
    *((f"{OPTIM}.kwargs.momentum={x}", "", "a number from 0 to 1") for x in BAD_NUMBERS),
    *((f"{OPTIM}.kwargs.weight_decay={x}", "", "finite number, 0 or more") for x in BAD_NUMBERS),
    *((f"{TERM}.weight={x}", "", "must be a finite number") for x in BAD_NUMBERS),
    *((f"{TERM}.criterion={KD % x}", f"{TERM}.criterion.kwargs.temperature", "0.0001") for x in ("0", "1.0e-30", "x")),
    ("datasets.d/x={key: builtins.dict}", "", "a section given", "!import_call"),
    ("dependencies=[{name: gkd_plugn}]", "dependencies.0", "ModuleNotFoundError", "gkd_plugn"),
    (f"{OBJECT}.key=builtins.dikt", OBJECT, "builtins.dikt", "'dict'"),
    (f"{OBJECT}.init.kwargs.b=!import_get {{key: oss.sep}}", "", "no module named 'oss'"),
    (f"{OBJECT}={SUBSET % 'indices: []'}", f"{OBJECT}.init.kwargs", "argument 'dataset' is missing"),
    (f"{OBJECT}={SUBSET % 'indices: [], dataset: 1, a: 1'}", f"{OBJECT}.init.kwargs.a", "unknown argument"),
    (f"{OBJECT}=!import_call_method {{package: builtins.dict.fromkey}}", "", "'fromkeys'"),
    (f"{OPTIM}.kwargs.lr=1e-3", "", "'1e-3'", "1.0e-3"),
    (f"{LOAD}.sampler.kwargs={{num_samples: 1e-3}}", f"{LOAD}.sampler.kwargs.num_samples", "'1e-3'", "1.0e-3"),
    (f"{TERM}.criterion={VID % '.nan'}", f"{TERM}.criterion.kwargs.margin", "nan given"),
    ("dependencies=[3]", "dependencies.0", "TypeError"),
    (f"{LOAD}.cache_output=[1]", "", "not read any more"),
    (f"{LOAD}.kwargs.sampler=1", "", "given already"),
    (f"{LOAD}.kwargs.shuffle=true", "", "excludes a sampler"),
    (f"{LOAD}.kwargs.prefetch_factor=2", f"{LOAD}.kwargs", "prefetch_factor"),
    ("train.teacher={}", "", "no models.teacher_model", "write model"),
    (f"{ROLE}.adaptations={{x: {{key: Conv2, kwargs: {{}}}}}}", f"{ROLE}.adaptations.x.key", "'Conv2'"),
    (f"{ROLE}.sequential=[+x]", "", "'+x'", "adaptations"),
    (f"{OPTIM}.kwargs.params=1", "", "given already"),
    (f"{OPTIM}={{key: Adam, kwargs: {{betas: [0.9, 1.5]}}}}", OPTIM, "ValueError", "1.5"),
    (f"{OPTIM}={NO_FILTER}", OPTIM, "TypeError"),  # torch takes parameters, no module
    (f"{PLAN}.kwargs={{}}", "", "'step_size' is missing"),
    *((f"{PLAN}={COSINE % (x, 0)}", f"{PLAN}.kwargs.T_max", f"{x} given", "1 or more") for x in (0, -5)),
    *((f"{PLAN}={COSINE % (9, x)}", f"{PLAN}.kwargs.eta_min", f"{x} given") for x in (-5, "'x'")),
    (f"{PLAN}={ONE_CYCLE % ('[0.1, -1]', 9)}", f"{PLAN}.kwargs.max_lr", "[0.1, -1] given"),
    (f"{PLAN}={{key: LambdaLR, kwargs: {{lr_lambda: x}}}}", PLAN, "TypeError"),
    (f"{PLAN}={{key: CosineAnnealingLR, kwargs: {{T_max: '9'}}}}", f"{PLAN}.kwargs.T_max", "'9' given"),
    (f"{PLAN}={{key: MultiStepLR, kwargs: {{milestones: '9'}}}}", f"{PLAN}.kwargs.milestones", "a list"),
    (f"{PLAN}={{key: ReduceLROnPlateau, kwargs: {{}}}}", f"{PLAN}.kwargs.mode", "must be 'max'"),
    (f"{PLAN}={ONE_CYCLE % (0.1, 1)}", f"{PLAN}.kwargs.total_steps", "num_epochs is 2"),
    (f"{PLAN}={ONE_CYCLE % (0.1, '10, pct_start: 0.1')}", f"{PLAN}.kwargs.pct_start", "its part of 10 steps is one"),
    (f"{LOAD}.collate_fn=x", "", "'x' is not registered"),
    ("train.criterion.func2extract_model_loss=x", "", "'x' is not registered"),
    ("train.criterion.kwargs={1: 1}", "train.criterion.kwargs.1", "'sub_terms'"),
    (f"{WRAPPER}=", "", "missing", "'CrossEntropyLoss'", "'SimpleLossWrapper'"),
    ("teacher_cache={views: 2}", "", "no models.teacher_model"),
    (f"{MODEL}.src_ckpt_classifier=centres", "", "'centres' given", "untrained", "pretrained: True"),
]
REFUSED_IN_STAGES = [
    ("train.stage1.scheduler={key: ReduceLROnPlateau, kwargs: {mode: max}}", "train.stage1.scheduler", "val_freq 1"),
    ("train.keep=first", "", "'first' given", "allowed: 'best', 'last'"),
    ("train.keep=best", "", "val_data_loader", "last stage"),
    ("train.patience=3", "", "val_data_loader", "last stage"),
    ("train.patience=0", "", "0 given", "1 or more"),
    ("models.teacher_model.src_ckpt_classifier=centres", "", "'centres' given", "'extended', 'new'"),
    (f"{STUDENT}.kwargs.model_name=resnet81", "", "'resnet81'", "resnet18"),
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
    (f"{AUXILIARY}.sequential=[+y]", "", "'+y'", "adaptations"),
    (f"{AUXILIARY}={PROJECTED % ''}", f"{AUXILIARY}.kwargs", "'projection' is missing"),
    (f"{AUXILIARY}={PROJECTED % 'projection: 1, device: cpu'}", f"{AUXILIARY}.kwargs.device", "given already"),
    (f"{AUXILIARY}={PROJECTED % 'projection: 1, x: 1'}", f"{AUXILIARY}.kwargs.x", "allowed: 'embedding', 'projection'"),
    (f"{TEACHER}={{key: refilled_teacher, kwargs: {{teacher_model: 1}}}}", f"{TEACHER}.kwargs.teacher_model", "given"),
    (f"{ONE}.optimizer.module_wise_kwargs=[]", "", "'module_wise_configs'"),
    (f"{TWO}.optimizer=", "", "nothing given"),
    *(
        (f"{ONE}.criterion={JOINT % (name, x)}", f"{ONE}.criterion.kwargs.{name}", "given; must be", "0.0001")
        for name in ("temperature", "student_temperature", "relationship_temperature")
        for x in ("1.0e-30", "'1'")
    ),
    (f"{ONE}.criterion={JOINT % ('adaptive', 'x')}", f"{ONE}.criterion", "adaptive"),
    (f"{ONE}.criterion={JOINT % ('weight', '.nan')}", f"{ONE}.criterion.kwargs.weight", "nan given"),
    (f"{TWO}.scheduler={ONE_CYCLE % ([0.1, 0.2], 9)}", f"{TWO}.scheduler", "ValueError"),
    (f"{TWO}.criterion={REFILLED}", f"{TWO}.optimizer", "missing; every stage with criterion 'refilled' needs its own"),
    ("teacher_cache={views: 0}", "teacher_cache.views", "0 given", "whole number, 1 or more"),
    ("teacher_cache={folder: x}", "teacher_cache.views", "missing"),
    ("teacher_cache={views: 2, foldr: x}", "teacher_cache.foldr", "'folder'"),
    ("teacher_cache={views: 2, folder: 3}", "teacher_cache.folder", "3 given", "path"),
    ('teacher_cache={views: 2, folder: "a\\0b"}', "teacher_cache.folder", "given", "path"),
    ("teacher_cache={views: 2, seed: -1}", "teacher_cache.seed", "-1 given"),
]


def refused():
    """Text, change, path and parts of all rows."""
    for allowed, _, changes in (line.partition(" : ") for line in VALUES.strip().splitlines()):
        for change in changes.split():
            value = parse(change.partition("=")[2])
            shown = "nothing" if value is None else "true" if value is True else repr(value)
            yield PLAIN_TRAINING, change, "", (f"{shown} given", allowed.strip())
    for change, offered in (row.split() for row in MISSPELT.strip().replace("\n", ", ").split(", ")):
        yield PLAIN_TRAINING, change, "", (f"'{offered}'",)
    for text, rows in ((PLAIN_TRAINING, REFUSED), (STAGES, REFUSED_IN_STAGES)):
        yield from ((text, change, path, parts) for change, path, *parts in rows)


@pytest.mark.parametrize(("text", "change", "path", "parts"), refused())
def test_what_is_refused(text, change, path, parts):
    lines = found(text, change)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{path or change.partition('=')[0]}: ")
    assert [part for part in parts if part not in lines[0]] == [], lines


NEEDED = f"""
models datasets train {MODEL}.kwargs train.num_epochs {LOAD} {ROLE} {LOAD}.kwargs {ROLE}.forward_proc {OPTIM}
test.test_data_loader {OPTIM}.kwargs {OPTIM}.key train.criterion {TERM}.criterion {TERM}.weight {TERM}.criterion.kwargs
{WRAPPER}.kwargs.input.io {LOAD}.sampler {LOAD}.sampler.class_or_func {LOAD}.dataset_id {PLAN}.kwargs
"""
ALONE = [(MODEL, "models.student_model"), ("datasets.d/train", "datasets")]  # told at another path


@pytest.mark.parametrize(("path", "lacking"), [*zip(NEEDED.split(), NEEDED.split(), strict=True), *ALONE])
def test_what_must_be_there(path, lacking):
    lines = found(PLAIN_TRAINING, drop=[path])
    assert any(line.startswith(f"{lacking}: ") for line in lines), lines
    assert not [line for line in lines if "Error" in line]


def test_each_stage_needs_its_own_sections():
    needed = [f"{TWO}.{name}" for name in ("teacher", "student", "criterion")]
    assert [line.partition(":")[0] for line in found(STAGES, drop=needed)] == needed
    assert found(STAGES, drop=[ONE])[0].startswith(f"{ONE}: missing; stages count from 1")
    assert "train.stage3: missing; stages count from 1 without gaps" in found(STAGES, "train.stage4={}")


ACCEPTED = [  # changes that do not touch each other
    ("dependencies=gkd_plugin", f"{MODEL}.src_ckpt=https://example.org/x.pt", f"{LOAD}.batch_sampler=", "device="),
    (f"{MODEL}.src_ckpt=https://example.org/x.pt", f"{MODEL}.src_ckpt_prefix=''"),
    ("dependencies=", f"{LOAD}.dataset_wrapper={{}}", f"{LOAD}.kwargs.prefetch_factor=", f"{PLAN}=", "teacher_cache="),
    ("models.model={key: resnet18, kwargs: {num_classes: 3}, quantized: true}", f"{PLAN}={{}}"),
    ("models.model={key: anything, repo_or_dir: owner/repo, kwargs: {x: 1}}", f"{OPTIM}.max_grad_norm="),
    (f"{ROLE}.wrapper={{key: DistributedDataParallel, kwargs: {{}}}}", f"{ROLE}.auxiliary_model_wrapper={{}}"),
    (f"{ROLE}.auxiliary_model_wrapper={{key: , kwargs: {{a: 1}}}}", f"{OPTIM}.max_grad_norm=1.0e+9"),
    (f"{OPTIM}.kwargs={{lr: 0, momentum: 1, weight_decay: 1}}", "device={default: mps}"),
    (f"{OPTIM}.kwargs.lr=!import_call {{key: torch.ones, init: {{args: [1]}}}}", f"{TERM}.criterion={KD % 4}"),
    (f"{PLAN}={{key: ReduceLROnPlateau, kwargs: {{mode: max}}}}", "device.precision=no"),
    (f"{PLAN}={ONE_CYCLE % ([0.1], 2)}",),
    (f"{PLAN}={{key: OneCycleLR, kwargs: {{max_lr: 0.1, total_steps: 1}}, scheduling_step: 1}}",),
    (f"{PLAN}={{key: poly_lr_scheduler, kwargs: {{num_iterations: 1, num_epochs: 2}}}}",),
    (f"{TERM}.criterion={VID % 1}",),  # ignored
    ("device={precision: 'no', default: auto, teacher: }", "tracker={engine: wandb, kwargs: {project: x}}"),
    ("train.keep=best", "train.patience=3", "tracker={engine: tensorboard}"),
    ("device={teacher_dtype: bf16, channels_last: true, compile: student}",),
]
ACCEPTED_IN_STAGES = [
    ("models.teacher_model.src_ckpt_classifier=", f"{STUDENT}.kwargs.drop_rate=0.1", f"{TWO}.optimizer={{}}"),
    (f"{STUDENT}.src_ckpt_classifier=centres", f"{STUDENT}.kwargs.pretrained=true"),
    ("teacher_cache={views: 1, seed: 0, folder: }", f"{TWO}.val_data_loader={VALIDATION}", "train.keep=best"),
    (f"{AUXILIARY}={PROJECTED % 'projection: 1'}", f"{TWO}.scheduler={ONE_CYCLE % ([0.1], 9)}"),
    (f"{TWO}.criterion={REFILLED}", f"{TWO}.optimizer={SGD % 'SGD'}"),
    (f"{STUDENT}.kwargs.model_name=hf-hub:owner/model", "models.teacher_model.dst_ckpt=t.pt"),
]
MAY_BE_LEFT_OUT = ["dependencies", "test", "train.val_data_loader", "train.log_freq", PLAN, f"{ROLE}.forward_hook"]


@pytest.mark.parametrize(
    ("text", "changes", "drop"),
    [(PLAIN_TRAINING, changes, []) for changes in ACCEPTED]
    + [(STAGES, changes, []) for changes in ACCEPTED_IN_STAGES]
    + [(PLAIN_TRAINING, [], [path]) for path in MAY_BE_LEFT_OUT],
)
def test_what_is_accepted(text, changes, drop):
    assert found(text, *changes, drop=drop) == []


def test_checkpoints_that_exist_or_will(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("models.model.src_ckpt", "train.model.src_ckpt"):
        [line] = found(PLAIN_TRAINING, f"{path}=./teacher.pt")
        assert line.startswith(f"{path}: no such file: ./teacher.pt; ")
        for produced in (["teacher.pt"], None):
            assert found(PLAIN_TRAINING, f"{path}=./teacher.pt", produced=produced) == []
    (tmp_path / "teacher.pt").touch()
    assert found(PLAIN_TRAINING, f"{path}=./teacher.pt") == []


def test_batch_sampler_excludes_what_it_decides_itself():
    sampler = f"{LOAD}.batch_sampler={{key: BatchSampler, kwargs: {{batch_size: 2, drop_last: true}}}}"
    lines = found(PLAIN_TRAINING, sampler, f"{LOAD}.kwargs.shuffle=true")
    assert [line.partition(":")[0] for line in lines] == [f"{LOAD}.kwargs.batch_size", f"{LOAD}.kwargs.shuffle"]
    for old, new, line in (
        (", drop_last: true", "", "kwargs: argument 'drop_last' is missing"),
        ("BatchSampler", "BatchSamplr", "key: 'BatchSamplr' is not registered; did you mean 'BatchS"),
        ("2", "0", "kwargs.batch_size: 0 given"),
    ):
        lines = found(PLAIN_TRAINING, sampler.replace(old, new), drop=[f"{LOAD}.kwargs.batch_size"])
        assert lines[0].startswith(f"{LOAD}.batch_sampler.{line}")
    assert found(PLAIN_TRAINING, sampler, drop=[f"{LOAD}.kwargs.batch_size"]) == []


def test_a_loss_checks_its_own_arguments(monkeypatch):
    change = "train.criterion={key: dummy, kwargs: {a: 1}}"
    for error, lines in (
        (ConfigError("temperature: 0 given\ntwo"), ["temperature: 0 given", "two"]),
        (TypeError("no such argument"), ["TypeError: no such argument"]),
        (ZeroDivisionError(), ["ZeroDivisionError"]),
    ):
        monkeypatch.setitem(HIGH_LEVEL_LOSS_DICT, "dummy", Mock(side_effect=error))
        assert found(PLAIN_TRAINING, change) == [f"train.criterion: {line}" for line in lines]
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
    tree = parse(PLAIN_TRAINING)
    tree["train"]["criterion"] = {"key": "dummy", "kwargs": {"terms": {"a": 1}}}
    tree["train"]["optimizer"] = {"key": "dummy", "kwargs": {"lr": 0.1, "bounds": [1, 2]}}
    before, state = copy.deepcopy(tree), torch.random.get_rng_state()
    assert problems(tree) == []
    assert tree == before
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_later_stage_schedules_the_optimizer_that_it_keeps_and_only_that():
    [line] = found(STAGES, f"{TWO}.scheduler={ONE_CYCLE % ([0.1, 0.2], 9)}", f"{TWO}.optimizer={SGD % 'SDG'}")
    assert line.startswith(f"{TWO}.optimizer.key: ")
