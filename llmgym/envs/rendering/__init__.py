"""What a person sees of an environment."""
