"""Environments in Ray actors: on other cores and machines, replaced where one dies."""
