"""Codec tokens to waveform: flow-matching transformer, vocoder, voices."""
