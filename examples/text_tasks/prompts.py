"""The gymnasium environment of a prompt task: all environments of a process share one task and render as text."""

from __future__ import annotations

from sb3_ppo_ext_zoo.rendered_prompts import RenderedPromptEnv

from sb3_ppo_ext.language.envs.prompt_env import PromptTask
from sb3_ppo_ext.language.envs.prompts import PromptOrder


class SharedTaskEnv(RenderedPromptEnv):
    """A ``PromptEnv`` over a shared task, whose prompts are tokenized once."""

    def __init__(self, task: PromptTask, render_mode: str | None = None) -> None:
        self.task, self.render_mode = task, render_mode
        self.order = PromptOrder(len(task.source.texts), shuffle=True)
        self.observation_space = task.observation_space  # type: ignore[assignment]  # a Dict of arrays
        self.action_space = task.action_space
        self.last = ""
