"""`regplug info`: what a strategy, a backbone, a bundle or a weights file is."""
