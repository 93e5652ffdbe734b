"""`regplug bench`: times a readout against another module, against its own eager mode, or as a share of a backbone."""
