"""``refilled_teacher``: a teacher that stays frozen, in eval mode and on its own input, whatever the box does."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchdistill.models.registry import AUXILIARY_MODEL_WRAPPER_DICT, register_auxiliary_model_wrapper
from torchdistill.models.wrapper import AuxiliaryModelWrapper
from typing_extensions import Self

from gkd_plugin.box import register
from gkd_plugin.box.hooks import Capture, check_module_path, hooked_tensor
from gkd_plugin.data import normalisation_of
from gkd_plugin.errors import ConfigError, one_of, told_at, user_can_mend, whole_number
from gkd_plugin.models.projection import make_projection
from gkd_plugin.teacher.class_map import ClassMap
from gkd_plugin.teacher.input import TeacherInput, given_input, is_first_time, own_input
from gkd_plugin.teacher.readouts import READOUTS, Answers, LocalClassifier, LocalFeatures

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Kept(Protocol):
    """What a teacher cache gives."""

    def answers(self, rows: Tensor) -> Answers:
        """Those of the given rows of its bank."""

    def once(self, name: str, compute: Callable[[], Any], *parts: object, images: Any, view: Any = None) -> Any:
        """What ``compute`` gives, or gave for the same teacher, training set, parts, images and view of these."""


@register(AUXILIARY_MODEL_WRAPPER_DICT, register_auxiliary_model_wrapper, "refilled_teacher")
class RefilledTeacher(AuxiliaryModelWrapper):
    """Wraps any teacher for ReFilled and holds its invariants whatever the training box does.

    The teacher is frozen, always in eval mode (``train()`` cannot change that, so batch-norm statistics never move) and
    runs without gradient. It may live on a device of its own: inputs go there, results come back. It sees images with
    its own normalisation and size, whatever the student's are; what is done to them is logged once.

    Hook paths, all in float32: ``embedding`` ``[B, D_t]``; ``local_classifier`` ``[B, C]``, C the student's classes,
    once the pre-epoch process ``refilled`` has computed the class centres; the output itself (``.``), the teacher's own
    logits ``[B, C_t]``, or the local classifier's where it has no classifier (timm's ``num_classes: 0``). With a
    ``projection`` also ``projection`` ``[B, D']``, computed with gradient after each training step's forward pass.

    Args:
        teacher_model: the teacher; torchdistill supplies it, and ``device``, ``device_ids``, ``distributed``.
        embedding: module path of the embedding, ``[B, D]`` or ``[B, D, 1, 1]``; every ``timm_model`` has the default.
        embedding_io: ``'output'`` of that module, or its ``'input'`` (torchvision's ViT: the input of ``'heads'``).
        local_classifier: ``'centres'`` (the paper's), ``'probe'`` (calibrated on held-out labels), or another readout;
            by default what the criterion's stage asks for.
        local_features: module paths of earlier layers, which a calibrated local classifier reads beside the embedding.
        class_map: which of the student's classes are the teacher's, for a calibrated local classifier: ``'auto'``
            (what the training set says of a teacher with as many classes), ``'names'``,
            ``{student's class: teacher's class}`` or null, see :meth:`ClassMap.of`.
        teacher_classes: the names of the teacher's classes; by default those in its checkpoint, if this package's.
        class_prior: how frequent a calibrated local classifier takes the classes to be: ``'equal'``, or as in the
            ``'training'`` set, where that is as uneven as what the student will meet.
        num_classes: number of the student's classes, C; by default 1 + the largest training label.
        preprocessing: the images that the teacher was trained on: ``'auto'`` (what its checkpoint says, otherwise
            timm), ``'pretrained'`` (what timm says) or ``'data'`` (the student's, left as they are).
        mean: the teacher's, of pixels in [0, 1]; by default that of ``preprocessing``.
        std: the teacher's; by default that of ``preprocessing``.
        input_size: the teacher's, in pixels or as [height, width]; by default that of ``preprocessing``.
        data_mean: what the student's images are normalised with; by default read from the training set's transforms.
        data_std: likewise.
        teacher_device: device of the teacher alone, e.g. ``'cuda:1'``; by default that of the student.
        teacher_dtype: what the teacher is held in: ``'float32'``, ``'bf16'`` or ``'fp16'``.
        projection: ``{kind, in_features, out_features}`` of a map of the embedding, see :class:`Projection`. One with
            weights is trained (the teacher is not): needs ``teacher.requires_grad: True`` and the hook ``embedding``.

    Raises:
        ConfigError: the embedding path does not exist, or a setting is none of those allowed.
    """

    def __init__(
        self,
        teacher_model: nn.Module,
        *,
        embedding: str = "embedding",
        embedding_io: str = "output",
        local_classifier: str | None = None,
        local_features: Sequence[str] | None = None,
        class_map: str | Mapping[Any, Any] | None = "auto",
        teacher_classes: Sequence[str] | None = None,
        class_prior: str = "equal",
        num_classes: int | None = None,
        preprocessing: str = "auto",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        input_size: int | Sequence[int] | None = None,
        data_mean: Sequence[float] | None = None,
        data_std: Sequence[float] | None = None,
        teacher_device: str | torch.device | None = None,
        teacher_dtype: str | None = None,
        projection: Mapping[str, Any] | None = None,
        device: torch.device | None = None,
        device_ids: list[int] | None = None,  # noqa: ARG002
        distributed: bool = False,  # noqa: ARG002
    ) -> None:
        super().__init__()
        with told_at("auxiliary_model_wrapper.kwargs."):
            _check_embedding(teacher_model, embedding)
            one_of("embedding_io", embedding_io, ("output", "input"))
            one_of("class_prior", class_prior, ("equal", "training"))
            if local_classifier is not None:
                one_of("local_classifier", local_classifier, READOUTS)
            if teacher_dtype is not None:
                one_of("teacher_dtype", teacher_dtype, DTYPES)
            self._features = LocalFeatures(teacher_model, local_features)
            if embedding in self._features.paths:
                raise ConfigError(f"local_features: {embedding!r} is the embedding, which is read already")
            own = given_input(mean, std, input_size, known=own_input(teacher_model, preprocessing))
            if (data_mean is None) != (data_std is None):
                raise ConfigError("data_mean: goes with data_std; give both, or neither: the data shows them")
            data = given_input(data_mean, data_std, prefix="data_")
            if num_classes is not None:
                whole_number("num_classes", num_classes, low=1)
            own_device = None if teacher_device is None else _device(teacher_device)
        with told_at("auxiliary_model_wrapper: "):
            self.input = TeacherInput(data, own)
        self.teacher = teacher_model.eval().requires_grad_(False)
        self.embedding = nn.Identity()
        self.local_classifier = LocalClassifier(local_classifier or "centres", class_prior)
        self.projection = None if projection is None else make_projection(projection)
        self.class_map, self._written_map = ClassMap(), (class_map, teacher_classes)
        self.num_classes, self._asks_for, self._preprocessing = num_classes, local_classifier, preprocessing
        self._dtype = None if teacher_dtype is None else DTYPES[teacher_dtype]
        self._embedding = (embedding, embedding_io)
        cfg = getattr(teacher_model, "pretrained_cfg", None) or {}
        self._channels: int | None = (cfg.get("input_size") or [None])[0]
        self._capture = Capture.of(teacher_model, embedding, embedding_io)
        self._given: Answers | None = None
        self.kept: Kept | None = None  # of a teacher cache, for the FixedViews trained on
        self._home: torch.device | None = getattr(teacher_model, "home", None)  # of a divided one, which stays as it is
        self._own_device: torch.device | None = None
        self.train(False)
        if self._dtype is not None and self._home is None:
            self.teacher.to(self._dtype)
        own_device = self._home or own_device
        if own_device is not None or device is not None:
            self.to(own_device or device)
        if self._dtype == torch.float16 and self.device.type == "cpu":
            where = "auxiliary_model_wrapper.kwargs.teacher_dtype"
            raise ConfigError(f"{where}: 'fp16' needs a GPU; use 'bf16' or 'float32'")
        self._own_device = own_device  # from here on .to() moves nothing

    def prepare(self, box: Any, stage_config: Mapping[str, Any]) -> None:
        """Reads normalisation and shared classes off the training set; called once, before the box wraps the models."""
        if self.projection is not None and list(self.projection.parameters()):
            if not stage_config["teacher"].get("requires_grad", True):
                right = "True trains it, and the teacher stays frozen in the wrapper 'refilled_teacher'"
                raise ConfigError(f"teacher.requires_grad: False freezes the teacher's projection too; {right}")
            if getattr(box.accelerator, "num_processes", 1) > 1:
                raise ConfigError("teacher: a projection of its embedding is trained in one process, not in several")
        dataset = box.train_data_loader.dataset
        written, names = self._written_map
        with told_at("teacher.auxiliary_model_wrapper.kwargs."):
            names = getattr(self.teacher, "trained_classes", None) if names is None else names
            self.class_map = ClassMap.of(dataset, written, names, getattr(self.teacher, "num_classes", None))
        if self.input.data.mean is None or self.input.data.std is None:
            with told_at("teacher.auxiliary_model_wrapper: "):
                self.input = TeacherInput(normalisation_of(dataset), self.input.teacher).to(self.device)

    def suggest_local_classifier(self, kind: str) -> None:
        """The kind of local classifier that a criterion is made for, where the wrapper's keyword leaves it open."""
        if self._asks_for is None:
            self.local_classifier.kind = kind

    @property
    def has_classifier(self) -> bool:
        """Whether the teacher has classes of its own."""
        return getattr(self.teacher, "num_classes", None) != 0

    @property
    def device(self) -> torch.device:
        """Where the teacher is; of a divided one, where it takes images."""
        return self._home or next((p.device for p in self.teacher.parameters()), self.local_classifier.centres.device)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stays in eval mode; a projection, which only training asks for, in train mode."""
        super().train(False)
        if self.projection is not None:
            self.projection.train()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Stays frozen, all but a projection."""
        super().requires_grad_(False)
        if self.projection is not None:
            self.projection.requires_grad_(requires_grad)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """What ``.to()`` and its kin call: a teacher with a device of its own stays there, a divided one anyway."""
        if self._own_device is None and self._home is None:
            super()._apply(fn, recurse)
            return self
        for name, part in self.named_children():
            if name == "projection" or (self._own_device is None and part is not self.teacher):  # beside the student
                part._apply(fn, recurse)  # noqa: SLF001
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """``[B, …]`` images → the teacher's logits ``[B, C_t]``, on the device of the images."""
        given, self._given = self._given, None
        answers = self._with_local(given or self._ask(x))
        output: Tensor = self.embedding(_moved(answers.embedding, x.device))
        if answers.local_classifier is not None:
            output = self.local_classifier(_moved(answers.local_classifier, x.device))
        if answers.logits is None and is_first_time(self.teacher, "classifier"):
            logger.info("the teacher has no classifier of its own: its confidence is the local classifier's")
        return output if answers.logits is None else _moved(answers.logits, x.device)

    def secondary_forward(self, io_dict: Mapping[str, Mapping[str, Any]]) -> None:
        """The projection of the embedding, with gradient: torchdistill calls this after each training forward pass."""
        if self.projection is not None:
            embedding = hooked_tensor(io_dict, "teacher", "embedding")
            with told_at("teacher.auxiliary_model_wrapper.kwargs."):
                self.projection(embedding)

    @torch.no_grad()
    def answers(self, x: Tensor) -> Answers:
        """What the teacher says of ``[B, …]`` images, on the teacher's own device."""
        return self._with_local(self._ask(x))

    @torch.no_grad()
    def fields(self, x: Tensor) -> dict[str, Tensor]:
        """What the teacher itself says of ``[B, …]`` images, without the local classifier: Answers by name."""
        return {name: value for name, value in self._ask(x)._asdict().items() if value is not None}

    def answer_with(self, answers: Answers | None) -> None:
        """Gives the answers of the next forward pass, which then does not run the teacher."""
        self._given = answers

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """``[B, …]`` images → the teacher's embedding ``[B, D_t]``, on the device of the teacher."""
        return self._ask(x).embedding

    def _answers_of(self, x: Tensor | Answers) -> Answers:
        return self._ask(x) if isinstance(x, Tensor) else x

    def _ask(self, x: Tensor) -> Answers:
        """What the teacher itself says, without the local classifier."""
        if self._channels is not None and x.ndim == 4 and x.shape[1] != self._channels:
            misfit = f"the teacher takes images of {self._channels} channels, the data has {x.shape[1]}"
            raise ConfigError(f"{misfit}; its kwargs.in_chans builds it for others")
        self.teacher.eval()  # whoever holds the inner model may have called train() on it
        images = self.input(_moved(x, self.device))
        self.input.log(x, self.teacher, self._preprocessing)
        has_to_last = self._home is not None or self._is_read_inside()  # a divided teacher's weights come and go
        with torch.no_grad() if has_to_last else torch.inference_mode():
            logits = self.teacher(images if self._dtype is None else images.to(self._dtype))
            embedding = self._capture.take("teacher", self._embedding[0])
            with told_at("auxiliary_model_wrapper.kwargs."):
                features = self._features.take()
        if not self.has_classifier or not isinstance(logits, Tensor):
            logits = None
        else:
            self.class_map.teacher_size = logits.shape[-1]
        # copies, because a loss cannot keep for its gradient what was made in inference mode
        kind: dict[str, Any] = {"device": self.device, "dtype": torch.float32, "copy": True}
        copies = (value if value is None else value.to(**kind) for value in (logits, features))
        return Answers(embedding.to(**kind), None, *copies)

    def _is_read_inside(self) -> bool:
        """Whether hooks of others read what its modules give, perhaps for a loss: as :meth:`_ask` has it, no copies."""
        hooks = (hook for module in self.teacher.modules() for hook in module._forward_hooks.values())  # noqa: SLF001
        return not all(isinstance(hook, Capture) for hook in hooks)

    def _with_local(self, answers: Answers) -> Answers:
        """With the local classifier's logits, once it is fitted; the answers may be on any device."""
        if answers.local_classifier is not None or not self.local_classifier.is_ready:
            return answers
        here = Answers._make(None if value is None else _moved(value, self.device) for value in answers)
        return answers._replace(local_classifier=self.local_classifier.logits(here))

    def adopt_centres(self, other: "RefilledTeacher") -> None:
        """Takes over the local classifier of the previous stage's wrapper, unless a fit would give another one."""
        if self.teacher is not other.teacher:
            return
        self.class_map.teacher_size = other.class_map.teacher_size
        ours, theirs = ((w.local_classifier.fitted_by, w.class_map.shared, w.settings()) for w in (self, other))
        if ours == theirs:
            self.local_classifier.keep(other.local_classifier.tensors(), self.device)

    def settings(self) -> tuple[Any, ...]:
        """What decides the teacher's answers, besides its weights and the images."""
        images = (self.input.teacher, self.input.data)
        return *self._embedding, self._features.paths, self.num_classes, *images, self._dtype

    @torch.no_grad()
    def fit_centres(
        self,
        batches: Iterable[tuple[Tensor | Answers, Tensor]],
        views: Iterable[tuple[Tensor | Answers, Tensor, Tensor]] | None = None,
    ) -> None:
        """Fits the local classifier, and with it the class centres, to (images, labels) of the training set.

        ``views`` are (images, labels, numbers of the samples) of the same samples as the student sees them, for a
        readout that wants these; ``None`` for the batches themselves. The teacher's answers may be in place of images.
        Raises ConfigError where a class has no sample.
        """
        with user_can_mend("class centres"):
            answered = ((self._answers_of(x), labels) for x, labels in batches)
            seen = None if views is None else ((self._answers_of(x), y, samples) for x, y, samples in views)
            self.local_classifier.fit(answered, self.num_classes, seen, self.class_map)
        self.class_map.tell_use(is_used=self.local_classifier.wants_views)


def _check_embedding(model: nn.Module, path: str) -> None:
    names = [name for name, _ in model.named_modules()]
    if path == "embedding" and path not in names:
        lacks = f"{type(model).__name__} has no module 'embedding', as timm_model's models have"
        cure = "name the module whose output is the embedding (embedding_io: 'input' takes its input)"
        raise ConfigError(f"embedding: {lacks}; {cure}; the last ones are {', '.join(map(repr, names[-4:]))}")
    check_module_path(model, path, "embedding")


def _device(name: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, TypeError, AssertionError) as error:
        allowed = "cpu, cuda, cuda:<number> or mps may be"
        raise ConfigError(f"teacher_device: there is no device {str(name)!r} here; {allowed}") from error


def _moved(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``; the host waits only for what it will read itself."""
    return x.to(device, non_blocking=device.type != "cpu")
