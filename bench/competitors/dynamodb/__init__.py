"""DynamoDB, that is, an emulator of it."""
