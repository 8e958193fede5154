"""Chat templates of strangers, rendered within a budget of steps, time and memory."""
