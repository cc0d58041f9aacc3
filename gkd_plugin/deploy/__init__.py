"""What comes after a run: the student alone, its answers for photos, and its export to other formats."""
