import pytest
import torch
from cases_codegen2 import tiny_tokenizer, tokenizer_config

from modeling_lpn import CodeGen2ForCausalLM


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors of the tests are too small for threads, which cost tens of times more where other jobs run."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    """Of a small code model, as `model`, in modules that have none of their own."""
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return CodeGen2ForCausalLM(tokenizer_config(tokenizer, mp_num=1)).eval()
