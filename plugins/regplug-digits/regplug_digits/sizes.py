"""The ``cond_dim`` of ``digits-gate``, without torch, so that ``regplug cond-dim`` need not import it."""

from regplug.nn import check_sizes


def gate_width(num_registers: int, hidden_dim: int) -> int:
    """D; a size that is not a positive integer is a SpecError."""
    check_sizes("readout 'digits-gate'", num_registers=num_registers, hidden_dim=hidden_dim)
    return hidden_dim
