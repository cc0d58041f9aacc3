"""A teacher that answers once: its outputs for fixed views of the training set, kept on disk."""
