"""``regplug doctor``: examines each installed plugin in its own process, and what regplug needs on the machine."""
