"""How checkpoints come to be; imported by nothing."""
