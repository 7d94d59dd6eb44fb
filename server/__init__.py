"""The gateway: where the network meets time. Never imports torch."""
