"""`regplug new`: writes the package of a new plugin."""
