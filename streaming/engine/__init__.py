"""The worker: many live conversations on one model, in one synchronous step loop."""
