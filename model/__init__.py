"""The Qwen2.5-Omni architecture as streaming PyTorch modules."""
