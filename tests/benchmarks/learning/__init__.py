"""What PPOX and its peers learn: a list of runs, one line of JSON for each, and statistics over the lines."""
