"""Tests of codec tokens to waveform."""
