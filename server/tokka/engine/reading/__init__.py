"""What a model has written, read: its thoughts, its calls, and the text beside them."""
