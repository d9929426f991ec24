"""What PPOX asks of a policy, and what it adds to one."""
