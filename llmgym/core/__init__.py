"""What everything else stands on: arrays, wide integers, pytrees, errors, files."""
