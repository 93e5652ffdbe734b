"""timm's vision transformers with register tokens, as backbones for regplug; importing this imports no torch."""
