"""Valkey (and Redis)."""
