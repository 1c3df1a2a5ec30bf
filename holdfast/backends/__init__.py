"""Stores, and the parts of the engine that write to them and read from them."""
