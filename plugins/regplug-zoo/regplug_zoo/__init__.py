"""More register readouts for regplug, one family a file; importing this imports no torch."""
