"""How acting and the update are run: which engine is chosen, and the functions that engines trace."""
