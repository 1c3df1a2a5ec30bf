"""Real servers that tests start by themselves, and a proxy that comes between."""
