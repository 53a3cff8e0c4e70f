"""Export to ONNX, inference with onnxruntime, int8 quantization."""
