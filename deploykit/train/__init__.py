"""Everything that trains: one loop, fine-tuning."""
