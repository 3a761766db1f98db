"""What an agent sees and does: observations and actions."""
