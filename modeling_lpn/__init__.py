"""Neural program synthesis for Hugging Face: Latent Program Networks and CodeGen2."""

from transformers import AutoConfig, AutoModel

from .configuration_lpn import LPNConfig
from .modeling_lpn import LPNEncoderOutput, LPNGenerateOutput, LPNModel, LPNOutput, LPNPreTrainedModel
from .search_lpn import SEARCH_METHODS, SearchConfig, SearchOutput


AutoConfig.register("lpn", LPNConfig, exist_ok=True)
AutoModel.register(LPNConfig, LPNModel, exist_ok=True)
LPNConfig.register_for_auto_class()
LPNModel.register_for_auto_class("AutoModel")

__version__ = "0.1.0"

__all__ = [
    "LPNConfig",
    "LPNEncoderOutput",
    "LPNGenerateOutput",
    "LPNModel",
    "LPNOutput",
    "LPNPreTrainedModel",
    "SEARCH_METHODS",
    "SearchConfig",
    "SearchOutput",
]
