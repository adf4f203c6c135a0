"""From a checkpoint to ONNX: trace, fuse, lower."""
