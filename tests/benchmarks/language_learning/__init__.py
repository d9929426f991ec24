"""What language models learn with a critic and without: a list of runs, one line of JSON each, and a table of them."""
