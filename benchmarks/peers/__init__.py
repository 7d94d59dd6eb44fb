"""Peers of the server: the same weights or parts put together in the usual way, behind the same protocol."""
