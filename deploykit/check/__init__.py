"""What proves a model: parity, accuracy, latency, provider truth."""
