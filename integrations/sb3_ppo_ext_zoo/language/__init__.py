"""Three small tasks for language models, with their models: PromptCopy-v0, RandomWalks-v0 and TextGrid-v0.

Each task is a module of its own, imported when its environment or its policy is first asked for. A task's tokenizer and
model are made in place, from text that its module writes; see ``pretraining``.
"""

import sb3_ppo_ext.language  # noqa: F401  # names the extra where transformers is missing
