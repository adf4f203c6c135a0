"""What makes a checkpoint smaller and faster: one method a file, and `compress`, which runs them in order."""
