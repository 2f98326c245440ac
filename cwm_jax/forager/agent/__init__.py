"""Agents in repositories: episodes with tools, who acts in them, and the files of what they did."""
