"""`regplug rank`: which readout strategy is worth it on given data."""
