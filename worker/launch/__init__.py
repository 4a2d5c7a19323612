"""The words: what a launch is, its identity, its record. Pure: no SDK, no asyncio, no settings."""
