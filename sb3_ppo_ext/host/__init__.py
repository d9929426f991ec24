"""Assumptions about the insides of other libraries: a file or folder for each library, a test for each assumption."""
