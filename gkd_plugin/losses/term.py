"""What every loss term of this package shares: it reads what hooks recorded of student and teacher."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from gkd_plugin.box.hooks import hooked_tensor
from gkd_plugin.errors import ConfigError, user_can_mend


@dataclass(kw_only=True, eq=False, repr=False)
class Term(nn.Module):
    """A torchdistill mid-level loss; a subclass is a dataclass, whose fields are its keywords, with :meth:`compute`.

    Args:
        student_module_path: the module of the student that is read.
        student_module_io: its 'output' or 'input'.
        teacher_module_path: the module of the teacher that is read.
        teacher_module_io: its 'output' or 'input'.

    Attributes:
        key: the registered key, at the head of messages.
        needs_labels: whether ``targets`` must be a label for each row.
        terms: after each forward, detached figures for the log.
    """

    key: ClassVar[str]
    needs_labels: ClassVar[bool] = False
    student_module_path: str = "."
    student_module_io: str = "output"
    teacher_module_path: str = "."
    teacher_module_io: str = "output"

    def __post_init__(self) -> None:
        super().__init__()
        self.terms: dict[str, Tensor] = {}
        self.may_lack_labels = True  # to look waits for the device; a stage that knows its data may say False

    @property
    def hooks(self) -> list[tuple[str, str, str]]:
        """(model, module path, io) of what is read; the student's first."""
        return [
            ("student", self.student_module_path, self.student_module_io),
            ("teacher", self.teacher_module_path, self.teacher_module_io),
        ]

    def forward(self, student: Any, teacher: Any, targets: Any = None, *_: Any, **__: Any) -> Tensor:
        """The loss of a batch, a scalar, on the student's device.

        Args:
            student: what torchdistill's hooks recorded; in a loop of your own, the tensor that is read.
            teacher: likewise; several tensors as a tuple, in the order of ``hooks``.
            targets: labels ``[B]``.

        Raises:
            ConfigError: a path is not recorded, or what is given does not fit.
        """
        if isinstance(student, Tensor):
            read = [student, *(teacher if isinstance(teacher, (tuple, list)) else (teacher,))]
            if len(read) != len(self.hooks):
                wanted = ", ".join(f"{model}'s {path}" for model, path, _io in self.hooks)
                raise ConfigError(f"{self.key}: {len(read)} tensors given, it reads {len(self.hooks)}: {wanted}")
        else:
            recorded = {"student": student, "teacher": teacher}
            read = [hooked_tensor(recorded[model], model, path, io) for model, path, io in self.hooks]
        rows, given = len(read[0]), list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        if self.needs_labels and given != [rows]:
            raise ConfigError(f"{self.key}: targets must be a tensor of {rows} labels, one for each row, got {given}")
        with user_can_mend(self.key):
            return self.compute(targets, *(tensor.to(read[0].device) for tensor in read))

    def compute(self, targets: Any, *read: Any) -> Tensor:
        """The loss, a scalar, of the labels and of what the hooks recorded, in their order."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        names = [field.name for field in fields(self) if not field.name.endswith(("_path", "_io"))]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
