"""Errors of ``PPOXLoss`` that are what ``ClipPPOLoss`` raises in the same place, so that code around it keeps working.

Where ``ClipPPOLoss`` has no check, its error is the one that follows from the mistake. Each is also the error of PPOX's
own rule: a wrong argument or shape is a ``ValueError``, a missing key a ``KeyError``.
"""


class WrongNumber(TypeError, ValueError):
    """A coefficient is no number: ``ClipPPOLoss`` raises one or the other, as the argument goes."""


class UnknownChoice(ValueError, NotImplementedError):
    """A name that is none of those allowed: ``ClipPPOLoss`` raises ``NotImplementedError`` when it is first run."""


class WrongShape(ValueError, RuntimeError):
    """Tensors that do not fit: ``ClipPPOLoss`` raises ``ValueError`` for some, ``RuntimeError`` for others."""


class MissingKey(KeyError, AttributeError):
    """The data lack an entry: ``ClipPPOLoss`` raises ``KeyError``, or the ``AttributeError`` of a ``None``."""

    def __str__(self) -> str:  # KeyError shows its argument quoted and escaped
        return str(self.args[0])
