"""ReFilled as a training task of timm: its distillation of features, for a teacher with other classes."""

import timm
import torch
from timm.task import FeatureDistillationTask

from gkd_plugin.losses import RelationshipLoss


class RefilledTask(FeatureDistillationTask):
    """Relationship matching in place of the mean square; the embeddings may have different widths."""

    def __init__(self, student_model, teacher_model, **kwargs):
        super().__init__(student_model, teacher_model, student_feature_dim=1, teacher_feature_dim=1, **kwargs)
        self.relationship = RelationshipLoss()  # equal "dim": timm adds no projection, only distances meet

    def forward(self, input, target):
        logits, embedding = self.trainable_module(input)
        with torch.no_grad():
            own_input = self.teacher.normalize_input(input, self.student_mean, self.student_std)
            known = self.teacher(own_input, return_features=True)
        task_loss, match = self.criterion(logits, target), self.relationship(embedding, known, target)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * match
        return {"loss": loss, "output": logits, "task_loss": task_loss, "relationship": match}


torch.manual_seed(0)
labels = torch.arange(64) % 4  # four classes of coloured noise: put your data here
images = 0.3 * torch.randn(4, 3, 1, 1)[labels] + torch.randn(64, 3, 64, 64)
student = timm.create_model("test_vit", img_size=64, num_classes=4)
teacher = timm.create_model("test_convnext2")  # yours: pretrained=True. Not its name: timm would give it 4 classes
task = RefilledTask(student, teacher, distill_loss_weight=1000.0).train()
optimizer = torch.optim.AdamW(task.get_trainable_module().parameters(), lr=1e-3)
for step in range(10):
    result = task(images, labels)
    optimizer.zero_grad()
    result["loss"].backward()
    optimizer.step()
    print(f"step {step + 1}: loss {result['loss'].item():.3f}, relationship {result['relationship'].item():.5f}")
