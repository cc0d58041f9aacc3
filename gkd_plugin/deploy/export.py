"""``refilled export``: the student in the layout of timm and its hub, as ONNX, and as a program of torch.export."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from timm.models import push_to_hf_hub, save_for_hf
from timm.models._hub import generate_readme
from torch import Tensor

from gkd_plugin.config.stages import Stage, student_entry
from gkd_plugin.config.tree import walk
from gkd_plugin.data.files import told_unwritten
from gkd_plugin.deploy.student import DistilledStudent
from gkd_plugin.errors import ConfigError, first_line, require_extra
from gkd_plugin.runner.accuracy import is_accuracy
from gkd_plugin.runner.run_folder import read_json

logger = logging.getLogger(__name__)

_FILES = {"config.json", "model.safetensors", "README.md", "student.onnx", "student.onnx.data", "student.pt2"}
UNKNOWN = "unknown"  # as licence of a model card
_CLOSE = 1e-4  # largest difference of logits


def export(
    run: Path, formats: Sequence[str], *, output: Path | None = None, licence: str = UNKNOWN, hub: str | None = None
) -> list[str]:
    """Writes the student of a run into a folder, by default its ``export``; gives the formats that failed.

    Each is read again and compared with the student before it is put in place. Raises ConfigError where all failed.
    ``hub`` is the name under which timm's goes to the Hugging Face hub, too.
    """
    if "onnx" in formats:
        require_extra("export", "export to onnx")
    if hub and "timm" not in formats:
        raise ConfigError("--push-to-hub: goes with the format timm alone")
    student, folder = DistilledStudent.load(run, "cpu"), output or run / "export"
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - _FILES):
        raise ConfigError(f"--output: {folder} holds something else than an earlier export; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with told_unwritten(folder), TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        problems = {name: _write(name, student, Path(temporary, name), licence) for name in formats}
        failed = [name for name, problem in problems.items() if problem]
        if len(failed) == len(formats):
            raise ConfigError("; ".join(problems.values()))
        folder.mkdir(exist_ok=True)
        for name, problem in problems.items():
            if problem:
                logger.warning("%s", problem)
                continue
            for file in Path(temporary, name).iterdir():
                file.replace(folder / file.name)
    logger.info("%s → %s", run, folder)
    if hub and "timm" not in failed:
        about = _for_timm(student, licence)
        try:
            push_to_hf_hub(student.model, hub, model_card=_card(student, licence), **about)
        except Exception as error:  # of the network, the hub or its rights
            raise ConfigError(f"--push-to-hub: {hub}: {first_line(error)}") from error
    return failed


def _write(name: str, student: DistilledStudent, folder: Path, licence: str) -> str:
    """Writes one format; gives what was wrong."""
    folder.mkdir()
    try:
        _FORMATS[name](student, folder, licence)
    except OSError:
        raise
    except Exception as error:  # an exporter may raise anything
        what = "" if isinstance(error, ConfigError) else f"{type(student.model).__name__} cannot be exported: "
        return f"--format: {name}: {what}{first_line(error)}"
    return ""


def _timm(student: DistilledStudent, folder: Path, licence: str) -> None:
    save_for_hf(student.model, str(folder), **_for_timm(student, licence))
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)  # timm's is for its owner only
    (folder / "README.md").write_text(generate_readme(_card(student, licence), student.run.name), encoding="utf-8")
    _compare(student, timm.create_model(f"local-dir:{folder}", pretrained=True).eval())
    photo = Image.effect_noise((300, 200), 64).convert("L" if student.preprocessing["input_size"][0] == 1 else "RGB")
    if not create_transform(**student.preprocessing)(photo).equal(student.transform(photo)):
        logger.warning("timm's transform scales a photo in one step, the run in two: answers may differ a little")


def _for_timm(student: DistilledStudent, licence: str) -> dict[str, Any]:
    """What timm's functions take beside the model; raises ConfigError where the student is not timm's."""
    entry = student_entry(student.config.tree)[1]
    if entry["key"] != "timm_model":
        raise ConfigError(f"the student is {entry['key']!r} and none of timm's models; the other formats take any")
    about = {"label_names": student.classes, "pretrained_cfg": {"tag": student.run.name, "license": licence}}
    return {"model_config": about, "data_config": student.preprocessing, "safe_serialization": True}


def _card(student: DistilledStudent, licence: str) -> dict[str, Any]:
    """What timm makes a model card of."""
    summary, tree = read_json(student.run / "summary.json"), student.config.tree
    final, teacher = summary.get("final", {}), tree["models"].get("teacher_model") or {}
    kwargs, model = student_entry(tree)[1]["kwargs"], cast("Any", student.model)
    figures = [f"{key.replace('_', ' ')} {final[key]:.2f} %" for key in final if is_accuracy(key)]
    ncm = summary.get("teacher", {}).get("ncm_top1")
    wrote = f", which `{tree['x-written-by']}` wrote" if "x-written-by" in tree else ""
    details = {
        "Data": ", ".join(_data(tree["datasets"], student.config.stages)),
        "Classes": f"{len(student.classes)}: {', '.join(student.classes[:20])}{', …' * (len(student.classes) > 20)}",
        "Images": " × ".join(map(str, student.preprocessing["input_size"])),
        "Teacher": (teacher.get("kwargs") or {}).get("model_name") or teacher.get("key", "none"),
        "Teacher's NCM accuracy": "unknown" if ncm is None else f"{ncm:.2f} %",
        "Method": " + ".join(f"{_method(stage)} ({stage.epochs} epochs)" for stage in student.config.stages),
        f"Accuracy ({final.get('on', 'no')} images)": ", ".join(figures) or "unknown",
        "Command": f"`refilled run config.yaml --seed {summary.get('seed', 0)}`, with its config.yaml{wrote}",
        "Versions": ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items() if version),
        "Licence": f"{licence}{' (fill in `license` at the top)' * (licence == UNKNOWN)}",
    }
    if kwargs.get("pretrained"):
        details["Started from"] = f"timm's {kwargs['model_name']} (licence {model.pretrained_cfg.get('license')})"
    usage = "```python\nimport timm\n\nmodel = timm.create_model('local-dir:FOLDER', pretrained=True).eval()\n```"
    text = f"{kwargs['model_name']}, trained with gkd-plugin."
    return {"license": licence, "description": text, "details": details, "usage": usage}


def _data(datasets: Mapping[str, Any], stages: Sequence[Stage]) -> Iterator[str]:
    """The data sets that it was trained on, with the folders that they name."""
    for name in dict.fromkeys(str(stage.loader["dataset_id"]) for stage in stages):
        parts = [part for part in walk(datasets[name]) if isinstance(part, dict)]
        folders = [part[key] for part in parts for key in ("root", "unlabelled") if isinstance(part.get(key), str)]
        yield f"{name} ({', '.join(folders)})" if folders else name


def _method(stage: Stage) -> str:
    """ReFilled's stage, or the losses of another criterion."""
    terms = (stage.criterion.get("kwargs") or {}).get("sub_terms") or {}
    return f"ReFilled, stage {stage.kind}" if stage.kind else ", ".join(terms) or str(stage.criterion.get("key"))


