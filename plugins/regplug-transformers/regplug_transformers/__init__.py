"""transformers' vision models with register tokens as regplug backbones; importing this imports no torch."""
