"""What it takes to add a readout."""

from pathlib import Path

import torch

from gkd_plugin.teacher import readouts
from gkd_plugin.teacher.readouts import READOUTS, Readout
from tests.teacher.fakes import batches, make_teacher


def test_every_file_of_the_folder_is_a_readout():
    stems = {path.stem for path in Path(readouts.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert stems == set(READOUTS)


def test_a_class_with_a_name_is_all_that_a_new_one_takes(monkeypatch):
    monkeypatch.setitem(READOUTS, "nearest", None)

    class NearestImage(Readout):
        """The class of the nearest training image."""

        name = "nearest"
        wants_views = True

        def fit(self, centres, seen):
            return {"rows": seen.rows, "labels": seen.labels}

        def logits(self, fitted, answers):
            nearest = torch.cdist(answers.rows, fitted["rows"]).argmin(dim=1)
            return torch.nn.functional.one_hot(fitted["labels"][nearest], len(fitted["centres"])).float()

    teacher, fresh = make_teacher(local_classifier="nearest"), make_teacher(local_classifier="nearest")
    teacher.fit_centres(batches())
    images, labels = batches()[1]
    assert torch.equal(teacher.answers(images).local_classifier.argmax(dim=1), labels)
    fresh.load_state_dict(teacher.state_dict())  # what it keeps is saved
    assert torch.equal(fresh.answers(images).local_classifier.argmax(dim=1), labels)
