"""The actors: channels, subtasks, agent, controller, checkpoints and recovery."""
