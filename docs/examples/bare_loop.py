"""ReFilled in a loop of your own: the student learns classes that its teacher has never seen."""

import timm
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from gkd_plugin.functional import class_centres, local_logits
from gkd_plugin.losses import LocalClassifierLoss, RelationshipLoss

torch.manual_seed(0)
labels = torch.arange(64) % 4  # four classes of coloured noise: put your data here
images = 0.3 * torch.randn(4, 3, 1, 1)[labels] + torch.randn(64, 3, 64, 64)
loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)

teacher = timm.create_model("test_convnext2", num_classes=0).eval().requires_grad_(False)  # yours: pretrained=True
student = timm.create_model("test_vit", img_size=64, num_classes=4)
centres = class_centres((teacher(x), y) for x, y in loader)  # the teacher's local classifier of the four classes
relationship, local_classifier = RelationshipLoss(), LocalClassifierLoss(adaptive=False)
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)

for epoch in range(5):
    for x, y in loader:
        features, known = student.forward_features(x), teacher(x)
        embedding, logits = student.forward_head(features, pre_logits=True), student.forward_head(features)
        loss = functional.cross_entropy(logits, y) + local_classifier(logits, local_logits(known, centres), y)
        loss = loss + 1000 * relationship(embedding, known, y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 2.0)
        optimizer.step()
    accuracy = (logits.argmax(1) == y).float().mean()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy of the last batch {100 * accuracy.item():.0f} %")
