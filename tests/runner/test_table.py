"""The table at the end of a command."""

from gkd_plugin.runner.table import results_table


def summary(name, top1, teacher=None, **student):
    made = {
        "config": f"configs/{name}.yaml",
        "student": {"key": "timm_model", "kwargs": {}, "classes": 5, "parameters": 1234567, **student},
        "stages": {"stage1": {"num_epochs": 10}, "stage2": {"num_epochs": 30}},
        "final": {} if top1 is None else {"top1": top1},
    }
    return made if teacher is None else {**made, "teacher": teacher}


def test_one_line_per_run():
    table = results_table(
        [
            summary("teacher", 99.0, kwargs={"model_name": "resnet10t"}),
            summary("student", 87.654, {"ncm_top1": 62.36}, key="wide_resnet", classes=None),
            summary("other", None, {}),
        ]
    )
    assert table.splitlines() == [
        "run      student      parameters  classes  teacher     epochs  top-1 %",
        "----------------------------------------------------------------------",
        "teacher  resnet10t    1,234,567   5        none        10+30   99.00",
        "student  wide_resnet  1,234,567   ?        NCM 62.4 %  10+30   87.65",
        "other    timm_model   1,234,567   5        yes         10+30   –",
    ]
