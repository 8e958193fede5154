"""What a machine is and can do: its processor, memory, limits and bandwidth."""
