"""The command ``refilled``: reads the command line, then imports what the command needs.

``refilled.py`` runs this file without the package around it. Import nothing of the package at the top.
"""

import argparse
import csv
import io
import logging
import math
import os
import signal
import sys
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

T = TypeVar("T")

EXIT_FAILED_PARTS = 1
EXIT_BAD_INPUT = 2
SCORES = ("top1", "val_top1_last3", "top5", "ncm_top1", "old_top1", "new_top1", "harmonic_mean")
"""Those of compare/report.py, which imports torch; a test holds them equal."""
FORMATS = ("timm", "onnx", "torch-export")
"""Those of deploy/export.py, likewise."""
ABOUT = """\
Knowledge distillation when teacher and student do not share their classes.

a student of your photos, one folder of them for each class:
  refilled distill photos --teacher resnet50 --student resnet18

an experiment that is a file; some come with this package:
  refilled configs copy digits
  refilled run configs/digits/digits_teacher.yaml configs/digits/digits_refilled.yaml

other methods on the same images:
  refilled compare photos.yaml --methods ce,probe-kd,refilled-joint --output runs/compare

what the student sees in photos, and its files for timm, ONNX and torch.export:
  refilled predict runs/photos new_photos
  refilled export runs/photos --format all

a run on one page:
  refilled report runs/photos --open
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 where a part failed, 2 for bad input, 128 + n for a signal n."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(argv)
    if options.name is None:
        parser.print_help()
        return 0
    from torch import distributed

    from gkd_plugin.errors import ConfigError, require_extra
    from gkd_plugin.runner.stopping import stoppable

    if str(Path.cwd()) not in sys.path:  # a YAML may name modules there, as with python -m gkd_plugin
        sys.path.append(str(Path.cwd()))
    with _console_log(options.log, logging.DEBUG if options.debug else options.level):
        try:
            if options.command in (_compare, _diagnose, _report):
                require_extra("report", options.name)
            with stoppable():
                code: int = options.command(options)
            if distributed.is_initialized():  # by Accelerate, under torchrun
                distributed.destroy_process_group()
        except (ConfigError, OSError) as error:
            if options.debug:
                raise
            return _refuse(error)
        except KeyboardInterrupt as stop:
            name = str(stop) or "SIGINT"
            print(f"refilled: stopped by {name}{options.stopped}", file=sys.stderr)
            return 128 + int(getattr(signal, name, signal.SIGINT))
    return code


def _run(options: argparse.Namespace) -> int:
    from gkd_plugin.runner.run_folder import FAILED

    return EXIT_FAILED_PARTS if any(summary["status"] == FAILED for summary in _trained(options)) else 0


def _trained(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The summaries of the runs, which it shows."""
    from gkd_plugin.runner.run import run_all
    from gkd_plugin.runner.run_folder import results_table

    summaries = run_all(options.config, **_given(options, "overrides", "output", "seed", "device", "earlier"))
    _say(f"\n{results_table(summaries)}")
    return summaries


def _check(options: argparse.Namespace) -> int:
    from gkd_plugin.runner.run import check_all

    code = 0
    for found in check_all(options.config, **_given(options, "overrides", "device", "builds")):
        if isinstance(found, str):
            _say(found)
        elif options.debug:
            raise found
        else:
            code = _refuse(found)
    return code


def _init(options: argparse.Namespace) -> int:
    from gkd_plugin.recipe import Wanted, places, write_recipe

    path, _ = places(options.data, options.output)
    print(write_recipe(Wanted(**_given(options, *Wanted.__dataclass_fields__)), path, overwrites=options.overwrite))
    options.config = [path]
    return 0


