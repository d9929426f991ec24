"""The names of a loss's coefficients in TorchRL, and the knobs of PPOX that they are."""

from sb3_ppo_ext.knobs.table import KNOBS

# A controller moves a coefficient the way it moves the knob.
KNOB_OF = {name: knob.name for knob in KNOBS.values() for name in knob.torchrl}

# The weights of the terms that ``PPOXLoss`` adds, under the names of their knobs; None: the loss has no such term.
ADDED_COEFFICIENTS = tuple(name for name, knob in KNOB_OF.items() if name == knob)
