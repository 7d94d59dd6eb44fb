"""Real processes on loopback: what is promised holds when something breaks."""