def _distill(options: argparse.Namespace) -> int:
    from gkd_plugin.errors import ConfigError
    from gkd_plugin.recipe import places

    path, folder = places(options.data, options.output)
    was_there = path.exists()
    _init(options)
    chosen = _given(options, "output", "seed", "device").items()
    given = "".join(f" --{name} {quote(str(value))}" for name, value in chosen if value)
    options.stopped = f"; to go on: refilled run {quote(str(path))}{given} --resume"
    try:
        (summary,) = _trained(options)
    except ConfigError:
        if not (was_there or folder.exists()):  # nothing has begun: the command may be given again, corrected
            path.unlink()
        raise
    place = quote(summary["folder"])
    _say(f"\nstudent: {place}/student.safetensors; next:")
    for words in ("predict {} PHOTO", "evaluate {} --data PHOTOS", "export {} --format all", "report {} --open"):
        _say(f"  refilled {words.format(place)}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from gkd_plugin.config.config import load_config
    from gkd_plugin.deploy.student import DistilledStudent, student_of
    from gkd_plugin.runner.run import evaluate_checkpoint

    source, weights, overrides, images = options.source, options.checkpoint, options.overrides, "test samples"
    if options.data:
        student, images = DistilledStudent.load(source, overrides=overrides), f"images of {options.data}"
        weights, result = source, student.evaluate(options.data, options.device)
    else:
        where = "--checkpoint" if weights else "RUN"
        if weights and not source.is_dir():
            config = load_config(source, overrides, produced=None)
        else:
            config, own = student_of(source, overrides)
            weights = weights or own
        result = evaluate_checkpoint(config, weights, options.device, where)
    shown = ", ".join(f"{key} {value:.2f} %" for key, value in result.items() if key != "samples")
    _say(f"{weights}: {shown} on {result['samples']} {images}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from gkd_plugin.data.files import write_atomically
    from gkd_plugin.deploy.student import DistilledStudent

    student = DistilledStudent.load(options.run_folder, options.device or "auto")
    rows: list[tuple[Any, ...]] = [("path", "rank", "class", "probability")]
    for path, answer in student.predict_files(options.images, options.topk):
        print(f"{path}: {', '.join(f'{name} {100 * share:.2f} %' for name, share in answer)}")
        rows += [(path, rank, name, round(share, 6)) for rank, (name, share) in enumerate(answer, 1)]
    if options.csv:
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(rows)
        write_atomically(options.csv, lambda file: file.write_text(table.getvalue(), encoding="utf-8"))
    return 0


def _export(options: argparse.Namespace) -> int:
    from gkd_plugin.deploy.export import export

    formats = FORMATS if options.format == "all" else (options.format,)
    failed = export(options.run_folder, formats, **_given(options, "output", "licence", "hub"))
    return EXIT_FAILED_PARTS if failed else 0


def _compare(options: argparse.Namespace) -> int:
    from gkd_plugin.compare.compare import Comparison, compare
    from gkd_plugin.report.page import write_grid_page
    from gkd_plugin.runner.run_folder import FAILED

    table, results = compare(Comparison(**_given(options, *Comparison.__dataclass_fields__)))
    print(f"\n{table}\n")
    print(write_grid_page(results, options.score, options.output))
    return EXIT_FAILED_PARTS if any(result.status == FAILED for result in results) else 0


def _diagnose(options: argparse.Namespace) -> int:
    from gkd_plugin.diagnose.run import diagnose, figures_table
    from gkd_plugin.report.page import write_run_page

    given = _given(options, "output", "device", "known", "projection")
    run, found, folder = diagnose(options.run_folder, **given)
    print(f"\n{figures_table(found)}\n")
    print(write_run_page(run, found, folder))
    return 0


def _report(options: argparse.Namespace) -> int:
    from gkd_plugin.report.page import report

    path = report(options.run_folders, options.output, options.device)
    print(path)
    if options.opens:
        webbrowser.open(path.resolve().as_uri())
    return 0


def _configs(options: argparse.Namespace) -> int:
    from gkd_plugin.catalogue import copy_configs, list_configs, show_configs
    from gkd_plugin.errors import ConfigError

    if options.action != "list" and options.wanted is None:
        raise ConfigError(f"NAME: configs {options.action} needs the name of a configuration, or of a folder of them")
    print({"list": list_configs, "show": show_configs, "copy": copy_configs}[options.action](options.wanted))
    return 0


def _models(options: argparse.Namespace) -> int:
    from gkd_plugin.catalogue import models_table

    print(models_table(options.pattern))
    return 0


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _say(text: str) -> None:
    """Once, where several processes run."""
    if _is_main_process():
        print(text)


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"refilled: error: {message} (options: {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Names the nearest choice, as ``nearest`` of errors.py, whose import takes seconds."""
        if action.choices is not None and value not in action.choices:
            close = " or ".join(map(repr, get_close_matches(value, action.choices, cutoff=0.5)))
            allowed = f"allowed: {', '.join(map(repr, action.choices))}"
            text = f"did you mean {close}? ({allowed})" if close else allowed
            raise argparse.ArgumentError(action, f"{value!r} is unknown; {text}")


def _version() -> str:
    """As ``gkd_plugin.__version__``."""
    try:
        return metadata.version("gkd-plugin")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def _within(low: float, high: float, meaning: str, *, is_whole: bool = True) -> Callable[[str], Any]:
    """A number in plain digits; ``int`` would read 1_0, +3 and ' 5 ' too."""

    def parse(text: str) -> float:
        digits = text if is_whole else text.replace(".", "", 1)
        value: float = (int if is_whole else float)(text) if digits.isdecimal() else math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {meaning}")
        return value

    return parse


_seed = _within(0, 2**32 - 1, f"a whole number from 0 to {2**32 - 1}")  # numpy's generators take no others
_count = _within(1, math.inf, "a whole number of at least 1")
_label = _within(0, math.inf, "a class index; give a list such as 0,1,2")
_percentage = _within(0, 100, "a percentage from 0 to 100", is_whole=False)


def _items(convert: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A comma-separated list without repetitions."""

    def parse(text: str) -> list[T]:
        items = [convert(item.strip()) for item in text.split(",") if item.strip()]
        if not items:
            raise argparse.ArgumentTypeError("names nothing")
        if len(set(items)) < len(items):
            raise argparse.ArgumentTypeError(f"{text!r} names something twice")
        return items

    return parse


def _tasks(text: str) -> list[int]:
    """A count T, for the tasks 0 … T − 1, or a list with a comma."""
    return _items(_seed)(text) if "," in text else list(range(_count(text)))


def _shared(*words: str, **about: Any) -> argparse.ArgumentParser:
    """An argument that several commands take, for argparse's ``parents``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(*words, **about)
    return parser


_CONFIGS = _shared("config", nargs="+", type=Path, metavar="CONFIG", help="torchdistill YAML file")
_RUN_FOLDER = _shared("run_folder", type=Path, metavar="RUN", help="run folder, e.g. runs/pets")
_SEED = _shared("--seed", type=_seed, default=0, metavar="N", help="seed of every random number (default: 0)")
_DEVICE = _shared("--device", metavar="D", help="auto, cpu, cuda, cuda:N or mps; overrides device.default")
_SET = _shared(
    "--set",
    dest="overrides",
    action="append",
    default=[],
    metavar="key.path=value",
    help="change or add a value of the configuration; may be repeated",
)
_DEBUG = _shared("--debug", action="store_true", help="show the traceback of an error")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="refilled", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"refilled {_version()}")
    commands: Any = parser.add_subparsers(metavar="COMMAND", dest="name")

    def add(name: str, command: Callable[..., int], about: str, *shared: Any, **defaults: Any) -> Any:
        added = commands.add_parser(name, help=about, parents=[*shared, _DEBUG])
        added.set_defaults(
            **{"command": command, "log": "gkd_plugin", "level": logging.INFO, "stopped": "", **defaults}
        )
        return added

    goes_on = {"stopped": "; to go on, give the same command with --resume"}
    run = add("run", _run, "train each configuration in turn", _CONFIGS, _SEED, _DEVICE, _SET, **goes_on)
    run.add_argument(
        "--output", type=Path, metavar="DIR", help="run folder; of several CONFIGs, the folder that holds theirs"
    )
    earlier = run.add_mutually_exclusive_group()
    text = "go on from the last checkpoint of the run"
    earlier.add_argument("--resume", dest="earlier", action="store_const", const="resume", default="keep", help=text)
    text = "delete the files of an earlier run in this folder"
    earlier.add_argument("--overwrite", dest="earlier", action="store_const", const="overwrite", help=text)

    text, quiet = "say whether configurations would run; trains nothing", {"level": logging.WARNING}
    check = add("check", _check, text, _CONFIGS, _DEVICE, _SET, **quiet)
    text = "import no module and call no function that the files name"
    check.add_argument("--no-build", dest="builds", action="store_false", help=text)

    text, runs = (
        "train a student on your photos: writes a configuration and runs it",
        {"overrides": [], "earlier": "keep"},
    )
    _add_recipe(add("distill", _distill, text, _SEED, _DEVICE, **runs))
    _add_recipe(add("init", _init, "write the configuration of distill without running it", _DEVICE))
    _add_deploy(add)
    _add_compare(add)

    diagnose = add("diagnose", _diagnose, "figures and pictures of a finished run", _RUN_FOLDER, _DEVICE)
    diagnose.add_argument("--output", type=Path, metavar="DIR", help="default: RUN/diagnostics")
    text = "the student's labels of the classes that the teacher knows"
    diagnose.add_argument("--known", type=_items(_label), metavar="0,1,…", help=text)
    diagnose.add_argument("--projection", choices=("pca", "tsne"), default="pca", help="of embeddings (default: pca)")

    text = "one page that shows a finished run, or several side by side"
    report = add("report", _report, text, _DEVICE, **quiet)
    report.add_argument("run_folders", nargs="+", type=Path, metavar="RUN", help="run folder, e.g. runs/pets")
    text = "the page to write (default: RUN/report.html of the first RUN)"
    report.add_argument("--output", type=Path, metavar="FILE", help=text)
    report.add_argument("--open", dest="opens", action="store_true", help="show it in the browser")

    configs = add("configs", _configs, "the configurations that come with this package")
    text = "list: names and what they are; show: the text; copy: into ./configs"
    configs.add_argument("action", nargs="?", choices=("list", "show", "copy"), default="list", help=text)
    configs.add_argument("wanted", nargs="?", metavar="NAME", help="folder or file, e.g. digits or digits_ce.yaml")
    models = add("models", _models, "timm's models: parameters, embedding width, image size, weights")
    models.add_argument("pattern", metavar="PATTERN", help="part of a name, or with wildcards: 'vit_*_patch16*'")
    return parser


def _add_recipe(added: argparse.ArgumentParser) -> None:
    text = "folder of photos: one folder for each class, or these below train, validation and test"
    added.add_argument("data", type=Path, metavar="DATA", help=text)
    for name in ("teacher", "student"):
        text = f"{name}: timm's name, NAME=FILE of weights, or a run folder"
        added.add_argument(f"--{name}", required=True, metavar="NAME", help=text)
    for name, convert, metavar, text in (
        ("--epochs", _count, "N", "default: by the number of photos"),
        ("--size", _count, "PX", "of the student's images (default: timm's)"),
        ("--teacher-size", _count, "PX", "of the teacher's images (default: timm's)"),
        ("--lr", float, "X", "learning rate"),
        ("--unlabelled", Path, "DIR", "further photos, without labels"),
        ("--output", Path, "DIR", "run folder; the configuration is DIR.yaml (default: runs/DATA, DATA.yaml)"),
    ):
        added.add_argument(name, type=convert, metavar=metavar, help=text)
    added.add_argument("--from-scratch", dest="is_pretrained", action="store_false", help="an untrained student")
    added.add_argument("--overwrite", action="store_true", help="replace a configuration that is there")


def _add_deploy(add: Callable[..., Any]) -> None:
    evaluate = add("evaluate", _evaluate, "accuracy of a saved student on its test set, or on a folder", _DEVICE, _SET)
    evaluate.add_argument("source", type=Path, metavar="RUN|CONFIG", help="run folder, or torchdistill YAML file")
    measured = evaluate.add_mutually_exclusive_group()
    text = "student.safetensors or .pt (default: that of RUN)"
    measured.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)
    text = "a folder of images for each class, instead of the test set"
    measured.add_argument("--data", type=Path, metavar="DIR", help=text)

    predict = add("predict", _predict, "what the student of a run sees in photos", _RUN_FOLDER, _DEVICE)
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE|DIR", help="photos, and folders of photos")
    predict.add_argument("--topk", type=_count, default=3, metavar="K", help="classes for each image (default: 3)")
    predict.add_argument("--csv", type=Path, metavar="FILE", help="also write path, rank, class, probability there")

    export = add("export", _export, "the student of a run for timm, ONNX or torch.export", _RUN_FOLDER)
    export.add_argument("--format", choices=(*FORMATS, "all"), default="timm", help="default: timm")
    export.add_argument("--output", type=Path, metavar="DIR", help="default: RUN/export")
    text = "for the model card, as the Hugging Face hub names it: mit, apache-2.0, …"
    export.add_argument("--license", dest="licence", default="unknown", metavar="L", help=text)
    text = "also upload timm's format to the Hugging Face hub, with your token"
    export.add_argument("--push-to-hub", dest="hub", metavar="OWNER/NAME", help=text)


def _add_compare(add: Callable[..., Any]) -> None:
    kept = "; finished cells are kept, and the same command continues with the others"
    about = {"log": "gkd_plugin.compare", "stopped": kept}  # each run has its own log.txt
    text = "methods × settings × seeds, with a paired test against ce"
    compare = add("compare", _compare, text, _DEVICE, _SET, **about)
    text = "torchdistill YAML file with both refilled stages, or joint"
    compare.add_argument("config", type=Path, metavar="CONFIG", help=text)
    for name, field, convert, default, metavar, text in (
        ("--methods", "methods", _items(str), ["ce", "refilled"], "M,…", "names or YAML files (default: ce,refilled)"),
        ("--overlap", "overlaps", _items(_percentage), [], "P,…", "shares of common classes in per cent"),
        ("--ways", "ways", _items(_count), [], "N,…", "classes of the configuration's few-shot tasks"),
        ("--shots", "shots", _items(_count), [], "K,…", "labelled images of each class"),
        ("--tasks", "tasks", _tasks, [], "T", "how many few-shot tasks, or a list of their numbers: 0,5"),
        ("--memory", "memories", _items(_seed), [], "M,…", "stored images of each old class (incremental data only)"),
        ("--seeds", "seeds", _items(_seed), [0], "N,…", "default: 0"),
        ("--jobs", "jobs", _count, 1, "N", "processes at once (default: 1)"),
    ):
        compare.add_argument(name, dest=field, type=convert, default=default, metavar=metavar, help=text)
    compare.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the grid")
    compare.add_argument("--score", choices=SCORES, default="top1", help="figure of the table (default: top1)")


def _refuse(error: Exception) -> int:
    """Shows what is wrong; gives the exit code."""
    for line in _lines(error):
        print(f"refilled: error: {line}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _lines(error: Exception) -> list[str]:
    """A ConfigError's lines, one per problem; the last line of any other error and of a data worker's traceback."""
    from gkd_plugin.errors import ConfigError

    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, ConfigError) and "in DataLoader worker process" not in lines[0]:
        return lines
    return [lines[-1].removeprefix(f"{ConfigError.__module__}.{ConfigError.__name__}: ")]


class _Console(logging.Handler):
    """Writes to stderr, above the progress bar; what that shows is not said again."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "is_on_bar", False) and sys.stderr.isatty():
            return
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(f"{level}{record.getMessage()}", file=sys.stderr)


@contextmanager
def _console_log(name: str, level: int) -> Iterator[None]:
    """Shows the lines of one of our loggers on the console; torchdistill's only go to log.txt."""
    root, ours = logging.getLogger(), logging.getLogger(name)
    console, before = _Console(level if _is_main_process() else logging.ERROR), (root.level, ours.level)
    root.setLevel(logging.INFO)
    ours.setLevel(level)
    ours.addHandler(console)
    try:
        yield
    finally:
        ours.removeHandler(console)
        for changed, as_it_was in zip((root, ours), before, strict=True):
            changed.setLevel(as_it_was)
