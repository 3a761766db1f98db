"""The environments: functional, Gymnasium and vector."""
