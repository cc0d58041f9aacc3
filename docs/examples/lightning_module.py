"""ReFilled in Lightning: pip install lightning."""

import lightning
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

from gkd_plugin.losses import RelationshipLoss


class Distillation(lightning.LightningModule):
    """Cross-entropy, and the relationships between samples that a frozen teacher sees."""

    def __init__(self, student, teacher, weight=1000.0):
        super().__init__()
        self.student, self.teacher, self.weight = student, teacher.requires_grad_(False), weight
        self.relationship = RelationshipLoss()

    def on_train_epoch_start(self):
        self.teacher.eval()

    def training_step(self, batch, _):
        features = self.student.forward_features(batch[0])
        embedding, logits = self.student.forward_head(features, pre_logits=True), self.student.forward_head(features)
        match = self.relationship(embedding, self.teacher(batch[0]), batch[1])
        loss = torch.nn.functional.cross_entropy(logits, batch[1]) + self.weight * match
        self.log_dict({"loss": loss, "relationship": match}, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.student.parameters(), lr=1e-3)


lightning.seed_everything(0)
labels = torch.arange(64) % 4  # four classes of coloured noise: put your data here
data = TensorDataset(0.3 * torch.randn(4, 3, 1, 1)[labels] + torch.randn(64, 3, 64, 64), labels)
student = timm.create_model("test_vit", img_size=64, num_classes=4)
module = Distillation(student, timm.create_model("test_convnext2", num_classes=0))  # yours: pretrained=True
lightning.Trainer(max_epochs=5, gradient_clip_val=2.0).fit(module, DataLoader(data, 32, shuffle=True))
