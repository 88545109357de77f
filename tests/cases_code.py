"""Source files and small benchmarks for the tests of code models."""

import gzip
import json


FILE = '''def add(a, b):
    """Adds two numbers, ü included."""
    return a + b


def subtract(a, b):
    return a - b
'''
ROWS = [{"path": f"{name}.py", "text": FILE.replace("add", name)} for name in ("add", "plus", "total")]


HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x):\n    """ Twice. """\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    },
    {
        "task_id": "HumanEval/1",
        "prompt": "def one():\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    },
]
INFILL = [
    {
        "task_id": "SingleLineInfilling/HumanEval/0/L0",
        "prompt": "def double(x):\n",
        "suffix": "    return y\n",
        "entry_point": "double",
        "canonical_solution": "    y = 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }
]
MBPP = [
    {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\n    return x + {number}",
        "test_list": [f"assert add(N) == N + {number}", f"assert add(0) == {number}"],
        "test_setup_code": "N = 1",
        "challenge_test_list": [],
    }
    for number in (2, 3, 4, 10, 11, 12, 511)
]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (gzip.open if path.suffix == ".gz" else open)(path, "wt").write(text)
    return path
