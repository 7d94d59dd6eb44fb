"""Other people's clients complete their turns against a real server."""
