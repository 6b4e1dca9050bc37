"""Conditional MMD flows: their networks, how they are fitted to an operator, and the flow of particles itself."""
