"""`regplug rank`: trains each strategy as a probe on the same samples, and says which one the data prefer, if any."""
