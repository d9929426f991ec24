"""Three small tasks for language models, with their models: PromptCopy-v0, RandomWalks-v0 and TextGrid-v0.

Importing this package registers the three environments. Each task is a module, imported when its environment or its
policy is first made. Its tokenizer and its model are trained on text that the module generates (``pretraining``).
"""

import gymnasium as gym

ENVIRONMENTS = {
    "PromptCopy-v0": "text_tasks.copying:PromptCopyEnv",
    "RandomWalks-v0": "text_tasks.walks:RandomWalksEnv",
    "TextGrid-v0": "text_tasks.grid:text_grid",
}

for env_id, entry_point in ENVIRONMENTS.items():
    gym.register(env_id, entry_point)
