"""The checks of `scripts/gpu_check.py`: functions from its options and an argument to plain JSON values."""
