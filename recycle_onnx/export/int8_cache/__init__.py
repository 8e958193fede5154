"""Keys and values in eight bits: how they are scaled, and the attention that multiplies them as integers."""
