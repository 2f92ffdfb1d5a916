"""Trees of drafts on the GPU's table, through scheduler and runner: answers as without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from minicpm4.engine.sequence import Sequence
from minicpm4.engine.steps import Span, StepPlan
from minicpm4.kernels.gpu.device import gpu_table
from minicpm4.kernels.gpu.table import GpuOps
from minicpm4.kernels.ref import RefOps
from tests.engine.test_drafts import PROMPTS, SPARSE, VOCAB, Greedy, guesser
from tests.fixtures.loading import load_model
from tests.fixtures.random_checkpoint import make_checkpoint

# NumPy, which the interpreter computes with, warns where a GPU goes on.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def test_answers_are_those_without_drafts(tmp_path: Path) -> None:
    weights = load_model(make_checkpoint(tmp_path, num_hidden_layers=1, vocab_size=VOCAB)).weights
    ops = GpuOps(gpu_table().device, torch.float32)
    prompts = [PROMPTS[2], PROMPTS[1][:14]]
    answers = Greedy(RefOps(), weights, SPARSE, limit=28).answer(prompts)
    drafted = Greedy(ops, weights, SPARSE, limit=28)
    assert drafted.answer(prompts, guesser(answers, 2, chains=0.0)) == answers
    assert drafted.trees > 2 and drafted.accepted > 8


def test_hidden_states_are_those_of_the_truth(tmp_path: Path) -> None:
    weights = load_model(make_checkpoint(tmp_path, num_hidden_layers=1, vocab_size=VOCAB)).weights
    found = []
    for ops in (GpuOps(gpu_table().device, torch.float32), RefOps()):
        runner = Greedy(ops, weights, None, limit=42).runner
        one = Sequence(0, PROMPTS[2], 42, pages=[3])
        result = runner.execute(StepPlan([Span(one, 0, 5, "last", hidden=(0, 1))]))
        found.append([ops.get(result.hidden[layers]) for layers in (0, 1)] + [result.logits])
    for ours, truth in zip(*found, strict=True):
        np.testing.assert_allclose(ours, truth, rtol=1e-3, atol=1e-3 * np.abs(truth).max())
