"""Schedules and controllers for a loss of TorchRL: stepped by the loop or its trainer, never by ``forward``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import nn

from sb3_ppo_ext.knobs.knob_set import KnobSet
from sb3_ppo_ext.knobs.parsing import Knob, parse_knob
from sb3_ppo_ext.knobs.table import KNOBS
from sb3_ppo_ext.update.optimizers import GroupRates
from sb3_ppo_ext.update.step import controller_inputs
from sb3_ppo_ext_torchrl.coefficients import KNOB_OF

if TYPE_CHECKING:
    from sb3_ppo_ext import PPOX


class KnobScheduler:
    """Moves coefficients of a loss, and the learning rate of its optimizer, once per collected batch.

    ``KnobScheduler(loss, {"clip_epsilon": "linear:0.2:0.05", "kl_coef": AdaptiveKL(1.0, 0.01)}, total_frames=...)``

    ``knobs`` maps TorchRL's names (``clip_epsilon``, ``entropy_coeff``, ..., and ``lr``, which needs ``optimizer``) to
    numbers, schedules, controllers, or the text or dict form of one, as PPOX takes them. The loss may be a stock
    ``ClipPPOLoss`` too. Values are written into the loss's buffers in place, so a compiled loss does not recompile.
    Loops call ``step`` after each batch; ``PPOTrainer`` does with ``KnobSchedulerHook``.

    The values at construction are those for the first batch, so a schedule starts with its own first value, as those of
    ``torch.optim`` do. (In PPOX a rollout counts as done before it is trained on; ``step(frames)`` between collecting
    and training, with what the previous batch measured, gives PPOX's very values.)
    """

    def __init__(
        self,
        loss: nn.Module,
        knobs: Mapping[str, Knob | str | dict[str, Any]],
        *,
        total_frames: float,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if not total_frames >= 1:  # NaN too
            raise ValueError(
                f"total_frames={total_frames}: a positive count of environment steps is needed, or "
                'float("inf") where there is no end'
            )
        if strange := [name for name in knobs if name not in KNOB_OF]:
            raise ValueError(f"knobs has {strange}; there are {', '.join(KNOB_OF)}")
        self.loss, self.optimizer, self.total_frames = loss, optimizer, total_frames
        self.frames = self.earlier_frames = 0  # earlier: what a schedule's horizon counts besides
        self.names = {KNOB_OF[name]: name for name in knobs}
        for name in knobs:
            self._require(name)
        read: dict[str, Knob | None] = {name: None if knob.optional else 0.0 for name, knob in KNOBS.items()}
        self.set = KnobSet({**read, **{KNOB_OF[name]: parse_knob(KNOB_OF[name], knobs[name]) for name in knobs}})
        if optimizer is not None and "lr" in knobs:
            rate = float(self.set.values.learning_rate)
            self.rates = GroupRates(optimizer, rate, rate)
        self._write()

    @classmethod
    def from_ppox(
        cls, model: PPOX, loss: nn.Module, *, total_frames: float, optimizer: torch.optim.Optimizer | None = None
    ) -> KnobScheduler:
        """The schedules and controllers of ``model``: a copy of each controller goes on from the value it has reached.

        Progress starts anew, but for schedules with a horizon of their own. ``optimizer`` (the model's own, for
        example) takes the learning rate.
        """
        pair = model.clip_range_high is not None
        leave = {"clip_epsilon"} if pair else {"clip_epsilon_low", "clip_epsilon_high"}
        knobs = {
            name: model.knobs.knobs[knob]
            for name, knob in KNOB_OF.items()
            if name not in leave and callable(model.knobs.knobs[knob]) and (name != "lr" or optimizer is not None)
        }
        scheduler = cls(loss, knobs, total_frames=total_frames, optimizer=optimizer)  # type: ignore[arg-type]
        scheduler.earlier_frames = model.timesteps_of_all_learns
        scheduler._advance()
        return scheduler

    def _require(self, name: str) -> None:
        if name == "lr":
            if self.optimizer is None:
                raise ValueError("knobs has 'lr', the learning rate of an optimizer: pass optimizer=...")
        elif not isinstance(getattr(self.loss, name, None), torch.Tensor):
            raise ValueError(
                f"knobs has {name!r}, and {type(self.loss).__name__} was built without it; give it a first value there "
                "(clip_epsilon is one number, clip_epsilon_low and clip_epsilon_high are those of a pair)"
            )

    @property
    def values(self) -> dict[str, float]:
        """The coefficients in force, under TorchRL's names."""
        return {name: float(getattr(self.set.values, knob)) for knob, name in self.names.items()}

    def step(self, frames: int, measured: Mapping[str, Any] | TensorDictBase | None = None) -> dict[str, float]:
        """Moves schedules and controllers after a batch of ``frames`` environment steps, and returns the new values.

        ``measured`` holds the losses' outputs, stacked or averaged over the batch's minibatches: "kl" (or "kl_approx")
        and "clip_fraction" are read, in one transfer each. Controllers need it; ``ValueError`` without.
        """
        self.frames += frames
        self.step_controllers("rollout", measured, frames)
        self._advance()
        return self.values

    def step_controllers(self, moment: str, measured: Mapping[str, Any] | TensorDictBase | None, samples: int) -> None:
        """For controllers with ``every="epoch"`` or ``"minibatch"``: call it there with that moment's outputs."""
        if self.set.any_at(moment):
            controllers = self.set.controllers.values()
            wanted = {controller.measures for controller in controllers if controller.every == moment}
            self.set.step(moment, {name: _mean(measured, name) for name in wanted}, samples)
            self._write()

    def _advance(self) -> None:
        self.set.at(max(1.0 - self.frames / self.total_frames, 0.0), self.earlier_frames + self.frames)
        self._write()

    def _write(self) -> None:
        for name, value in self.values.items():
            if name == "lr":
                self.rates.apply(value)
            else:
                getattr(self.loss, name).fill_(value)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: frames so far, and what every controller has reached."""
        return {"frames": self.frames, "earlier_frames": self.earlier_frames, "controllers": self.set.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues; a controller with other settings than it was saved with starts afresh."""
        self.frames, self.earlier_frames = int(state_dict["frames"]), int(state_dict["earlier_frames"])
        self.set.load_state_dict(state_dict["controllers"])
        self._advance()


# Not a TrainerHookBase, of which a trainer asks no more than this: importing torchrl.trainers takes another second and
# brings along all collectors.
class KnobSchedulerHook:
    """Steps a :class:`KnobScheduler` in a TorchRL trainer, after each batch it trained on, with what that measured.

    ``KnobSchedulerHook(scheduler).register(trainer)``. The state is part of the trainer's checkpoint.
    """

    MEASURED = ("kl", "kl_approx", "clip_fraction")

    def __init__(self, scheduler: KnobScheduler) -> None:
        self.scheduler = scheduler
        self.rows: list[dict[str, torch.Tensor]] = []
        self.epoch_starts = 0
        self.samples = 0
        self.frames = 0
        self.trainer: Any = None

    def record(self, loss: nn.Module, inputs: tuple[Any, ...], losses: Any) -> None:
        """Keeps the measurements of a minibatch on their device; moves nothing, for this runs in ``forward``."""
        if torch.is_grad_enabled() and isinstance(losses, TensorDictBase):
            self.samples = inputs[0].numel()
            present = [name for name in self.MEASURED if losses.get(name, None) is not None]
            self.rows.append({name: losses[name].detach() for name in present})

    def after_minibatch(self) -> None:
        """Moves controllers of "minibatch", after the optimizer step."""
        self.scheduler.step_controllers("minibatch", self._stacked(self.rows[-1:]), self.samples)

    def after_epoch(self) -> None:
        """Moves controllers of "epoch". A trainer has epochs without minibatches, where a sampler has run dry."""
        rows = self.rows[self.epoch_starts :]
        self.epoch_starts = len(self.rows)
        if rows:
            self.scheduler.step_controllers("epoch", self._stacked(rows), self.samples * len(rows))

    def __call__(self) -> None:
        """Moves all, after a batch; a batch that was not trained on, during a warm-up, moves nothing."""
        frames, self.frames = self.trainer.collected_frames - self.frames, self.trainer.collected_frames
        rows, self.rows, self.epoch_starts = self.rows, [], 0
        if rows:
            self.scheduler.step(frames, self._stacked(rows))

    @staticmethod
    def _stacked(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's, and the frames it has seen."""
        return {"scheduler": self.scheduler.state_dict(), "frames": self.frames}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues."""
        self.scheduler.load_state_dict(state_dict["scheduler"])
        self.frames = state_dict["frames"]

    def register(self, trainer: Any, name: str = "knob_scheduler") -> None:
        """Registers with ``trainer``."""
        self.trainer = trainer
        trainer.loss_module.register_forward_hook(self.record)
        for moment, call in (
            ("post_optim", self.after_minibatch),
            ("post_epoch", self.after_epoch),
            ("post_steps", self),
        ):
            trainer.register_op(moment, call)
        trainer.register_module(name, self)


def _mean(measured: Mapping[str, Any] | TensorDictBase | None, name: str) -> float:
    """The mean of what was measured under ``name``; of "kl", "kl_approx" where there is no penalty in the loss."""
    for key in (name, "kl_approx") if name == "kl" else (name,):
        value = None if measured is None else measured.get(key, None)
        if value is not None:
            mean = float(torch.as_tensor(value).float().mean())
            return controller_inputs(mean, mean, mean).get(name, mean)
    raise ValueError(
        f"a controller answers to {name!r}, which was not measured; pass the outputs of the loss to step()"
    )
