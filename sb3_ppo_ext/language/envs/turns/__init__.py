"""Environments of several turns: conversations, text games, tools, and environments of other packages."""
