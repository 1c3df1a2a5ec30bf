"""Adapters that put Holdfast under other people's servers. Nothing below knows them."""
