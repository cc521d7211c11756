"""What measures the library, from a clone: `python -m benchmarks`. It uses the library and is not in the wheel."""
