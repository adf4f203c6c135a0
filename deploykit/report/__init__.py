"""Evidence in, verdicts and documents out."""
