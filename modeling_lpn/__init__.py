"""Neural program synthesis for Hugging Face: Latent Program Networks and CodeGen2."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from .collators import DataCollatorForGridTasks
from .configuration_lpn import LPNConfig
from .evaluation import EvaluationOutput, evaluate_tasks
from .metrics import compute_arc_scores, make_submission, validate_submission
from .modeling_lpn import LPNModel, LPNPreTrainedModel
from .outputs_lpn import LPNEncoderOutput, LPNGenerateOutput, LPNOutput
from .processing_lpn import LPNProcessor
from .search_lpn import SEARCH_METHODS, SearchConfig, SearchOutput
from .sources import load_tasks, save_tasks
from .tasks import TASK_GENERATORS, PairTask, PatternTask, TaskStream


AutoConfig.register("lpn", LPNConfig, exist_ok=True)
AutoModel.register(LPNConfig, LPNModel, exist_ok=True)
AutoProcessor.register(LPNConfig, LPNProcessor, exist_ok=True)
LPNConfig.register_for_auto_class()
LPNModel.register_for_auto_class("AutoModel")
LPNProcessor.register_for_auto_class("AutoProcessor")

__version__ = "0.1.0"

__all__ = [
    "SEARCH_METHODS",
    "TASK_GENERATORS",
    "DataCollatorForGridTasks",
    "EvaluationOutput",
    "LPNConfig",
    "LPNEncoderOutput",
    "LPNGenerateOutput",
    "LPNModel",
    "LPNOutput",
    "LPNPreTrainedModel",
    "LPNProcessor",
    "PairTask",
    "PatternTask",
    "SearchConfig",
    "SearchOutput",
    "TaskStream",
    "compute_arc_scores",
    "evaluate_tasks",
    "load_tasks",
    "make_submission",
    "save_tasks",
    "validate_submission",
]
