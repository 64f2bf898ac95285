"""What is done with it, inside the training process."""
