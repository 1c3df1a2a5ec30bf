"""Who owns what is hot: session actors, their mailboxes, and the registry."""
