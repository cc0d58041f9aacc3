"""Everything that exists because of torchdistill: its registries, hooks and boxes."""
