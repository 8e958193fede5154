"""How the two halves write a text: their state, the strategies that drive them, and the choice of each token."""
