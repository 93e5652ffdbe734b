"""`regplug bench`: times a readout against another module or against its own eager mode."""
