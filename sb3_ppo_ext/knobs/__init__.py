"""Knobs: numbers, schedules and controllers of PPOX's arguments, and the one parser of their text and dict forms."""
