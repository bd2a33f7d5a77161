"""ONNX export. Nothing is exported yet; the package holds the place that the layout gives it."""
