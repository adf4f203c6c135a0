"""deploykit: a fine-tuned checkpoint in, a smaller, faster, proven and servable model out.

Importing this package loads nothing heavy: no torch, no transformers, no onnxruntime.
"""

import os

__version__ = "0.1.0"

# ONNX Runtime 1.31 reports every session to its makers, and keeps an identifier in the user's home, unless told before
# it is loaded (onnxruntime pull request 27379). deploykit sends nothing to anybody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
