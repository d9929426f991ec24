"""One update of the policy from a collected rollout."""
