import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors of the tests are too small for threads, which cost tens of times more where other jobs run."""
    torch.set_num_threads(1)
