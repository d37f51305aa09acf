"""What Python programs read besides their arguments, and what they leave behind."""
