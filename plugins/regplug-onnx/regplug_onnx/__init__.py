"""An export backend for regplug: ONNX programs that share the bundle's weights file."""
