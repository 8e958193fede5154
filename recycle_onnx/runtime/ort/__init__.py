"""ONNX Runtime's side: sessions, providers, and where their tensors and weights lie."""
