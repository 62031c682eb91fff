"""From a module to ONNX graphs, and what such a graph must not hold."""
