"""Measures on real numbers how much of a network's output depends on what it is conditioned on."""
