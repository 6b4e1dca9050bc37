"""The cases that the table-driven tests ask of every row, for the package beside this file."""

MEAN_ERROR = {"example-steps": 0.12}  # of tests/test_solvers.py
CASES = {"example-mirror": lambda x: x[..., ::-1].copy()}  # of tests/test_operators.py: once more, by itself
KINDS = {"example-mirror": "deblurring"}  # of tests/test_doubt.py
