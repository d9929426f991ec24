"""The interface of PPOX to a policy, and what PPOX adds to policies."""
