"""What a server embeds: the supervisor, the session handle, and the background workers."""
