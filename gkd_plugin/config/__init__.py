"""A configuration before anything is built: read, changed, checked, written back."""
