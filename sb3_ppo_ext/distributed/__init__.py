"""Training by several processes with the numbers of one: shards of environments, and what is reduced over them."""
