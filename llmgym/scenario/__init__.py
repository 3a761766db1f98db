"""What is simulated: engines, their batch times and memory, what arrives, and files that hold it."""
