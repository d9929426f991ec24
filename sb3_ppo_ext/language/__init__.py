"""PPO for language models: the policy is a causal language model, an environment step is a response."""

from importlib.util import find_spec

_missing = [name for name in ("transformers", "peft", "tokenizers") if find_spec(name) is None]
if _missing:
    raise ImportError(
        f"sb3_ppo_ext.language needs {' and '.join(_missing)}, which cannot be found. Install with\n"
        '  pip install "sb3_ppo_ext[lm]"'
    )

from sb3_ppo_ext.language.buffer import SequenceRolloutBuffer  # noqa: E402  # after the check, whose message comes first
from sb3_ppo_ext.language.candidates import CandidatePolicy  # noqa: E402
from sb3_ppo_ext.language.classifier import ClassifierReward  # noqa: E402
from sb3_ppo_ext.language.environments import PromptEnv, PromptVecEnv  # noqa: E402
from sb3_ppo_ext.language.policy import LanguageModelPolicy  # noqa: E402
from sb3_ppo_ext.language.ratio import RatioError  # noqa: E402
from sb3_ppo_ext.language.samples import SampleTable  # noqa: E402
from sb3_ppo_ext.language.spaces import ResponseSpace, prompt_space  # noqa: E402
from sb3_ppo_ext.language.text import TextObservation  # noqa: E402
from sb3_ppo_ext.language.trl_names import TRLNames  # noqa: E402

__all__ = [
    "CandidatePolicy",
    "ClassifierReward",
    "LanguageModelPolicy",
    "PromptEnv",
    "PromptVecEnv",
    "RatioError",
    "ResponseSpace",
    "SampleTable",
    "SequenceRolloutBuffer",
    "TRLNames",
    "TextObservation",
    "prompt_space",
]
