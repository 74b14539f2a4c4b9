"""The agent that runs all the time."""
