"""Side-by-side runs against other systems; the README's numbers come from their results."""
