"""`regplug doctor`: examines every installed plugin in a process of its own, and what regplug needs of the machine."""