def _torch_export(student: DistilledStudent, folder: Path, _: str) -> None:
    path = folder / "student.pt2"
    torch.export.save(_program(student), path, extra_files={"refilled.json": json.dumps(_about(student))})
    _compare(student, torch.export.load(path).module())


def _onnx(student: DistilledStudent, folder: Path, _: str) -> None:
    from onnxruntime import InferenceSession

    path, axes = str(folder / "student.onnx"), ({0: "batch"},)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    made: Any = torch.onnx.export(_program(student), dynamic_shapes=axes, verbose=False, **names)
    made.model.metadata_props.update({key: json.dumps(value) for key, value in _about(student).items()})
    made.save(path)
    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    _compare(student, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))


def _program(student: DistilledStudent) -> torch.export.ExportedProgram:
    """The model for any number of images at once."""
    images = torch.zeros(2, *student.preprocessing["input_size"])
    with torch.no_grad():
        return torch.export.export(student.model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _about(student: DistilledStudent) -> dict[str, Any]:
    """What the file of a bare model must say besides."""
    return {"classes": student.classes, "preprocessing": student.preprocessing}


@torch.inference_mode()
def _compare(student: DistilledStudent, answer: Callable[[Tensor], Tensor]) -> None:
    """Raises ConfigError where what was written gives other logits than the student."""
    for count in (1, 3):
        images = torch.randn(count, *student.preprocessing["input_size"])
        difference = float((answer(images) - student.model(images)).abs().max())
        if not difference <= _CLOSE:
            raise ConfigError(f"gives other logits than the student, by up to {difference:.2g} ({_CLOSE} is allowed)")


_FORMATS: dict[str, Callable[[DistilledStudent, Path, str], None]] = {
    "timm": _timm,
    "onnx": _onnx,
    "torch-export": _torch_export,
}
