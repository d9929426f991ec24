"""The ways to run acting and the update: the choice between them, and the functions that compiled ones trace."""
