"""A checkpoint of random weights is as whole as a loaded one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.models import random_omni
from model.chat import Chat
from model.reply import ReplyOptions, TextDelta


@pytest.mark.slow
def test_random_weights_answer() -> None:
    torch.manual_seed(0)  # other weights might end the reply with their first token
    chat = Chat(random_omni("small", torch.device("cpu")))
    chat.text("hello")
    assert any(isinstance(d, TextDelta) for d in chat.reply(ReplyOptions(speech=False)))
