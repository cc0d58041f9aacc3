"""The runner: configuration, devices, training, evaluation, run folders."""
