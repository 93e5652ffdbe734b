"""The words that ``regplug rank`` takes. Importing this module does not import torch."""

CLASSIFICATION, REGRESSION = "classification", "regression"
TASKS = (CLASSIFICATION, REGRESSION)
RUNTIMES = ("eager", "torchscript", "aotinductor")
DEFAULT_RUNTIMES = RUNTIMES[:2]  # without a compiler
CONSTANT = "constant"  # the row of what is predicted without any input
