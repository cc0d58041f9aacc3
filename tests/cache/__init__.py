import torchvision.datasets  # noqa: F401  (torchdistill.datasets cannot be imported before it)
