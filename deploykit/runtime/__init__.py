"""What the service, the benchmarks and the checks all run: torch-free inference on ONNX Runtime."""
