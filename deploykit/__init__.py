"""deploykit: a fine-tuned checkpoint in, a smaller, faster, proven and servable model out.

Importing this package loads nothing heavy: no torch, no transformers, no onnxruntime.
"""

__version__ = "0.1.0"
