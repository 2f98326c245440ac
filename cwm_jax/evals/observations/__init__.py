"""Predicted observations of agents: which are asked, of what kind they are, how near a text is."""
