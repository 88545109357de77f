"""A saved model, its processor and its pipeline work in a process that does not have the package."""

import json
import subprocess
import sys

import torch
from transformers import pipeline

from modeling_lpn import LPNConfig, LPNModel, LPNProcessor, SearchConfig


TASK = {
    "train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0], [3, 4]], "output": [[0, 2]]}],
    "test": [{"input": [[3, 0]]}],
}
SCRIPT = """
import json, sys
sys.modules["modeling_lpn"] = None  # importing the package fails, installed or not
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
output = model.generate(**processor(json.loads(sys.argv[2])), num_candidates=2)
other = model.generate(**processor(json.loads(sys.argv[2])), search_config={"num_steps": 1}, lr=0.5)
assert (output.search_output.num_evaluations == 3).all() and (other.search_output.num_evaluations == 2).all()
infer = pipeline(model=folder, trust_remote_code=True)
assert infer(json.loads(sys.argv[2]))["grids"] == processor.post_process(output)[0]
print(json.dumps([output.search_output.log_probs.tolist(), processor.post_process(output)]))
"""


def test_model_processor_and_pipeline_without_the_package(tmp_path):
    torch.manual_seed(0)
    model, processor = (
        LPNModel(LPNConfig(max_rows=4, max_cols=4, search={"num_steps": 2})).eval(),
        LPNProcessor(max_rows=4, max_cols=4),
    )
    folder = tmp_path / "model"
    pipeline("program-induction", model=model, processor=processor).save_pretrained(folder)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), json.dumps(TASK)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 0, result.stderr
    log_probs, grids = json.loads(result.stdout.splitlines()[-1])
    output = model.generate(**processor(TASK), search_config=SearchConfig(num_steps=2), num_candidates=2)
    assert torch.allclose(torch.tensor(log_probs), output.search_output.log_probs, atol=1e-4)
    assert grids == processor.post_process(output)
