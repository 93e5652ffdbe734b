"""`regplug import`: takes trained readouts out of a whole network's checkpoint."""
