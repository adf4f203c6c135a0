"""Distil, prune, quantize: one method a file."""
