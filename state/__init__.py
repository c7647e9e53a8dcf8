"""What a subtask remembers, how it is sealed at a barrier, and where it is kept."""
