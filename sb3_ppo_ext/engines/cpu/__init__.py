"""Compiled shared libraries on a CPU."""
