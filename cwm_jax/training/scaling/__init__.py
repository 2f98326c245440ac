"""FLOPs of a token, and laws of learning rate, batch and loss: used, fitted, compared."""
