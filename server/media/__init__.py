"""Strangers' pictures and video, decoded in limited child processes."""
