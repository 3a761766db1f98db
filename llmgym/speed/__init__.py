"""How fast everything runs, beside its rivals."""
