"""PPO for language models: the policy is a causal language model, an environment step is a response."""

from sb3_ppo_ext.optional_packages import require_packages

require_packages("sb3_ppo_ext.language", '"sb3_ppo_ext[lm]"', "transformers", "peft", "tokenizers")

from sb3_ppo_ext.language.envs.classifier import ClassifierReward  # noqa: E402
from sb3_ppo_ext.language.envs.prompt_env import PromptEnv  # noqa: E402
from sb3_ppo_ext.language.envs.prompt_vec_env import PromptVecEnv  # noqa: E402
from sb3_ppo_ext.language.envs.reasoning import reasoning_prompts  # noqa: E402
from sb3_ppo_ext.language.envs.spaces import ResponseSpace, prompt_space  # noqa: E402
from sb3_ppo_ext.language.envs.text_observation import TextObservation  # noqa: E402
from sb3_ppo_ext.language.envs.turns.conversation import ConversationEnv, Turn  # noqa: E402
from sb3_ppo_ext.language.envs.turns.groups import conversation_vec_env  # noqa: E402
from sb3_ppo_ext.language.envs.turns.openenv import OpenEnvAdapter  # noqa: E402
from sb3_ppo_ext.language.envs.turns.text_game import TextGameEnv  # noqa: E402
from sb3_ppo_ext.language.envs.turns.tool_calls import ToolCall  # noqa: E402
from sb3_ppo_ext.language.envs.turns.tool_env import ToolEnv  # noqa: E402
from sb3_ppo_ext.language.evaluation.callback import PromptEvalCallback  # noqa: E402
from sb3_ppo_ext.language.model.generators import Generated, Generator, Request, SamplerError  # noqa: E402
from sb3_ppo_ext.language.monitoring.samples import SampleTable  # noqa: E402
from sb3_ppo_ext.language.monitoring.trl_names import TRLNames  # noqa: E402
from sb3_ppo_ext.language.policies.candidates import CandidatePolicy  # noqa: E402
from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy  # noqa: E402
from sb3_ppo_ext.language.policies.opponent import PolicyOpponent  # noqa: E402
from sb3_ppo_ext.language.training.ratio_check import RatioError  # noqa: E402
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer  # noqa: E402
from sb3_ppo_ext.language.training.value_pretraining import ValuePretraining  # noqa: E402  # after the check for extras

__all__ = [
    "CandidatePolicy",
    "ClassifierReward",
    "ConversationEnv",
    "Generated",
    "Generator",
    "LanguageModelPolicy",
    "OpenEnvAdapter",
    "PolicyOpponent",
    "PromptEnv",
    "PromptEvalCallback",
    "PromptVecEnv",
    "RatioError",
    "Request",
    "ResponseSpace",
    "SampleTable",
    "SamplerError",
    "SequenceRolloutBuffer",
    "TRLNames",
    "TextGameEnv",
    "TextObservation",
    "ToolCall",
    "ToolEnv",
    "Turn",
    "ValuePretraining",
    "conversation_vec_env",
    "prompt_space",
    "reasoning_prompts",
]

for _public in (
    *(
        CandidatePolicy,
        ClassifierReward,
        LanguageModelPolicy,
        PromptEnv,
        PromptEvalCallback,
        PromptVecEnv,
        RatioError,
        ResponseSpace,
    ),
    *(SampleTable, SequenceRolloutBuffer, TRLNames, TextObservation, ValuePretraining),
    *(ConversationEnv, OpenEnvAdapter, PolicyOpponent, TextGameEnv, ToolCall, ToolEnv, Turn),
    *(Generated, Generator, Request, SamplerError),
    *(conversation_vec_env, prompt_space, reasoning_prompts),
):
    _public.__module__ = __name__  # what saved models name
