"""Makes a language model of random weights, in bfloat16, quickly: on the card where there is one.

    python random_model.py FOLDER DEVICE

FOLDER has its config.json, and gets its weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

folder, device = Path(sys.argv[1]), sys.argv[2]
torch.manual_seed(1)
with torch.device(device):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
model.to("cpu").save_pretrained(folder)
