"""The simulated engine: parameters, state, what policies see, and the step."""
