"""What a model is fine-tuned for, one file a task."""
